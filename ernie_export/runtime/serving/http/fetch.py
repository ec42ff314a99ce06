"""Fetch images and videos from hosts that the operator allows, but never from a private network.

A host name is resolved once, every address that it has is checked, and the connection goes to a checked address: what
the name resolves to later has no effect. Each redirect is a new URL that is checked like the first.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from ernie_export.common.version import __version__
from ernie_export.runtime.serving.http.errors import ApiError

REDIRECTS = 3
USER_AGENT = (b"User-Agent", f"ernie-export/{__version__}".encode())  # some hosts answer no one who has none
MAX_URL_LENGTH = 8192  # characters; browsers and servers take no longer ones
_PORTS = {"http": 80, "https": 443}
# Registered as global, but no public hosts: addresses that a gateway translates to IPv4, hidden from this check (NAT64,
# the 6to4 relay), addresses for documentation, and cloud providers' services for their own machines.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",
        "192.88.99.0/24",
        "192.0.0.0/24",  # with 192.0.0.192, Oracle Cloud's metadata
        "3fff::/20",
        "168.63.129.16/32",  # Azure's WireServer
    )
)

Resolve = Callable[[str, int], Awaitable[list[str]]]


class NotPublic(Exception):
    """A host with an address that is not public."""


def is_public(address: str) -> bool:
    """Return whether an IP address is public: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or ip.is_site_local:
            return False
    if any(ip in network for network in _NOT_PUBLIC if network.version == ip.version):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as the system's resolver orders them."""
    entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


class PublicNetwork(httpcore2.AsyncNetworkBackend):
    """A network backend that connects to public addresses only. TLS still checks the certificate of the host's name."""

    def __init__(self, resolve: Resolve, network: httpcore2.AsyncNetworkBackend) -> None:
        """`network` makes the connections, to addresses and never to names."""
        self._resolve = resolve
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to a host's first address that answers. Raises NotPublic if any of its addresses is not public."""
        addresses = await self._resolve(host, port)
        if not addresses or not all(is_public(address) for address in addresses):
            raise NotPublic(host)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.ConnectError:
                continue
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


class Fetcher:
    """A client that fetches images and videos from allowed hosts."""

    def __init__(
        self,
        allowed: tuple[str, ...],
        seconds: float,
        resolve: Resolve = resolve,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        """Create a client.

        Args:
            allowed: Hosts, such as "example.com", or "example.com:8080" for a port that is not the scheme's own.
            seconds: Longest time for one URL, redirects included.
            resolve: Returns the addresses of a host and port.
            network: Makes the connections, to addresses and never to names.
        """
        self._allowed = frozenset(host.lower() for host in allowed)
        self._seconds = seconds
        self._network = PublicNetwork(resolve, network or httpcore2.AnyIOBackend())

    async def fetch(self, url: str, limit: int, param: str) -> bytes:
        """Return the content of a URL.

        Args:
            url: An http or https URL of an allowed host.
            limit: Most bytes of the content.
            param: The field of the request that holds the URL.

        Raises:
            ApiError: 400, naming `param`, if the URL is malformed, not allowed, cannot be fetched or is too large.
        """
        try:
            async with asyncio.timeout(self._seconds), self._pool() as pool:
                for _ in range(REDIRECTS + 1):
                    target = self._checked(url, param)
                    headers = [(b"Host", _authority(target)), (b"Accept-Encoding", b"identity"), USER_AGENT]
                    async with pool.stream("GET", target, headers=headers) as response:
                        if response.status not in (301, 302, 303, 307, 308):
                            return await _body(response, limit, param)
                        url = _redirected(url, _header(response, b"location"), param)
                raise _failed(param, f"expected at most {REDIRECTS} redirects, found more")
        except NotPublic as e:
            raise ApiError(400, f"{param}: the host has no public address", param, "url_not_allowed") from e
        except TimeoutError as e:
            raise _failed(param, f"expected an answer within {self._seconds:g} seconds, found none") from e
        except socket.gaierror as e:
            raise _failed(param, "expected a host with an address, found none of that name") from e
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as e:
            raise _failed(param, f"expected an answer, found {type(e).__name__}") from e

    def _pool(self) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(network_backend=self._network, max_keepalive_connections=0)

    def _checked(self, url: str, param: str) -> httpcore2.URL:
        """Return the parsed URL, which is not parsed again. Raises ApiError 400 if it is not allowed."""
        if len(url) > MAX_URL_LENGTH:
            problem = f"{param}: expected an address of at most {MAX_URL_LENGTH} characters, found {len(url)}"
            raise ApiError(400, problem, param, "invalid_url")
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, (parts.hostname or "").rstrip("."), parts.port
            name = host.encode("idna").decode() if ":" not in host else host
        except ValueError as e:  # UnicodeError is one
            raise _unreadable(param) from e
        if scheme not in _PORTS:
            raise ApiError(400, f"{param}: expected http or https, found {scheme[:20]}", param, "url_not_allowed")
        authority = f"[{name}]" if ":" in name else name
        if port not in (None, _PORTS[scheme]):
            authority += f":{port}"
        if authority not in self._allowed:
            raise ApiError(400, f"{param}: this server does not fetch from this host", param, "url_not_allowed")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (parts.query and "?")
        target = path + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        return httpcore2.URL(scheme=scheme, host=name, port=port or _PORTS[scheme], target=target)


def _redirected(url: str, location: str, param: str) -> str:
    """Return the URL that a redirect leads to. Raises ApiError 400 for one that cannot be parsed."""
    try:
        return urljoin(url, location)
    except ValueError as e:
        raise _unreadable(param) from e


def _unreadable(param: str) -> ApiError:
    return ApiError(400, f"{param}: expected an address, found one that cannot be read", param, "invalid_url")


def _authority(url: httpcore2.URL) -> bytes:
    host = b"[%b]" % url.host if b":" in url.host else url.host
    return host if url.port in (None, _PORTS[url.scheme.decode()]) else b"%b:%d" % (host, url.port)


def _header(response: httpcore2.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")


async def _body(response: httpcore2.Response, limit: int, param: str) -> bytes:
    if response.status != 200:
        raise _failed(param, f"expected status 200, found {response.status}")
    if _header(response, b"content-encoding") not in ("", "identity"):
        raise _failed(param, "expected no content encoding, found one")  # it may be a decompression bomb
    body = bytearray()
    async for piece in response.aiter_stream():
        body += piece
        if len(body) > limit:
            raise ApiError(400, f"{param}: expected at most {limit} bytes, found more", param, "too_large")
    return bytes(body)


def _failed(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param, "url_failed")
