"""Certificates that cannot be used are named before gRPC sees them."""

from pathlib import Path

import pytest

from reranker.config import Tls
from reranker.errors import ConfigurationError
from reranker.tls import read_certificates
from tests.certificates import Pair, issue

# Made for this test by `openssl ecparam -name secp112r1`: a curve that OpenSSL knows and `cryptography` does not.
KEY_OF_UNKNOWN_CURVE = b"""\
-----BEGIN PRIVATE KEY-----
ME4CAQAwEAYHKoZIzj0CAQYFK4EEAAYENzA1AgEBBA4Zzr2DLrNtEwHOA9TZDKEg
Ax4ABEverVWxgTBY2bc9keTOKxkTMoE/t13kZFzkmW0=
-----END PRIVATE KEY-----
"""


@pytest.fixture(scope="module")
def authority() -> Pair:
    return issue("authority", days=5)


@pytest.fixture
def tls(tmp_path: Path, authority: Pair) -> Tls:
    """Give settings of a server whose files can be used."""
    issue("server", authority, days=3).write(tmp_path, "server")
    authority.write(tmp_path, "ca")
    return Tls(certificate=tmp_path / "server.pem", key=tmp_path / "server-key.pem", client_ca=tmp_path / "ca.pem")


def test_what_expires_first_is_told_by_file(tls: Tls, authority: Pair) -> None:
    assert tls.certificate
    ends = authority.certificate.not_valid_after_utc.timestamp()
    first = read_certificates(tls).expiries
    assert first["client_ca"] == ends
    assert ends - first["certificate"] == pytest.approx(2 * 86400, abs=5)
    sooner = issue("intermediate", authority, days=1)
    tls.certificate.write_bytes(tls.certificate.read_bytes() + sooner.pem)
    chained = read_certificates(tls).expiries["certificate"]
    assert chained == sooner.certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("file", ["certificate", "key", "client_ca"])
def test_a_file_that_is_missing_or_something_else_is_named(tls: Tls, file: str) -> None:
    path: Path = getattr(tls, file)
    path.write_text("nothing of the kind")
    with pytest.raises(ConfigurationError, match=rf"tls\.{file} {path} holds no .* PEM"):
        read_certificates(tls)
    path.unlink()
    with pytest.raises(ConfigurationError, match=rf"tls\.{file} {path} cannot be read: No such file"):
        read_certificates(tls)


def test_a_key_of_another_certificate_is_refused(tls: Tls, authority: Pair) -> None:
    assert tls.key
    tls.key.write_bytes(issue("other", authority).key)
    with pytest.raises(ConfigurationError, match=f"{tls.key} is not the key of the first certificate in"):
        read_certificates(tls)


def test_a_key_with_a_password_is_refused(tls: Tls, authority: Pair) -> None:
    assert tls.key
    tls.key.write_bytes(issue("other", authority).encrypted_key)
    with pytest.raises(ConfigurationError, match="without a password"):
        read_certificates(tls)


def test_an_expired_certificate_is_refused(tls: Tls, authority: Pair, tmp_path: Path) -> None:
    issue("server", authority, days=-1).write(tmp_path, "server")
    with pytest.raises(ConfigurationError, match=r"certificate of CN=server is valid from .* to .*, not now"):
        read_certificates(tls)


def test_a_key_of_a_kind_that_is_not_known_is_named(tls: Tls) -> None:
    assert tls.key
    tls.key.write_bytes(KEY_OF_UNKNOWN_CURVE)
    with pytest.raises(ConfigurationError, match=f"tls.key {tls.key} is of a kind that TLS here does not know"):
        read_certificates(tls)
