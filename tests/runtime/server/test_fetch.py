"""Addresses in requests: only hosts that were allowed, only public addresses, whatever names and redirects say."""

import asyncio
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpcore2
import pytest

from ernie_export import __version__
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.fetch import Fetcher, _redirected, is_public

PUBLIC = "93.184.216.34"
PICTURE = b"picture" * 1000
REDIRECTS = {
    "/moved": "/picture",
    "/elsewhere": "http://other.test/picture",
    "/inside": "http://10.0.0.7/picture",
    "/metadata": "http://169.254.169.254/latest",
    "/file": "file:///etc/passwd",
    "/round": "/round",
    "/down": "http://inner.test/picture",
}


class Pictures(BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self):
        headers = {}
        body = PICTURE
        status = 200
        if self.path in REDIRECTS:
            status = 302
            body = b""
            headers = {"Location": REDIRECTS[self.path]}
        elif self.path == "/zipped":
            headers = {"Content-Encoding": "gzip"}
        elif self.path == "/missing":
            status = 404
            body = b"no such picture"
        assert isinstance(self.server, Web)
        if self.path == "/named" and not self.headers.get("User-Agent", "").startswith("ernie-export/"):
            status = 403
            body = b"who are you?"
        self.server.seen.append((self.path, self.headers["Host"]))
        self.server.agents.append(self.headers.get_all("User-Agent", []))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path == "/slow":
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif self.path == "/endless":
            while True:
                self.wfile.write(bytes(65536))
        else:
            self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""

    def handle(self):
        """As always, but a client that leaves is no error."""
        try:
            super().handle()
        except OSError:
            pass


class Web(ThreadingHTTPServer):
    """A server that notes the path, the Host header and the User-Agents of each request."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[tuple[str, str | None]] = []
        self.agents: list[list[str]] = []


@pytest.fixture(scope="module")
def web():
    with Web(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Network(httpcore2.AnyIOBackend):
    """Takes every connection to the local server, and notes where it was meant to go."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.connected: list[tuple[str, int]] = []

    async def connect_tcp(self, host, port, *options):
        self.connected.append((host, port))
        return await super().connect_tcp("127.0.0.1", self.port, *options)


