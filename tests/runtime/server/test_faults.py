"""Bad requests and bad clients: refused or left alone, while everybody else is answered; and nothing leaks."""

from collections.abc import Iterator

import attack
import bad_clients
import bad_requests
import httpx2
import pytest
import schemathesis
import server_talk as talk
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

CAPACITY = attack.ROWS + attack.QUEUE
OK_OR_FULL = {"200", "429"}


@pytest.fixture(scope="module")
def attacked(bundle) -> Iterator[tuple[str, int]]:
    """A server with little memory, which must print nothing to its end."""
    with attack.serving(bundle) as running:
        yield running


@pytest.fixture
def url(attacked) -> Iterator[str]:
    """Its address; after the test nothing may run or wait there any more, and it has to answer."""
    url, _ = attacked
    yield url
    talk.at_rest(url)
    assert bad_clients.flood(url, 1) == {"200": 1}


def test_damaged_requests(url):
    ended = bad_requests.damaged_bodies(url, 0, 200)
    assert ended["200"] and ended["400"], ended


def test_errors_are_one_printable_line(url):
    for name in ("\x00", "\x1b[31m\n", "\u202e", "x" * 100_000):
        response = httpx2.post(url + talk.PATH, json=talk.known(**{name: 1}), timeout=talk.SECONDS)
        assert response.status_code == 400
        talk.check(response.status_code, response.content)


def test_damaged_http(url):
    ended = bad_requests.damaged_messages(url, 0, 150)
    assert ended["400"] and ended["404"] and ended[talk.ENDED], ended


def test_bodies_that_stop_being_http(url):
    """One refusal and no second answer, of which the server's log would tell."""
    ours = talk.heads("Transfer-Encoding: chunked\r\n")
    for head in (ours, ours.replace(b"localhost", b"elsewhere")):
        for pause in (0.0, 0.05):
            assert talk.exchange(url, [head + b"zz\r\n", b"zz\r\n"], pause) in {"400", "403"}


def test_bodies_that_end_early(url):
    bad_requests.truncated_bodies(url)


def test_large_heads(url):
    assert bad_requests.large_headers(url) == {"400": 3}


def test_small_files_of_very_many_pixels(url):
    ended = bad_requests.picture_bombs(url)
    assert set(ended) <= {"200", "400", "413"} and ended["400"] >= 6, ended


def test_clients_that_hardly_send(url):
    assert set(bad_clients.slow_clients(url, count=60, seconds=2)) == {"200"}


def test_clients_that_leave(url):
    bad_clients.leave_midway(url, 60)


def test_clients_that_hardly_read(url):
    ended = bad_clients.slow_readers(url)
    assert ended["200"] and ended["slow 200"] == 6, ended


def test_ten_times_more_than_fit(attacked, url):
    """Time and again; the memory stays where it is after the first."""
    sizes = []
    for _ in range(3):
        ended = bad_clients.flood(url, 10 * CAPACITY)
        assert set(ended) == OK_OR_FULL and ended["200"] >= CAPACITY, ended
        talk.at_rest(url)
        sizes.append(talk.resident(attacked[1]))
    assert max(sizes[1:]) < sizes[0] + 8, f"{sizes} MiB"


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as described", "otherwise"])
def test_what_the_description_allows_and_what_not(url, mode):
    """Schemathesis' cases of every operation of openapi.json."""
    asked = set()
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and "requestBody" not in operation.definition.raw:
            continue  # it takes nothing: nothing can be wrong

        @settings(
            max_examples=20 if operation.method == "post" else 3, deadline=None, derandomize=True, database=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case):
            response = case.call(timeout=talk.SECONDS)
            talk.check(response.status_code, response.content if response.status_code != 200 else b"")
            asked.add((case.method, response.status_code))

        one()
    assert ("POST", 400) in asked and (mode is GenerationMode.NEGATIVE or ("GET", 200) in asked), asked


def test_the_checks_can_fail():
    """On answers that would be defects."""
    for status, body in ((500, b"{}"), (200, b"Traceback (most recent"), (400, b'{"error": {"message": "a\\nb"}}')):
        with pytest.raises((AssertionError, KeyError)):
            talk.check(status, body)
    with pytest.raises(httpx2.ConnectError):
        bad_clients.flood("http://127.0.0.1:9", 1)
