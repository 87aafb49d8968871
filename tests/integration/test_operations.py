"""What those who run the server rely on: health, reflection, metrics, and a stop that loses no request."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from reranker.client import CallError
from reranker.service import STAGES_EVERY
from reranker.v1 import reranker_pb2 as pb
from reranker.v1 import reranker_pb2_grpc as pb_grpc
from tests.integration.conftest import Published
from tests.integration.processes import PATIENCE_SECONDS, Server, eventually, serving

pytestmark = pytest.mark.integration

SERVICE = "reranker.v1.Reranker"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def health(channel: grpc.Channel) -> Any:
    # The stubs of the health service know no methods.
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_told_by_service(channel: grpc.Channel, service: str) -> None:
    asked = health_pb2.HealthCheckRequest(service=service)
    assert health(channel).Check(asked, timeout=PATIENCE_SECONDS).status == SERVING


def test_the_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as error:
        health(channel).Check(health_pb2.HealthCheckRequest(service="x"), timeout=PATIENCE_SECONDS)
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_tells_the_contract(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) >= {SERVICE, "grpc.health.v1.Health"}
    told = DescriptorPool(database).FindServiceByName(SERVICE)
    own = pb.DESCRIPTOR.services_by_name["Reranker"]
    assert [method.name for method in told.methods] == [method.name for method in own.methods]
    assert [f.name for f in told.methods_by_name["Rerank"].input_type.fields] == [
        field.name for field in pb.RerankRequest.DESCRIPTOR.fields
    ]


def page(server: Server) -> str:
    with urlopen(server.metrics_url, timeout=PATIENCE_SECONDS) as response:
        return str(response.read().decode())


def families(server: Server) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(page(server))}


def value(server: Server, name: str, **labels: str) -> float:
    samples = [sample for family in families(server).values() for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


VOCABULARY = {
    "method": {"Rerank", "Recommend", "GetUserProfile", "GetItemPersonas", "Info"},
    "code": {code.name for code in grpc.StatusCode},
    "stage": {"generate", "history", "profile", "score", "reply"},
    "reason": {name.removeprefix("DEGRADATION_").lower() for name in pb.Degradation.DESCRIPTOR.values_by_name},
    "by": {"persona", "summary", "nothing"},
}


def test_metrics_name_no_user_and_no_item(server: Server, published: Published) -> None:
    server.client.rerank("user-in-no-label", [("item-in-no-label", 1.0), ("dracula", None)], variant="variant-in-none")
    with pytest.raises(CallError):
        server.client.user_profile("user-in-no-label")
    assert not re.findall(r".*-in-no.*", page(server))
    for family in families(server).values():
        assert family.documentation, family.name
        for sample in family.samples:
            labels = {name: label for name, label in sample.labels.items() if name != "le"}
            assert all(label in VOCABULARY[name] for name, label in labels.items()), sample


def test_metrics_count_what_happened(server: Server, published: Published) -> None:
    candidates = [("dracula", None), (published.without_personas, None), ("a-book-nobody-has", None)]

    def counted() -> list[float]:
        return [
            value(server, "reranker_requests_total", method="Rerank", code="OK"),
            value(server, "reranker_requests_total", method="Rerank", code="INVALID_ARGUMENT"),
            value(server, "reranker_requests_total", method="GetUserProfile", code="NOT_FOUND"),
            value(server, "reranker_request_seconds_count", method="Rerank"),
            value(server, "reranker_stage_seconds_count", stage="score"),
            value(server, "reranker_stage_seconds_count", stage="generate"),
            value(server, "reranker_degraded_total", reason="items_not_indexed"),
            value(server, "reranker_degraded_total", reason="unknown_user"),
            value(server, "reranker_candidates_total", by="persona"),
            value(server, "reranker_candidates_total", by="summary"),
            value(server, "reranker_candidates_total", by="nothing"),
        ]

    before = counted()
    server.client.rerank("hana", candidates)
    server.client.rerank("nobody", [("dracula", None)])
    for _ in range(STAGES_EVERY - 2):
        server.client.rerank("hana", [("dracula", None)])
    for refused in (lambda: server.client.rerank("hana", []), lambda: server.client.user_profile("nobody")):
        with pytest.raises(CallError):
            refused()
    grown = [after - earlier for after, earlier in zip(counted(), before, strict=True)]
    # "dracula" for a user without a profile is scored by nothing.
    assert grown == [STAGES_EVERY, 1, 1, STAGES_EVERY + 1, 1, 0, 1, 1, STAGES_EVERY - 1, 1, 2]


def test_metrics_say_which_index_is_served(server: Server, published: Published) -> None:
    assert value(server, "reranker_index_items") == 64
    assert value(server, "reranker_index_personas") == published.index.persona_count
    assert value(server, "reranker_index_generation") == published.index.generation
    assert value(server, "reranker_index_checked_timestamp_seconds") > 1.7e9
    eventually(lambda: value(server, "reranker_requests_in_flight") == 0, "the end of all requests")
    eventually(lambda: value(server, "reranker_workers") == 2, "the count of workers")
    assert value(server, "reranker_worker_restarts_total") == 0
    assert value(server, "reranker_index_refreshes_total") == 1
    assert "reranker_index_refresh_failures" in families(server)


def test_prometheus_finds_nothing_to_object_to(server: Server) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, which is not installed")
    server.client.rerank("hana", [("dracula", 1.0)])
    checked = subprocess.run([promtool, "check", "metrics"], input=page(server), capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


# A request is over in a millisecond: to be caught in flight one has to be held up.
# A file, since every worker runs it before it serves.
_SLOW = """
import asyncio
from reranker import rpc

