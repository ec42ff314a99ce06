"""Pictures and clips from addresses that the operator allows, without a way into the networks around this machine.

A name is resolved once, every address that it has is checked, and the connection goes to a checked address: what the
name resolves to a moment later plays no part. Each redirect is a new address, checked from the start.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from ernie_export.runtime.serving.http.errors import ApiError

REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
# Global by their registration, yet no public host: addresses that a gateway translates to IPv4, which this check cannot
# see behind (NAT64, the 6to4 relay), addresses for documentation, and cloud providers' services for their own machines.
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
    """A host has an address that is not a public one."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, multicast, reserved."""
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
    """Addresses of a host, as the system's resolver gives them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class PublicNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to public addresses only. TLS still checks the certificate against the host's name."""

    def __init__(self, resolve: Resolve, network: httpcore2.AsyncNetworkBackend) -> None:
        """`network` makes the connections, to addresses and never to names."""
        self._resolve, self._network = resolve, network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises NotPublic if any of the host's addresses is not a public one."""
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
    """Fetches from `allowed` hosts ("example.com", or "example.com:8080" for a port that is not the scheme's own)."""

    def __init__(
        self,
        allowed: tuple[str, ...],
        seconds: float,
        resolve: Resolve = resolve,
        network: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        """`seconds`: the longest that one address may take, redirects included."""
        self._allowed = frozenset(host.lower() for host in allowed)
        self._seconds = seconds
        self._network = PublicNetwork(resolve, network or httpcore2.AnyIOBackend())

    async def fetch(self, url: str, limit: int, param: str) -> bytes:
        """What lies at an address, at most `limit` bytes. Raises ApiError 400 that names the field `param`."""
        try:
            async with asyncio.timeout(self._seconds), self._pool() as pool:
                for _ in range(REDIRECTS + 1):
                    target = self._checked(url, param)
                    headers = [(b"Host", _authority(target)), (b"Accept-Encoding", b"identity")]
                    async with pool.stream("GET", target, headers=headers) as response:
                        if response.status not in (301, 302, 303, 307, 308):
                            return await _body(response, limit, param)
                        url = _redirected(url, _header(response, b"location"), param)
                raise _failed(param, f"expected at most {REDIRECTS} redirects, found more")
        except NotPublic as e:
            raise ApiError(400, f"{param}: the host has no public address", param, "url_not_allowed") from e
        except TimeoutError as e:
            raise _failed(param, f"expected an answer within {self._seconds:g} seconds, found none") from e
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError) as e:
            raise _failed(param, f"expected an answer, found {type(e).__name__}") from e

    def _pool(self) -> httpcore2.AsyncConnectionPool:
        return httpcore2.AsyncConnectionPool(network_backend=self._network, max_keepalive_connections=0)

    def _checked(self, url: str, param: str) -> httpcore2.URL:
        """The address in parts, parsed this once. Raises ApiError 400 where it isn't allowed."""
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, (parts.hostname or "").rstrip("."), parts.port
            name = host.encode("idna").decode() if ":" not in host else host
        except ValueError as e:  # UnicodeError is one
            raise _unreadable(param) from e
        if scheme not in _PORTS:
            raise ApiError(400, f"{param}: expected http or https, found {scheme[:20]}", param, "url_not_allowed")
        wanted = f"[{name}]" if ":" in name else name
        if port not in (None, _PORTS[scheme]):
            wanted += f":{port}"
        if wanted not in self._allowed:
            raise ApiError(400, f"{param}: the host is none that this server fetches from", param, "url_not_allowed")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (parts.query and "?")
        target = path + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        return httpcore2.URL(scheme=scheme, host=name, port=port or _PORTS[scheme], target=target)


def _redirected(url: str, location: str, param: str) -> str:
    """Return where a redirect leads. Raises ApiError 400 for one that cannot be read."""
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