class Names:
    """A resolver with a table; a name with several entries gives the next one each time (rebinding)."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host, port):
        self.asked.append(host)
        answers = self.answers[host.partition(".")[0]]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def fetch(web, url, *, names=None, allowed=("pictures.test", "inner.test", "10.0.0.7"), limit=10**6, seconds=5.0):
    network = Network(web.server_port)
    names = names or Names(pictures=[[PUBLIC]], inner=[["192.168.1.1"]])
    fetcher = Fetcher(allowed, seconds, names, network)
    try:
        return asyncio.run(fetcher.fetch(url, limit, "the.field")), network
    except ApiError as e:
        assert e.status == 400 and e.param == "the.field" and e.message.startswith("the.field: ")
        return e, network


def test_a_picture_from_an_allowed_host(web):
    found, network = fetch(web, "http://Pictures.TEST./a%20b?x=ä")
    assert found == PICTURE and network.connected == [(PUBLIC, 80)]
    assert web.seen[-1] == ("/a%20b?x=%C3%A4", "pictures.test")


@pytest.mark.parametrize("path", ["named", "moved"])
def test_a_host_learns_who_asks(web, path):
    begin = len(web.agents)
    found, _ = fetch(web, f"http://pictures.test/{path}")
    assert found == PICTURE
    assert web.agents[begin:] == [[f"ernie-export/{__version__}"]] * (2 if path == "moved" else 1)


def test_a_redirect_is_followed(web):
    found, network = fetch(web, "http://pictures.test/moved")
    assert found == PICTURE and len(network.connected) == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://other.test/picture",
        "http://pictures.test.other.test/picture",
        "http://other.test@pictures.test:81/picture",
        "http://pictures.test@other.test/picture",
        "http://pictures.test:8080/picture",
        "http://pictures.test\\@other.test/",
        "https://pictures.test:80/",
        "ftp://pictures.test/picture",
        "http:///picture",
        "http://[::1/picture",
        "http://pictures.test:99999/",
        "http://127.0.0.1/picture",
        "http://2130706433/picture",
        "http://pictures.test/elsewhere",
        "http://pictures.test/metadata",
        "http://pictures.test/file",
    ],
)
def test_another_host_is_refused(web, url):
    error, network = fetch(web, url)
    assert error.code in ("url_not_allowed", "invalid_url")
    assert [host for host, _ in network.connected] in ([], [PUBLIC]) and "/picture" not in str(error.message)


@pytest.mark.parametrize(
    "url",
    [
        "http://inner.test/picture",
        "http://10.0.0.7/picture",
        "http://pictures.test/inside",
        "http://pictures.test/down",
    ],
)
def test_a_private_address_is_refused_even_of_an_allowed_host(web, url):
    names = Names(pictures=[[PUBLIC]], inner=[["192.168.1.1"]], **{"10": [["10.0.0.7"]]})
    error, network = fetch(web, url, names=names)
    assert error.code == "url_not_allowed" and "public" in error.message
    assert all(host == PUBLIC for host, _ in network.connected)


def test_one_private_address_among_public_ones_is_enough(web):
    error, network = fetch(web, "http://pictures.test/", names=Names(pictures=[[PUBLIC, "127.0.0.1"]]))
    assert error.code == "url_not_allowed" and not network.connected


def test_a_name_without_an_address_is_said(web):
    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    error, network = fetch(web, "http://pictures.test/", names=unknown)
    assert error.message == "the.field: expected a host with an address, found none of that name"
    assert error.code == "url_failed" and not network.connected


def test_a_name_that_changes_its_mind(web):
    """What was checked is connected to; a second look-up, which a redirect makes, is checked again."""
    names = Names(pictures=[[PUBLIC], ["127.0.0.1"]])
    found, network = fetch(web, "http://pictures.test/picture", names=names)
    assert found == PICTURE and network.connected == [(PUBLIC, 80)] and names.asked == ["pictures.test"]
    error, network = fetch(web, "http://pictures.test/moved", names=Names(pictures=[[PUBLIC], ["127.0.0.1"]]))
    assert error.code == "url_not_allowed" and network.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("path", "problem"),
    [("/missing", "404"), ("/zipped", "encoding"), ("/round", "redirects"), ("/slow", "within 0.5 seconds")],
)
def test_what_goes_wrong_is_said(web, path, problem):
    error, _ = fetch(web, f"http://pictures.test{path}", seconds=0.5)
    assert error.code == "url_failed" and problem in error.message


def test_no_more_than_the_limit_is_read(web):
    error, _ = fetch(web, "http://pictures.test/picture", limit=len(PICTURE) - 1)
    assert error.code == "too_large"
    assert fetch(web, "http://pictures.test/picture", limit=len(PICTURE))[0] == PICTURE
    error, _ = fetch(web, "http://pictures.test/endless")
    assert error.code == "too_large"


def test_a_port_that_was_allowed(web):
    found, network = fetch(web, "http://pictures.test:8080/picture", allowed=("pictures.test:8080",))
    assert found == PICTURE and network.connected == [(PUBLIC, 8080)] and web.seen[-1][1] == "pictures.test:8080"
    assert fetch(web, "http://pictures.test/picture", allowed=("pictures.test:8080",))[0].code == "url_not_allowed"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "192.0.0.192", "168.63.129.16", "192.88.99.1", "3fff::1",
        "::ffff:168.63.129.16",
    ],
)  # fmt: skip
def test_no_public_address(address):
    assert not is_public(address)


def test_a_redirect_that_cannot_be_read_is_refused():
    with pytest.raises(ApiError) as refusal:
        _redirected("http://pictures.test/a", "http://[::1", "messages.0.content.0.image_url.url")
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_url")


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:1.1.1.1"])
def test_a_public_address(address):
    assert is_public(address)
