"""A bundle on a real local Ray cluster of two replicas, one of which is killed while requests run."""

import asyncio
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from pydantic import ValidationError

from ernie_export.common.errors import InvalidFile, UserError
from ernie_export.runtime import load
from ernie_export.runtime.generation_config import GenerationDefaults
from ernie_export.runtime.serving.media_limits import MediaLimits
from ernie_export.runtime.serving.ray_app import Options, Replica, build

KEY = "a-key-of-sixteen-characters"
QUESTIONS = [f"How many sides has a {shape}?" for shape in ("triangle", "square", "circle", "star")]


@pytest.fixture(scope="module")
def bundle(mini_bundle):
    return mini_bundle


# Ray's own fields, in pydantic's older form.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def client(bundle):
    """Ray and Ray Serve on this machine alone, with a small object store, and two replicas of the bundle."""
    # A busy machine starts a process in longer than the 5 seconds after which Serve kills its proxy and starts anew.
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }
    import ray
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ray.init(num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(Options(bundle=bundle, model_name="mini", replicas=2, cpus=0.5, kv_cache_gib=0.25)))
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=8, timeout=60)
    finally:
        serve.shutdown()
        ray.shutdown()


def replicas():
    import ray

    names = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    return {name for name in names if name.startswith("SERVE_REPLICA::")}


def answer(client, question, **options):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model="mini", messages=messages, max_tokens=16, **options)


@pytest.fixture(scope="module")
def expected(bundle):
    with load(bundle, threads=1) as model:
        return {
            question: model.generate([{"role": "user", "content": question}], max_new_tokens=16).text
            for question in QUESTIONS
        }


def test_answers_are_the_models_own_and_streams_pass_through(client, expected):
    for question in QUESTIONS:
        assert answer(client, question).choices[0].message.content == expected[question]
    arrived = []
    for chunk in answer(client, "What is this?", stream=True, extra_body={"min_tokens": 16}):
        arrived.append(chunk)
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in arrived) > 1
    assert arrived[-1].choices[0].finish_reason == "length"


def test_a_replica_killed_under_load_fails_no_request(client, expected):
    """Eight callers ask without a pause, one of two replicas is killed, and the client's retries see it through."""
    import ray

    before = replicas()
    assert len(before) == 2
    answers = []
    failures = []
    killed = threading.Event()

    def ask(number):
        for turn in range(12):
            question = QUESTIONS[(number + turn) % len(QUESTIONS)]
            try:
                content = answer(client, question).choices[0].message.content
                answers.append((killed.is_set(), content == expected[question]))
            except Exception as e:
                failures.append(e)

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    while len(answers) < 16:
        time.sleep(0.01)
    ray.kill(ray.get_actor(sorted(before)[0], namespace="serve"))
    killed.set()
    for caller in callers:
        caller.join()
    assert failures == [] and len(answers) == 96
    assert all(right for _, right in answers)
    assert any(after for after, _ in answers)
    for _ in range(600):
        if len(replicas()) == 2 and replicas() != before:
            break
        time.sleep(0.1)
    assert len(replicas()) == 2 and len(replicas() & before) == 1, "the killed replica is not replaced"


@pytest.fixture
def ask_host(bundle, tmp_path):
    """ask_host(host, key, **options): the status of a replica's list of models under that Host header."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)

    def ask(host: str, key: str = "", **options: Any) -> int:
        replica = Replica(Options(bundle=bundle, kv_cache_gib=0.1, **options))
        application = replica.__serve_build_asgi_app__()
        headers = {"Host": host} | ({"Authorization": f"Bearer {key}"} if key else {})

        async def get() -> int:
            transport = httpx2.ASGITransport(app=application)
            async with httpx2.AsyncClient(transport=transport, base_url="http://proxy") as client:
                return (await client.get("/v1/models", headers=headers)).status_code

        return asyncio.run(get())

    return ask


@pytest.mark.parametrize(
    ("host", "options", "status"),
    [
        ("attacker.example", {}, 403),
        ("attacker.example:8000", {}, 403),
        ("", {}, 403),
        ("localhost:8000", {}, 200),
        ("127.0.0.1", {}, 200),
        ("attacker.example", {"allowed_hosts": ("models.example",)}, 403),
        ("Models.Example:8000", {"allowed_hosts": ("models.EXAMPLE",)}, 200),
    ],
)
def test_replicas_without_keys_answer_to_known_names_alone(ask_host, host, options, status):
    assert ask_host(host, **options) == status


def test_replicas_with_keys_answer_to_any_name_unless_some_are_listed(ask_host, tmp_path):
    keys = {"api_key_file": tmp_path / "keys"}
    assert ask_host("models.example", KEY, **keys) == 200
    assert ask_host("models.example", **keys) == 401
    assert ask_host("other.example", KEY, **keys, allowed_hosts=("models.example",)) == 403


def test_the_limit_on_an_images_pixels_reaches_what_decodes(bundle):
    replica = Replica(Options(bundle=bundle, kv_cache_gib=0.1, max_image_pixels=300_000_000))
    settings = replica.__serve_build_asgi_app__().state.service.settings
    assert settings.media == MediaLimits(max_image_pixels=300_000_000, max_pixels=300_000_000)
    assert replica.model.preprocessor.images.max_source_pixels == 300_000_000
    assert Options(bundle=bundle).max_image_pixels == 50_000_000


def test_the_sampling_of_requests_that_do_not_say_is_the_chosen_files(bundle, tmp_path):
    path = tmp_path / "sampling.json"
    path.write_text('{"temperature": 0.5, "max_new_tokens": 7}')

    def defaults(**options: Any) -> GenerationDefaults:
        replica = Replica(Options(bundle=bundle, kv_cache_gib=0.1, **options))
        return replica.__serve_build_asgi_app__().state.service.defaults

    assert defaults() == GenerationDefaults.choose("auto", bundle)
    assert defaults(generation_config="vllm") == GenerationDefaults(temperature=1.0)
    assert defaults(generation_config=str(path)) == GenerationDefaults.read(path, is_limit=True)


def test_a_bundle_that_was_not_verified_is_refused_where_that_is_required(bundle):
    with pytest.raises(InvalidFile, match="verification: expected a record of ernie-verify --record, found none"):
        Replica(Options(bundle=bundle, require_verified=True))


def test_options_become_ray_serves(bundle):
    scaled = Options(bundle=bundle, replicas=2, max_replicas=5, target_requests=3, gpus=0.25, rows=4, queue=6)
    assert scaled.deployment() == {
        "autoscaling_config": {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 3},
        "ray_actor_options": {"num_cpus": 1, "num_gpus": 0.25},
        "max_ongoing_requests": 10,
        "health_check_period_s": 5,
    }
    assert Options(bundle=bundle, replicas=3).deployment()["num_replicas"] == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"replica": 2}, "Extra inputs are not permitted"),
        ({"replicas": 0}, "greater than or equal to 1"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas: expected at least 3 (replicas), found 2"),
        ({"gpus": -1}, "greater than or equal to 0"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, expected):
    with pytest.raises(ValidationError) as caught:
        Options(bundle=Path("bundle"), **options)
    assert expected in str(caught.value)


def test_what_is_no_bundle_is_refused_before_ray_starts_anything(tmp_path):
    with pytest.raises(UserError, match="expected a bundle"):
        build(Options(bundle=tmp_path))
