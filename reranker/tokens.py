"""Bearer tokens (RFC 6750): who does not show one that the token file holds is UNAUTHENTICATED."""

from collections.abc import Awaitable, Callable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import grpc

from reranker.errors import ConfigurationError
from reranker.metrics import Metrics
from reranker.watched import Watched

# 16 characters of base64 are 96 bits: beyond guessing over a network.
MIN_CHARACTERS = 16
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
SCHEME = "Bearer "

Tokens = tuple[bytes, ...]
"""The SHA-256 of each: those themselves are nowhere in memory for longer than a request."""
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
"""Of a method; None where there is no such method."""


def watched_tokens(path: Path | None) -> Watched[Tokens] | None:
    """Return the tokens as the file has them from now on; None without a file. Raises ConfigurationError."""
    return None if path is None else Watched(lambda: read_tokens(path), path)


def read_tokens(path: Path) -> Tokens:
    """Read a token file: one a line, # begins a comment. Raises ConfigurationError, which quotes no token."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"token_file {path} cannot be read: {error}") from error
    found = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    tokens = [(number, line) for number, line in found if line and not line.startswith("#")]
    for number, token in tokens:
        if len(token) < MIN_CHARACTERS or not token.isascii() or " " in token:
            raise ConfigurationError(
                f"token_file {path}, line {number}: a token is {MIN_CHARACTERS} ASCII characters at least and has no "
                "spaces, e.g. of `openssl rand -base64 32`"
            )
    if not tokens:
        raise ConfigurationError(f"token_file {path} holds no token: nobody could call this server")
    return tuple(_digest(token) for _, token in tokens)


class TokenGuard(grpc.aio.ServerInterceptor):
    """Refuses calls without a known token, before their message is received.

    Health's Check is open: probes have no tokens. Its Watch is not: it never ends, and enough of them would take all
    the calls that a worker may have.
    """

    def __init__(self, tokens: Watched[Tokens], metrics: Metrics) -> None:
        self._tokens = tokens
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        call: grpc.HandlerCallDetails,
    ) -> Handler:
        why = None if call.method == HEALTH_CHECK else self._refusal(call)
        if why is None:
            return await continuation(call)
        self._metrics.unauthenticated.inc()
        return _refuse(why)

    def _refusal(self, call: grpc.HandlerCallDetails) -> str | None:
        shown = next((value for key, value in call.invocation_metadata or () if key == "authorization"), None)
        if shown is None:
            return "this server asks for a token: send the metadata `authorization: Bearer TOKEN`"
        token = str(shown)
        if token[: len(SCHEME)].lower() != SCHEME.lower():
            return "the metadata `authorization` is no bearer token: send `Bearer TOKEN`"
        return (
            None if _known(_digest(token[len(SCHEME) :]), self._tokens.current) else "this server knows no such token"
        )


def _known(digest: bytes, tokens: Tokens) -> bool:
    """Compare with each token, however early one fits: the time tells nothing."""
    return sum(compare_digest(digest, token) for token in tokens) > 0


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _refuse(why: str) -> Handler:
    async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, why)

    # As a stream: its handler is called without a message having been received.
    return grpc.stream_stream_rpc_method_handler(refuse)
