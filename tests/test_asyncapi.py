"""The AsyncAPI document says what events.proto, the topics in code and the readers of events say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from google.protobuf.descriptor import FieldDescriptor

from offline import worker_events
from reranker import kafka
from reranker.dead_letters import DeadLetter, _headers
from reranker.errors import InvalidEventError
from reranker.events import TOPICS, read_change
from reranker.v1 import events_pb2

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "protos" / "asyncapi.yaml").read_text())
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
EVENTS = {name: message for name, message in MESSAGES.items() if name != "DeadLetter"}

TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_INT64: ["integer", "string"],
    FieldDescriptor.TYPE_UINT64: ["integer", "string"],
    FieldDescriptor.TYPE_FLOAT: "number",
    FieldDescriptor.TYPE_BOOL: "boolean",
}
EXAMPLES = {"string": "x", "number": 1.5, "boolean": True, "array": [0.5, 0.5], "object": {"slot": "text"}}


def test_every_message_of_the_protos_and_no_other_is_there_with_every_field_and_its_type() -> None:
    assert set(EVENTS) == set(events_pb2.DESCRIPTOR.message_types_by_name)
    for name, message in EVENTS.items():
        told = {field: schema["type"] for field, schema in message["payload"]["properties"].items()}
        descriptor = events_pb2.DESCRIPTOR.message_types_by_name[name]
        assert told == {field.json_name: json_type(field) for field in descriptor.fields}, name


def json_type(field: FieldDescriptor) -> object:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return "object"
    return "array" if field.is_repeated else TYPES[field.type]


def test_the_channels_are_the_topics_in_code() -> None:
    dead = DOCUMENT["channels"]["deadLetters"]
    addresses = {channel["address"] for channel in DOCUMENT["channels"].values() if channel is not dead}
    assert addresses == {*kafka.INPUTS, kafka.PUBLISHED}
    assert dead["address"] == "{topic}" + kafka.DLQ_SUFFIX
    assert dead["parameters"]["topic"]["enum"] == list(kafka.INPUTS)


def test_every_reference_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [reference for value in node.values() for reference in references(value)]
    return []


def example(message: str) -> dict[str, Any]:
    properties = MESSAGES[message]["payload"]["properties"]
    return {
        field: "1735689600000" if isinstance(schema["type"], list) else EXAMPLES[schema["type"]]
        for field, schema in properties.items()
    }


@pytest.mark.parametrize("topic", TOPICS)
def test_ingest_requires_what_the_document_requires(topic: str) -> None:
    message = next(iter(DOCUMENT["channels"][topic]["messages"]))
    whole = example(message)
    read_change(topic, json.dumps(whole).encode(), 2_000_000_000_000)
    required = []
    for field in whole:
        without = {name: value for name, value in whole.items() if name != field}
        try:
            read_change(topic, json.dumps(without).encode(), 2_000_000_000_000)
        except InvalidEventError:
            required.append(field)
    # A vector without its space is refused too, but neither is required.
    assert [field for field in required if field != "embeddingSpace"] == MESSAGES[message]["payload"]["required"]


@pytest.mark.parametrize("topic", worker_events.TOPICS)
def test_the_worker_requires_what_the_document_requires(topic: str) -> None:
    message = next(iter(DOCUMENT["channels"][topic]["messages"]))
    # A list of texts where ingest has numbers; of what is deleted no words are required.
    whole = example(message) | ({"categories": ["x"]} if topic == kafka.ITEMS else {})
    worker_events.read(topic, json.dumps(whole).encode(), 2_000_000_000_000)
    required = []
    for field in whole:
        without = {name: value for name, value in whole.items() if name != field}
        try:
            worker_events.read(topic, json.dumps(without).encode(), 2_000_000_000_000)
        except InvalidEventError:
            required.append(field)
    assert required == MESSAGES[message]["payload"]["required"]


def test_a_dead_letter_has_the_headers_of_the_document() -> None:
    letter = DeadLetter("interactions", 1, 2, 3, b"key", None, (("own", b"header"),), "Error", "why")
    told = MESSAGES["DeadLetter"]["headers"]
    assert {name for name, _ in _headers(letter)} == {"own", *told["properties"]}
    assert {name for name, _ in _headers(replace(letter, key=None, value=b""))} == {"own", *told["required"]}
