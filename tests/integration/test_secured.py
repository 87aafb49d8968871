"""A server with certificates, tokens, a kill switch, a served log and structured logs, changed as it runs."""

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reranker.client import Access, CallError, RerankerClient
from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc
from tests.certificates import Pair, issue
from tests.conftest import free_port
from tests.integration.conftest import Published
from tests.integration.processes import PATIENCE_SECONDS, Server, eventually, serving
from tests.integration.test_operations import value
from tests.persona4rec.running import complaint, persona4rec, succeeded

pytestmark = pytest.mark.integration

TOKEN, OTHER_TOKEN = "first-token-of-a-service", "other-token-of-a-service"


@dataclass(frozen=True)
class Secured:
    """A server and what an operator has of it."""

    server: Server
    authority: Pair
    folder: Path
    access: Access

    def call(self, access: Access) -> str:
        """Rerank once, by a connection of its own; return what went wrong."""
        try:
            with RerankerClient(self.server.address, PATIENCE_SECONDS, access) as client:
                client.rerank("hana", [("dracula", 1.0)])
        except CallError as error:
            return str(error)
        return ""

    def shown_certificate(self) -> str:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.load_cert_chain(self.folder / "client.pem", self.folder / "client-key.pem")
        context.set_alpn_protocols(["h2"])
        host, port = self.server.address.rsplit(":", 1)
        with (
            socket.create_connection((host, int(port)), PATIENCE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            der = wrapped.getpeercert(binary_form=True)
        assert der
        return x509.load_der_x509_certificate(der).subject.rfc4514_string()

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self.server.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, published: Published, histories: Path) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = issue("authority", days=9)
    authority.write(folder, "ca")
    for name in ("server", "client"):
        issue(name, authority, days=5).write(folder, name)
    issue("stranger", issue("another authority")).write(folder, "stranger")
    (folder / "tokens").write_text(f"{TOKEN}\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    access = Access(
        ca=folder / "ca.pem",
        certificate=folder / "client.pem",
        key=folder / "client-key.pem",
        token_file=folder / "token",
    )
    config = folder / "reranker.toml"
    config.write_text(
        f'token_file = "{folder}/tokens"\nlog_format = "json"\nlog_share = 1.0\n'
        f'[tls]\ncertificate = "{folder}/server.pem"\nkey = "{folder}/server-key.pem"\nclient_ca = "{folder}/ca.pem"\n'
        f'[served_log]\nto = "{folder}/served.jsonl"\nshare = 1.0\n'
    )
    with serving(folder, published.uri, histories, f"--config={config}", access=access) as server:
        yield Secured(server, authority, folder, access)


def test_who_shows_certificate_and_token_is_served(secured: Secured) -> None:
    assert secured.server.client.rerank("hana", [("dracula", 1.0)]).items[0].HasField("persona")
    assert "over TLS with 2 workers" in secured.server.output.read_text()


def test_the_connection_of_others_is_refused(secured: Secured) -> None:
    stranger = replace(
        secured.access, certificate=secured.folder / "stranger.pem", key=secured.folder / "stranger-key.pem"
    )
    for access in (
        Access(token_file=secured.access.token_file),
        Access(tls=True, token_file=secured.access.token_file),
        Access(ca=secured.access.ca, token_file=secured.access.token_file),
        stranger,
    ):
        assert "UNAVAILABLE" in secured.call(access), access


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ((), "send the metadata `authorization: Bearer TOKEN`"),
        ((("authorization", f"Basic {TOKEN}"),), "is no bearer token"),
        ((("authorization", f"Bearer {TOKEN}x"),), "knows no such token"),
        ((("authorization", "Bearer "),), "knows no such token"),
    ],
)
def test_a_call_without_a_known_token_is_unauthenticated(
    secured: Secured, metadata: tuple[tuple[str, str], ...], told: str
) -> None:
    before = value(secured.server, "reranker_unauthenticated_total")
    with secured.access.channel(secured.server.address) as channel, pytest.raises(grpc.RpcError) as error:
        pb_grpc.RerankerStub(channel).Info(pb.InfoRequest(), metadata=metadata, timeout=PATIENCE_SECONDS)
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert told in (error.value.details() or "")
    assert value(secured.server, "reranker_unauthenticated_total") == before + 1


