"""The contract: its generated code is that of its protos, all of it is commented, and all of it can be called."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from grpc_tools import protoc  # type: ignore[import-untyped]

from protos.generate import PROTOS, WELL_KNOWN, generate
from reranker.client import RerankerClient
from reranker.config import Limits
from reranker.rpc import Handlers, _parser
from reranker.service import RerankerService
from reranker.v1 import reranker_pb2

ROOT = Path(__file__).parents[1]

# Numbers of the fields of FileDescriptorProto, DescriptorProto, EnumDescriptorProto and ServiceDescriptorProto:
# a comment is filed under the path of these and of places.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED, VALUES, METHODS = 2, 3, 2, 2

CLIENT_METHODS: dict[str, Callable[..., Message]] = {
    "Rerank": RerankerClient.rerank,
    "Recommend": RerankerClient.recommend,
    "GetUserProfile": RerankerClient.user_profile,
    "GetItemPersonas": RerankerClient.item_personas,
    "Info": RerankerClient.info,
}

Where = tuple[int, ...]


def test_the_committed_code_is_that_of_the_protos(tmp_path: Path) -> None:
    generate(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    committed = {
        path.relative_to(ROOT): path.read_bytes()
        for path in (ROOT / "reranker" / "v1").iterdir()
        if path.is_file() and path.name != "__init__.py"
    }
    assert sorted(made) == sorted(committed)
    assert [str(path) for path in made if made[path] != committed[path]] == [], "run `make protos`"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    out = tmp_path_factory.mktemp("protos") / "set.bin"
    sources = [str(path) for path in PROTOS.rglob("*.proto")]
    options = [f"--proto_path={PROTOS}", f"--proto_path={WELL_KNOWN}", "--include_source_info"]
    assert protoc.main(["protoc", *options, f"--descriptor_set_out={out}", *sources]) == 0
    return FileDescriptorSet.FromString(out.read_bytes())


def test_everything_in_the_contract_is_commented(described: FileDescriptorSet) -> None:
    """Messages of one use, like an empty request, are told by their name; what is in them is not."""
    assert {Path(file.name).name for file in described.file} == {"reranker.proto", "events.proto"}
    bare = [name for file in described.file for where, name in _to_comment(file) if where not in _commented(file)]
    assert not bare, "without a comment: " + ", ".join(bare)


def _commented(file: FileDescriptorProto) -> set[Where]:
    return {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip() or location.trailing_comments.strip()
    }


def _to_comment(file: FileDescriptorProto) -> Iterator[tuple[Where, str]]:
    for place, message in enumerate(file.message_type):
        yield from _fields((MESSAGES, place), message)
    for place, enum in enumerate(file.enum_type):
        yield (ENUMS, place), enum.name
        yield from _values((ENUMS, place), enum)
    for place, service in enumerate(file.service):
        for number, method in enumerate(service.method):
            yield (SERVICES, place, METHODS, number), f"{service.name}.{method.name}"


def _fields(where: Where, message: DescriptorProto) -> Iterator[tuple[Where, str]]:
    for place, field in enumerate(message.field):
        yield (*where, FIELDS, place), f"{message.name}.{field.name}"
    for place, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _fields((*where, NESTED, place), nested)


def _values(where: Where, enum: EnumDescriptorProto) -> Iterator[tuple[Where, str]]:
    for place, value in enumerate(enum.value):
        yield (*where, VALUES, place), value.name


RPCS = [method.name for method in reranker_pb2.DESCRIPTOR.services_by_name["Reranker"].methods]


@pytest.mark.parametrize("rpc", RPCS)
def test_every_rpc_is_implemented(rpc: str) -> None:
    implemented = getattr(RerankerService, rpc)
    # Wired by rpc.py as a plain function; a coroutine would be sent as it is.
    assert not inspect.iscoroutinefunction(implemented)
    request, _ = list(inspect.signature(implemented).parameters.values())[1:]
    method = reranker_pb2.DESCRIPTOR.services_by_name["Reranker"].methods_by_name[rpc]
    assert isinstance(_parser(method.input_type.name, Limits())(b""), request.annotation)


def test_every_rpc_is_wired() -> None:
    class Details(NamedTuple):
        method: str
        invocation_metadata: tuple[Any, ...] = ()

    wired: Any = Handlers(MagicMock(), MagicMock(), Limits(concurrency=1))

    async def found(rpc: str) -> Any:
        return wired.service(Details(f"/reranker.v1.Reranker/{rpc}"))

    for rpc in RPCS:
        handler = asyncio.run(found(rpc))
        assert handler is not None
        assert handler.unary_unary is not None
    assert asyncio.run(found("Other")) is None


def test_every_rpc_is_exposed_by_the_client() -> None:
    assert sorted(CLIENT_METHODS) == sorted(RPCS)
    for rpc, method in CLIENT_METHODS.items():
        assert f'"{rpc}"' in inspect.getsource(method), f"{method} does not call {rpc}"
