"""The server's certificates: read, checked, and handed to gRPC anew when they change.

gRPC takes whatever bytes it is given and then fails each handshake without a word, so they are parsed here first;
`cryptography` does it, since Python's own ssl module tells no dates of a certificate that is not of a connection.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from reranker.config import Tls
from reranker.errors import ConfigurationError
from reranker.watched import Watched


@dataclass(frozen=True, slots=True, eq=False)
class Certificates:
    """What a handshake needs."""

    configuration: grpc.ServerCertificateConfiguration
    expiries: dict[str, float]
    """Seconds since the epoch at which the first certificate of "certificate" and of "client_ca" expires."""


def watched_certificates(tls: Tls) -> Watched[Certificates] | None:
    """Return the certificates as they are from now on; None where none are set. Raises ConfigurationError."""
    if tls.certificate is None:
        return None
    paths = [path for path in (tls.certificate, tls.key, tls.client_ca) if path is not None]
    return Watched(lambda: read_certificates(tls), *paths)


def read_certificates(tls: Tls) -> Certificates:
    """Read what the settings name.

    Raises ConfigurationError naming a file that is missing, no PEM, expired or not yet valid, or a key of another
    certificate.
    """
    if tls.certificate is None or tls.key is None:
        raise ConfigurationError("tls.certificate and tls.key are not set")
    chain, key = _bytes("certificate", tls.certificate), _bytes("key", tls.key)
    expiries = {"certificate": _expiry("certificate", tls.certificate, chain)}
    _check_key(tls.certificate, chain, tls.key, key)
    authorities = None
    if tls.client_ca is not None:
        authorities = _bytes("client_ca", tls.client_ca)
        expiries["client_ca"] = _expiry("client_ca", tls.client_ca, authorities)
    return Certificates(grpc.ssl_server_certificate_configuration([(key, chain)], authorities), expiries)


def server_credentials(certificates: Watched[Certificates], tls: Tls) -> grpc.ServerCredentials:
    """Return credentials that follow the certificates: connections made from then on are shown the new ones."""
    return grpc.dynamic_ssl_server_credentials(
        certificates.current.configuration,
        _changes(certificates),  # type: ignore[arg-type]  # the stubs do not know of None, gRPC's documentation does
        require_client_authentication=tls.client_ca is not None,
    )


def _changes(certificates: Watched[Certificates]) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    told = certificates.current

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC's threads at each handshake, one at a time; None spares it making everything anew.
        nonlocal told
        if told is certificates.current:
            return None
        told = certificates.current
        return told.configuration

    return fetch


def _bytes(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"tls.{setting} {path} cannot be read: {error.strerror}") from error


def _expiry(setting: str, path: Path, pem: bytes) -> float:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigurationError(f"tls.{setting} {path} holds no certificate in PEM format: {error}") from error
    now = time.time()
    for certificate in found:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start.timestamp() <= now <= end.timestamp():
            raise ConfigurationError(
                f"tls.{setting} {path}: the certificate of {certificate.subject.rfc4514_string()} is valid "
                f"from {start} to {end}, not now: put a new one in its place"
            )
    return min(certificate.not_valid_after_utc.timestamp() for certificate in found)


def _check_key(certificate_path: Path, chain: bytes, key_path: Path, key: bytes) -> None:
    try:
        public = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"tls.key {key_path} holds no private key in PEM format without a password") from error
    except UnsupportedAlgorithm as error:
        raise ConfigurationError(f"tls.key {key_path} is of a kind that TLS here does not know: {error}") from error
    if public != _public_key(certificate_path, chain):
        raise ConfigurationError(
            f"tls.key {key_path} is not the key of the first certificate in {certificate_path}: set the pair that "
            "belongs together"
        )


def _public_key(path: Path, chain: bytes) -> CertificatePublicKeyTypes:
    try:
        return x509.load_pem_x509_certificates(chain)[0].public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"tls.certificate {path} is of a key of a kind that TLS here does not know: {error}"
        ) from error