def test_a_check_of_health_needs_no_token_and_a_watch_that_would_never_end_does(secured: Secured) -> None:
    with secured.access.channel(secured.server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        checked = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
        with pytest.raises(grpc.RpcError) as error:
            next(health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS))
    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_certificates_are_changed_without_a_restart(secured: Secured) -> None:
    def expiry() -> float:
        return value(secured.server, "reranker_certificate_expiry_timestamp_seconds", file="certificate")

    assert secured.shown_certificate() == "CN=server"
    # Another's key is not taken, and what was there goes on.
    issue("torn", secured.authority).write(secured.folder, "torn")
    (secured.folder / "torn-key.pem").rename(secured.folder / "server-key.pem")
    eventually(lambda: "what was there stays in use" in secured.server.output.read_text(), "word of the wrong key")
    assert secured.shown_certificate() == "CN=server"
    assert secured.call(secured.access) == ""

    renewed = issue("renewed", secured.authority, days=7)
    renewed.write(secured.folder, "server")
    eventually(secured.shown_certificate, "the renewed certificate", lambda shown: shown == "CN=renewed")
    eventually(expiry, "its expiry", lambda seen: seen == renewed.certificate.not_valid_after_utc.timestamp())
    assert secured.call(secured.access) == ""


def test_tokens_are_changed_without_a_restart(secured: Secured, tmp_path: Path) -> None:
    tokens, mine = secured.folder / "tokens", tmp_path / "token"
    mine.write_text(OTHER_TOKEN)
    other = replace(secured.access, token_file=mine)
    assert "UNAUTHENTICATED" in secured.call(other)
    tokens.write_text(f"{TOKEN}\n{OTHER_TOKEN}\n")
    eventually(lambda: secured.call(other) == "", "the new token")
    tokens.write_text(f"{OTHER_TOKEN}\n")
    eventually(lambda: "UNAUTHENTICATED" in secured.call(secured.access), "the end of the old token")
    tokens.write_text("")
    eventually(lambda: "holds no token" in secured.server.output.read_text(), "word of the empty file")
    assert secured.call(other) == ""
    tokens.write_text(f"{TOKEN}\n")
    eventually(lambda: secured.call(secured.access) == "", "the old token's return")


def test_the_command_reaches_it(secured: Secured) -> None:
    folder, server = secured.folder, secured.server.address
    ask = ("rerank", "--user", "hana", "--candidates", "dracula", "--server", server)
    assert "UNAVAILABLE" in complaint(persona4rec(*ask))
    given = ("--ca", folder / "ca.pem", "--certificate", folder / "client.pem", "--key", folder / "client-key.pem")
    assert "Set --token-file" in complaint(persona4rec(*ask, *given))
    assert "Dracula" in succeeded(persona4rec(*ask, *given, "--token-file", folder / "token"))
    assert "certificate and key belong together" in complaint(persona4rec(*ask, *given[:4]))


def test_the_switch_reaches_all_workers_and_is_seen(secured: Secured) -> None:
    scored = [("dracula", 1.0), ("carmilla", 3.0), ("frankenstein", None)]
    client, index = secured.server.client, ("--index", secured.server.index)
    assert "reranking is off" in succeeded(persona4rec("switch", "off", *index))
    # Of the worker that has seen it last, only after the metric of each is read: so all answers are asked anew.
    eventually(lambda: value(secured.server, "reranker_switched_off") == 1, "the switch in a worker")
    off = eventually(lambda: client.rerank("hana", scored), "the first stage's order", lambda r: len(r.degraded) == 1)
    assert list(off.degraded) == [pb.DEGRADATION_SWITCHED_OFF]
    assert [item.item_id for item in off.items] == ["carmilla", "dracula", "frankenstein"]
    assert {item.reason for item in off.items} == {pb.ITEM_REASON_NOT_SCORED}
    assert value(secured.server, "reranker_degraded_total", reason="switched_off") > 0
    assert "reranking is off" in succeeded(persona4rec("switch", *index))
    assert "reranking is on" in succeeded(persona4rec("switch", "on", *index))
    eventually(lambda: value(secured.server, "reranker_switched_off") == 0, "the end of it in all workers")
    assert list(client.rerank("hana", scored).degraded) == []


def test_a_request_may_ask_for_the_first_stage_s_order(secured: Secured) -> None:
    scored = [("dracula", 1.0), ("carmilla", 3.0)]
    response = secured.server.client.rerank("hana", scored, fusion=pb.FUSION_FIRST_STAGE)
    assert [item.item_id for item in response.items] == ["carmilla", "dracula"]
    assert {item.reason for item in response.items} == {pb.ITEM_REASON_NOT_SCORED}
    assert list(response.degraded) == []


