"""Addresses with https, by real TLS on this machine: the certificate has to name the host and to be trusted."""

import asyncio
import datetime
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.fetch import Fetcher
from tests.runtime.server.test_fetch import PICTURE, PUBLIC, Names, Network, Pictures, Web

DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        basics = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._build(self._name, self._key, DAY).add_extension(basics, critical=True)
        self.file = folder / "authority.pem"
        self.file.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, host: str, valid_for: datetime.timedelta) -> Path:
        """Return a file with a certificate for a host, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        builder = self._build(x509.Name([]), key, valid_for).add_extension(names, critical=True)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        form = serialization.PrivateFormat.PKCS8
        secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        file = self.folder / f"{host}{valid_for.days}.pem"
        file.write_bytes(pem + secret)
        return file

    def _build(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, valid_for: datetime.timedelta):
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * DAY)
            .not_valid_after(now + valid_for)
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


class Quiet(Web):
    """A server that says nothing of a client that refuses its certificate."""

    def handle_error(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def fetch_by_tls(authority, monkeypatch):
    """fetch_by_tls(certificate's host, days of validity, trusted): what https://pictures.test gives, and who asked."""

    def fetch(
        host: str, days: int = 1, is_trusted: bool = True
    ) -> tuple[bytes | ApiError, list[tuple[str, str | None]]]:
        if is_trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.issue(host, days * DAY))
        with Quiet(("127.0.0.1", 0), Pictures) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            fetcher = Fetcher(("pictures.test",), 5.0, Names(pictures=[[PUBLIC]]), Network(server.server_port))
            try:
                found: bytes | ApiError = asyncio.run(fetcher.fetch("https://pictures.test/picture", 10**6, "field"))
            except ApiError as e:
                found = e
            server.shutdown()
        return found, server.seen

    return fetch


def test_a_certificate_of_the_host(fetch_by_tls):
    assert fetch_by_tls("pictures.test") == (PICTURE, [("/picture", "pictures.test")])


@pytest.mark.parametrize(
    ("host", "days", "is_trusted"),
    [("other.test", 1, True), ("pictures.test", -1, True), ("pictures.test", 1, False)],
    ids=["another host", "expired", "not trusted"],
)
def test_another_certificate_ends_the_request(fetch_by_tls, host, days, is_trusted):
    found, seen = fetch_by_tls(host, days, is_trusted)
    assert isinstance(found, ApiError) and found.status == 400 and found.code == "url_failed"
    assert seen == []