handler_of = rpc._handler

def slow_handler(name, *further):
    handle = handler_of(name, *further)

    async def slow(*request):
        await asyncio.sleep({seconds})
        return await handle(*request)

    return slow if name == "Info" else handle

rpc._handler = slow_handler

if __name__ == "__main__":
    from persona4rec.cli import main
    main()
"""


def slow(folder: Path, seconds: float) -> list[str]:
    script = folder / "slow.py"
    script.write_text(_SLOW.format(seconds=seconds))
    return [sys.executable, str(script), "serve"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_server_told_to_stop_finishes_what_it_began(
    tmp_path: Path, published: Published, histories: Path, stop: signal.Signals
) -> None:
    with serving(tmp_path, published.uri, histories, command=slow(tmp_path, 1), workers=1) as server:
        with grpc.insecure_channel(server.address) as channel:
            watched = health(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE_SECONDS)
            assert next(watched).status == SERVING
            begun = pb_grpc.RerankerStub(channel).Info.future(pb.InfoRequest(), timeout=PATIENCE_SECONDS)
            eventually(lambda: value(server, "reranker_requests_in_flight") == 1, "a request in flight")
            server.process.send_signal(stop)
            assert next(watched).status == NOT_SERVING
            watched.cancel()
            with pytest.raises(CallError) as refused:
                server.client.rerank("hana", [("dracula", 1.0)])
            assert refused.value.code == grpc.StatusCode.UNAVAILABLE
            assert begun.result().items == 64
        assert server.process.wait(PATIENCE_SECONDS) == 0
        assert "Traceback" not in server.output.read_text()


def test_a_request_that_takes_too_long_does_not_keep_the_server_up(
    tmp_path: Path, published: Published, histories: Path
) -> None:
    with (
        serving(
            tmp_path, published.uri, histories, command=slow(tmp_path, 3600), workers=1, DRAIN_SECONDS="0.2"
        ) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        begun = pb_grpc.RerankerStub(channel).Info.future(pb.InfoRequest(), timeout=PATIENCE_SECONDS)
        eventually(lambda: value(server, "reranker_requests_in_flight") == 1, "a request in flight")
        assert server.stop() == 0
        with pytest.raises(grpc.RpcError):
            begun.result()