def test_an_answer_its_log_line_and_its_record_have_one_id_and_name_no_user(secured: Secured) -> None:
    request = pb.RerankRequest(user_id="hana", candidates=[pb.Candidate(item_id="dracula")], variant="b")
    with secured.access.channel(secured.server.address) as channel:
        response = pb_grpc.RerankerStub(channel).Rerank(
            request,
            timeout=PATIENCE_SECONDS,
            metadata=(*secured.access.metadata(), ("x-request-id", "page 7")),
        )
    assert response.request_id == "page 7"
    (line,) = eventually(lambda: [told for told in secured.log if told.get("request_id") == "page 7"], "the log line")
    assert (line["method"], line["code"], line["level"]) == ("Rerank", "OK", "info")

    def records() -> list[dict[str, Any]]:
        lines = (secured.folder / "served.jsonl").read_text().splitlines()
        return [told for told in map(json.loads, lines) if told["request_id"] == "page 7"]

    (record,) = eventually(records, "the record")
    assert record["user"] == blake2b(b"hana", digest_size=16).hexdigest()
    assert (record["item_ids"], record["variant"]) == (["dracula"], "b")
    assert record["persona_ids"] == [response.items[0].persona.persona_id]
    assert "hana" not in secured.server.output.read_text()
    assert "hana" not in (secured.folder / "served.jsonl").read_text()
    assert value(secured.server, "reranker_served_log_records_total", outcome="written") > 0


def test_too_little_time_is_told(tmp_path: Path, published: Published, histories: Path) -> None:
    # More than any test's client gives, so that the slowest machine answers in time.
    short = str(PATIENCE_SECONDS * 2)
    with serving(tmp_path, published.uri, histories, workers=1, DEADLINE_SHORT_SECONDS=short) as server:
        assert " with 1 worker, " in server.output.read_text()
        response = server.client.rerank("hana", [("dracula", 1.0), ("carmilla", 3.0)])
        assert list(response.degraded) == [pb.DEGRADATION_DEADLINE_SHORT]
        assert [item.item_id for item in response.items] == ["carmilla", "dracula"]
        with grpc.insecure_channel(server.address) as channel:
            undated = pb_grpc.RerankerStub(channel).Rerank(
                pb.RerankRequest(user_id="hana", candidates=[pb.Candidate(item_id="dracula")])
            )
        assert list(undated.degraded) == []


def test_check_tells_what_would_be_served_and_every_problem(
    secured: Secured, published: Published, histories: Path, tmp_path: Path
) -> None:
    index = ("--index", secured.server.index)
    sound = ("--milvus", published.uri, "--histories", histories)
    told = succeeded(persona4rec("serve", "--check", f"--config={secured.folder / 'reranker.toml'}", *index, *sound))
    assert f"generation {published.index.generation}, 64 items" in told
    assert "certificate valid until" in told
    issue("server", secured.authority, days=-1).write(tmp_path, "old")
    (tmp_path / "tokens").write_text("")
    environment = {
        "PERSONA4REC_TLS_CERTIFICATE": str(tmp_path / "old.pem"),
        "PERSONA4REC_TLS_KEY": str(tmp_path / "old-key.pem"),
        "PERSONA4REC_TOKEN_FILE": str(tmp_path / "tokens"),
        "PERSONA4REC_MILVUS_TOKEN": "a-secret",
        "PERSONA4REC_TRACING_ENDPOINT": "https://me:password@127.0.0.1:4318",
    }
    away = ("--milvus", f"http://me:password@127.0.0.2:{free_port()}", "--generator", tmp_path / "none")
    redis = f"redis://:password@127.0.0.1:{free_port()}/0"
    refused = persona4rec("serve", "--check", *index, *away, "--histories", redis, settings=environment)
    assert refused.returncode == 1
    for problem in ("5 problems", "histories: ", "milvus: ", "generator: ", "certificates: ", "tokens: "):
        assert problem in refused.stderr
    assert "64 items" in refused.stdout
    assert not {"a-secret", "password"} & set((refused.stdout + refused.stderr).replace("@", ":").split(":"))
    assert "Traceback" not in refused.stderr
