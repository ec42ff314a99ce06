"""A bundle behind a real tritonserver: answers as the model's own, together, streamed; refusals, cancellation."""

import base64
import io
import json
import time
import urllib.error
import urllib.request
from dataclasses import asdict

import pytest
from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime import load
from ernie_export.runtime.answer_length import DEFAULT_NEW_TOKENS
from ernie_export.runtime.scheduler import QueueFull
from ernie_export.runtime.scheduler_config import SchedulerConfig
from ernie_export.runtime.serving.media_limits import MediaLimits
from ernie_export.runtime.serving.triton_backend import FULL, ByteBudget, Settings
from tests.hostile_media import slow_jpeg
from tests.paths import ROOT

QUESTIONS = {entry["name"]: entry["messages"] for entry in json.loads((ROOT / "examples/questions.json").read_text())}
TEXT = [{"role": "user", "content": "How many sides has a triangle?"}]
SAMPLED = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5}
LONG = {"min_new_tokens": 3000, "max_new_tokens": 3000}  # the end token is masked: more than any test waits for


@pytest.fixture(scope="module")
def model(repository):
    with load(repository / "ernie" / "1" / "bundle", threads=1) as loaded:
        yield loaded


def sent(messages, source):
    """Messages of examples/questions.json with `source` of each file in place of its path, and the paths in full."""
    there = json.loads(json.dumps(messages))
    here = json.loads(json.dumps(messages))
    for one, other in zip(there, here):
        for part, full in zip(*(m["content"] if isinstance(m["content"], list) else [] for m in (one, other))):
            if part["type"] != "text":
                path = ROOT / full["path"]
                full["path"] = str(path)
                del part["path"]
                part |= source(path)
    return there, here


def as_data(path):
    kind = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}[path.suffix]
    return {"url": f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"}


def joined(responses):
    assert [bool(response["finish_reason"]) for response in responses] == [False] * (len(responses) - 1) + [True]
    return {
        "text": "".join(response["text"] for response in responses),
        "reasoning": "".join(response["reasoning"] for response in responses),
        "tokens": tuple(token for response in responses for token in response["tokens"]),
        "prompt_tokens": responses[-1]["prompt_tokens"],
        "finish_reason": responses[-1]["finish_reason"],
    }


def own(result):
    """A result of the model's own, without what depends on the questions before it."""
    fields = asdict(result)
    del fields["reused_tokens"]
    return fields


@pytest.mark.parametrize("source", [as_data, lambda path: {"path": path.name}], ids=["data URIs", "files"])
@pytest.mark.parametrize("options", [{"max_new_tokens": 24}, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_the_models_own(client, model, source, options):
    """All questions at once, more than there are rows; each answer token by token."""
    expected = {}
    for name, messages in QUESTIONS.items():
        there, here = sent(messages, source)
        client.ask(name, there, **options)
        expected[name] = own(model.generate(here, **options))
    answers = client.answers(len(QUESTIONS))
    assert {name: joined(responses) for name, responses in answers.items()} == expected
    assert all(len(r["tokens"]) == 1 for responses in answers.values() for r in responses)


def test_an_answer_has_the_form_that_is_asked_for(client):
    """Structured output by the parameters of a request, beside a free answer in the same batch."""
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 2}
    client.ask("form", TEXT, structured_outputs={"json": schema, "disable_any_whitespace": True}, max_new_tokens=64)
    client.ask("choice", TEXT, structured_outputs={"choice": ["left", "right"]}, max_new_tokens=64)
    client.ask("free", TEXT, max_new_tokens=8)
    answers = client.answers(3)
    texts = {name: joined(responses)["text"] for name, responses in answers.items()}
    assert set(json.loads(texts["form"])) <= {"red", "blue"} and len(json.loads(texts["form"])) == 2
    assert texts["choice"] in ("left", "right") and texts["free"] not in ("left", "right")
    assert answers["form"][-1]["finish_reason"] == "stop"


def test_an_answer_is_as_long_as_elsewhere_where_nobody_says(client):
    client.ask("long", TEXT, stream=False, ignore_eos=True)
    (response,) = client.answers(1)["long"]
    assert (len(response["tokens"]), response["finish_reason"]) == (DEFAULT_NEW_TOKENS, "length")


def test_one_response_where_no_stream_is_wanted(client, server, model):
    """Over gRPC, and over HTTP as well, where a request has one response."""
    expected = model.generate(TEXT, max_new_tokens=8)
    client.ask("whole", TEXT, stream=False, max_new_tokens=8)
    (response,) = client.answers(1)["whole"]
    assert joined([response]) == own(expected)
    fields = {"messages": json.dumps(TEXT), "sampling_parameters": json.dumps({"max_new_tokens": 8})}
    answer = post(server[0], fields)
    assert (answer["text"], answer["finish_reason"]) == (expected.text, expected.finish_reason)


def test_http_errors_have_their_status(server):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server[0], {"messages": "[]"})
    assert caught.value.code == 400
    assert json.load(caught.value) == {"error": "messages: expected at least one message, found none"}


def post(port, fields):
    address = f"http://127.0.0.1:{port}/v2/models/ernie/generate"
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(fields).encode()), timeout=60) as reply:
        return json.load(reply)


