"""Whose words a dead letter holds, whatever it died of."""

import pytest

from reranker.dead_letters import DeadLetter
from reranker.erased_letters import is_erased, users_of
from reranker.sending import Headers
from reranker.v1 import events_pb2 as pb

PROTOBUF = (("content-type", b"application/protobuf"),)


def letter(
    topic: str, value: bytes | None, key: bytes | None = None, headers: Headers = (), timestamp: int = 1
) -> DeadLetter:
    return DeadLetter(topic, 0, 0, timestamp, key, value, headers, "E", "why")


@pytest.mark.parametrize(
    ("value", "users"),
    [
        (b'{"userId":"ann"}', {"ann"}),
        (b'{"user_id" : "a\\"nn", "text": "torn', {'a"nn'}),
        (b'{"userId":12,"itemId":"emma"}', {"12"}),
        (rb'{"userId":"\ud83d"}', set()),
        (b"\xff", set()),
        (None, set()),
    ],
)
def test_the_value_tells_as_far_as_it_can_be_read(value: bytes | None, users: set[str]) -> None:
    assert users_of(letter("reviews", value, b"emma")) == users


@pytest.mark.parametrize("prefix", ["", "shop."])
def test_the_value_may_be_protobuf(prefix: str) -> None:
    value = pb.Review(review_id="r", user_id="ann").SerializeToString()
    assert users_of(letter(f"{prefix}reviews", value, headers=PROTOBUF), prefix) == {"ann"}
    assert users_of(letter(f"{prefix}reviews", b"\xff", headers=PROTOBUF), prefix) == set()


def test_the_key_tells_where_it_is_the_user_s() -> None:
    assert users_of(letter("shop.aspects", b'{"userId":"bob"}', b"ann"), "shop.") == {"ann", "bob"}
    assert users_of(letter("interactions", b"rubbish", b"\xff")) == {"\ufffd"}
    assert users_of(letter("items", b"rubbish", b"emma")) == set()


@pytest.mark.parametrize(
    ("timestamp", "gone"),
    [(5, True), (6, False), (-1, True), (1_763_800_000_000_000, True)],
)
def test_what_was_sent_before_the_erasure_goes_and_so_does_what_has_no_time(timestamp: int, gone: bool) -> None:
    erased = {"ann": 5}.get
    assert is_erased(letter("interactions", b'{"userId":"ann"}', timestamp=timestamp), erased) is gone
    assert is_erased(letter("interactions", b'{"userId":"bob"}', timestamp=timestamp), erased) is False