def test_requests_are_decoded_together(client):
    """A short request that comes while a long one is answered ends first, and the long one goes on."""
    client.ask("long", TEXT, min_new_tokens=400, max_new_tokens=400)
    assert client.next() == ("long", "")
    client.ask("short", TEXT, max_new_tokens=3)
    answers = client.answers(2)
    assert list(answers) == ["short", "long"]
    assert len(answers["long"]) == 399


def blank(width: int, height: int) -> str:
    """A picture of few bytes as a data URI."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


REFUSALS = {
    "too large": (
        b'[{"role": "user", "content": "' + b"a" * 2**25 + b'"}]',
        {},
        "messages: expected at most 33554432 by",
    ),
    "too much text": (
        b'[{"role": "user", "content": "' + b"a" * 2**23 + b'"}]',
        {},
        "messages: expected at most 4194304",
    ),
    "too many values": (b"[" + b"{}," * 2**18 + b"{}]", {}, "messages: expected at most 262144 commas"),
    "options": (TEXT, {"stop": "a" * 2**17}, "sampling_parameters: expected at most 65536 bytes"),
    "no JSON": (b"What is red?", {}, "messages: expected JSON, found Expecting value"),
    "deep": (b"[" * 100_000, {}, "messages: expected JSON"),
    "no list": ({"role": "user"}, {}, 'messages: expected a JSON list, found {"role": "user"}'),
    "no message": ([], {}, "messages: expected at least one message"),
    "role": ([{"role": "judge", "content": "x"}], {}, "messages[0].role: expected one of system, user"),
    "option": (TEXT, {"max_tokens": 3}, "max_tokens: expected one of the options"),
    "value": (TEXT, {"temperature": -1}, "temperature: expected a finite number"),
    "logprobs": (TEXT, {"logprobs": 2}, "logprobs: expected none"),
    "no picture": (
        [{"role": "user", "content": [{"type": "image", "url": "data:image/png;base64,aaaa"}]}],
        {},
        "expected an image (PNG, JPEG, WEBP, GIF, BMP), found a file of another format",
    ),
    "too many pixels": (
        [{"role": "user", "content": [{"type": "image", "url": blank(10_000, 6_000)}]}],
        {},
        "expected at most 50000000 pixels, found 10000×6000",
    ),
    "a playlist": (
        [{"role": "user", "content": [{"type": "video", "url": "data:video/mp4;base64,I0VYVE0zVQ=="}]}],
        {},
        "expected a video file (mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif), found Invalid data",
    ),
    "too long": (
        [{"role": "user", "content": "word " * 5000}],
        {},
        "prompt: expected at most 4095 tokens, found 5014",
    ),
    **{
        f"path {path}": (
            [{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": "What?"}]}],
            {},
            "messages[0].content[0].path: expected a data URI or a path in the folder of media, found",
        )
        for path in ("/etc/passwd", "../repository/ernie/config.pbtxt", "none.png", "http://127.0.0.1/a", "x\0", ".")
    },
}


@pytest.mark.parametrize(("messages", "options", "expected"), REFUSALS.values(), ids=REFUSALS)
def test_a_bad_request_is_refused_in_one_line(client, messages, options, expected):
    """It names the input and the key; the next request on the same stream is answered."""
    client.ask("bad", messages, **options)
    name, error = client.next()
    assert not name and expected in error and "\n" not in error
    client.ask("good", TEXT, max_new_tokens=2)
    assert list(client.answers(1)) == ["good"]


def test_a_full_queue_is_refused_and_what_is_cancelled_frees_a_place(client):
    """4 rows and 12 places: the 17th request is refused. Then all are cancelled, and a new one is answered."""
    for number in range(16):
        client.ask(str(number), TEXT, **LONG)
    running = {client.next()[0] for _ in range(64)}
    assert len(running) == 4 and "" not in running
    client.ask("one too many", TEXT, max_new_tokens=2)
    while (response := client.next())[0]:
        assert response[0] in running
    assert response[1] == FULL
    client.cancel()
    client.begin()
    for attempt in range(200):
        client.ask(f"after {attempt}", TEXT, stream=False, max_new_tokens=2)
        name, error = client.next()
        if name:
            break
        assert error == FULL
        time.sleep(0.1)
    assert name, "what was cancelled still has its places"


def test_a_request_ends_at_its_timeout(client):
    """Triton's own request timeout, in microseconds, is the answer's."""
    client.ask("timed", TEXT, timeout=500_000, **LONG)
    (responses,) = client.answers(1).values()
    assert responses[-1]["finish_reason"] == "timeout" and 1 < len(responses) < 3000


def test_clients_that_leave_hold_no_decoder(client):
    """Four of them ask about pictures that take ten seconds each, and go; the next picture is answered."""
    slow = {"type": "image", "url": f"data:image/jpeg;base64,{base64.b64encode(slow_jpeg()).decode()}"}
    for number in range(4):
        client.ask(f"slow {number}", [{"role": "user", "content": [slow] * 10}], max_new_tokens=2)
    time.sleep(2)
    client.cancel()
    client.begin()
    honest, _ = sent(next(messages for messages in QUESTIONS.values() if media_kinds(messages) == {"image"}), as_data)
    began = time.monotonic()
    client.ask("honest", honest, max_new_tokens=2)
    assert list(client.answers(1)) == ["honest"]
    assert time.monotonic() - began < 15


def media_kinds(messages):
    parts = [part for m in messages for part in (m["content"] if isinstance(m["content"], list) else [])]
    return {part["type"] for part in parts} - {"text"}


def test_features_of_all_requests_are_bounded():
    budget = ByteBudget(100)
    with budget.hold(60):
        with pytest.raises(QueueFull), budget.hold(41):
            pass
        with budget.hold(40):
            pass
    with budget.hold(100):
        pass


def test_a_backend_for_another_numpy_is_refused_on_loading(repository, serving, free_ports, tmp_path):
    """The wheel's Python backend is built for NumPy 1 and would crash on the first request."""
    with serving(repository, tmp_path, *free_ports(), numpy_1=False) as process:
        assert process.wait(60) != 0
    assert "expected a Python backend built for NumPy 2, or NumPy 1.26" in (tmp_path / "log").read_text()


GIVEN = {
    "device": "cpu", "rows": "4", "waiting": "9", "kv_cache_gib": "0.5", "max_image_pixels": "300e6",
    "media_folder": "", "require_verified": "false",
}  # fmt: skip


def test_settings_are_the_parameters_of_config_pbtxt():
    settings = Settings.from_parameters(GIVEN | {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"})
    config = SchedulerConfig(max_num_seqs=4, max_queue=13, kv_cache_bytes=2**29)
    media = MediaLimits(max_image_pixels=300_000_000, max_pixels=300_000_000)
    assert settings == Settings("cpu", config, 13, media=media, media_folder=None, require_verified=False)
    assert Settings.from_parameters(GIVEN | {"require_verified": "true"}).require_verified


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"rows": "four"}, "config.pbtxt: rows: expected a number, found 'four'"),
        ({"rows": "0"}, "config.pbtxt: rows: expected a whole number of at least 1, found 0"),
        ({"max_image_pixels": "0"}, "config.pbtxt: max_image_pixels: expected a whole number of at least 1, found 0"),
        ({"kv_cache_gib": "nan"}, "config.pbtxt: kv_cache_gib: expected a number, found 'nan'"),
        ({"kvcache": "1"}, "config.pbtxt: kvcache: expected the parameters device, kv_cache_gib,"),
        ({"require_verified": "yes"}, "config.pbtxt: require_verified: expected true or false, found 'yes'"),
        ({"media_folder": "/nowhere"}, "config.pbtxt: media_folder: expected a folder, found none at /nowhere"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_settings_are_refused(changed, expected):
    with pytest.raises(UserError) as caught:
        Settings.from_parameters(GIVEN | changed)
    assert expected in str(caught.value)


def test_a_missing_setting_is_refused():
    with pytest.raises(UserError, match="config.pbtxt: rows: expected the parameters .*, found no such parameter"):
        Settings.from_parameters({name: value for name, value in GIVEN.items() if name != "rows"})
