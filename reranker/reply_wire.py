"""The items of an answer written as protobuf, compiled: RankedItem of reranker.proto, byte by byte.

An answer is mostly a copy of persona messages that lie serialised in the index; made from Python objects it costs more
than all that was computed for it. It is written from its end to its beginning, so that each length is known when its
turn comes. Field numbers come from the contract, and a test reads what is written here with protobuf's own parser.
Protobuf encoding: a field is its tag, and then a varint, or four bytes, or a length and so many bytes.
"""

import numpy as np
from numpy.typing import NDArray

from reranker.kernels import compiled
from reranker.v1 import reranker_pb2 as pb

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types: what follows a tag."""


def tag_of(message: type, field: str, wire_type: int) -> int:
    """Return the byte that opens a field (field numbers below 16 take one)."""
    number: int = message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]  # every message has one
    return number << 3 | wire_type


_RANKING = tag_of(pb.RecommendResponse, "ranking", LENGTH_DELIMITED)
_ITEMS = tag_of(pb.RerankResponse, "items", LENGTH_DELIMITED)
_ITEM_ID = tag_of(pb.RankedItem, "item_id", LENGTH_DELIMITED)
_RANK = tag_of(pb.RankedItem, "rank", VARINT)
_RANK_BEFORE = tag_of(pb.RankedItem, "rank_before", VARINT)
_SCORE = tag_of(pb.RankedItem, "score", FIXED32)
_PERSONA_SCORE = tag_of(pb.RankedItem, "persona_score", FIXED32)
_FIRST_STAGE_SCORE = tag_of(pb.RankedItem, "first_stage_score", FIXED32)
_PERSONA = tag_of(pb.RankedItem, "persona", LENGTH_DELIMITED)
_REASON = tag_of(pb.RankedItem, "reason", VARINT)

_SUMMARY_ONLY = int(pb.ITEM_REASON_SUMMARY_ONLY)
_NO_PROFILE = int(pb.ITEM_REASON_NO_PROFILE)
_NOT_INDEXED = int(pb.ITEM_REASON_NOT_INDEXED)

# Of an item beside the bytes of its id and persona, each number at its longest: three tags and lengths (33), two ranks
# (22), three scores (15), the reason (2).
FIXED_BYTES = 72


@compiled
def copy(source: Bytes, start: int, end: int, out: Bytes, at: int) -> None:
    """Copy source[start:end] to `at`."""
    # The assignment of a slice takes the compiler seconds.
    for place in range(end - start):
        out[at + place] = source[start + place]


@compiled
def put_field(out: Bytes, end: int, tag: int, value: int) -> int:
    """Write a tag and a varint so that they end before `end`; return where they begin."""
    size, rest = 1, value >> 7
    while rest:
        size, rest = size + 1, rest >> 7
    at = end - size
    for place in range(at, end):
        out[place] = value & 0x7F | (0x80 if place < end - 1 else 0)
        value >>= 7
    out[at - 1] = tag
    return at - 1


@compiled
def put_score(out: Bytes, end: int, tag: int, score: np.float32, bits: np.uint32) -> int:
    """Write a score unless it is NaN; bits: the same as a number."""
    if not np.isfinite(score):
        return end
    for place in range(end - 4, end):
        out[place] = bits & np.uint32(0xFF)
        bits >>= np.uint32(8)
    out[end - 5] = tag
    return end - 5


@compiled
def reply_size(order: Numbers, starts: Numbers, ends: Numbers, persona_lengths: Numbers, explain: bool) -> int:
    """Return the bytes that items take, at most."""
    size = 0
    for number in order:
        size += FIXED_BYTES + ends[number] - starts[number] + (persona_lengths[number] if explain else 0)
    return size


@compiled
def put_items(
    out: Bytes,
    order: Numbers,
    text: Bytes,
    starts: Numbers,
    ends: Numbers,
    ranks_before: Numbers,
    scores: NDArray[np.float32],
    persona_scores: NDArray[np.float32],
    first_stage: NDArray[np.float32],
    segments: Numbers,
    persona_lengths: Numbers,
    profiled: bool,
    explain: bool,
    personas_at: Numbers,
) -> int:
    """Write the items of `order`, best first, so that they end with `out`; return where they begin.

    The others have an entry a candidate: `text[starts:ends]` are the ids, `segments` is -1 for what the index does not
    hold. A persona's own bytes are for `put_personas` to write where `personas_at` then says, -1 for none.
    """
    at = len(out)
    bits, persona_bits, first_bits = scores.view(np.uint32), persona_scores.view(np.uint32), first_stage.view(np.uint32)
    for rank in range(len(order), 0, -1):
        number, end = order[rank - 1], at
        personas_at[number] = -1
        if persona_lengths[number] == 0:
            otherwise = _SUMMARY_ONLY if profiled else _NO_PROFILE
            at = put_field(out, at, _REASON, _NOT_INDEXED if segments[number] < 0 else otherwise)
        elif explain:
            personas_at[number] = at - persona_lengths[number]
            at = put_field(out, personas_at[number], _PERSONA, persona_lengths[number])
        at = put_score(out, at, _FIRST_STAGE_SCORE, first_stage[number], first_bits[number])
        at = put_score(out, at, _PERSONA_SCORE, persona_scores[number], persona_bits[number])
        at = put_score(out, at, _SCORE, scores[number], bits[number])
        at = put_field(out, at, _RANK_BEFORE, ranks_before[number])
        at = put_field(out, at, _RANK, rank)
        id_length = ends[number] - starts[number]
        copy(text, starts[number], ends[number], out, at - id_length)
        at = put_field(out, at - id_length, _ITEM_ID, id_length)
        at = put_field(out, at, _ITEMS, end - at)
    return at


@compiled
def measure_personas(
    spans: Numbers, segments: Numbers, winners: Numbers, segment: int, lengths: Numbers
) -> tuple[int, int, int]:
    """Enter how long the persona of each winner of one segment is, 0 for a summary.

    Returns how many items the segment holds, how many of them are scored, and how many of those by their summary.
    """
    held, scored, by_summary = 0, 0, 0
    for number in range(len(winners)):
        if segments[number] != segment:
            continue
        held += 1
        if winners[number] >= 0:
            lengths[number] = spans[winners[number] + 1] - spans[winners[number]]
            scored += 1
            by_summary += lengths[number] == 0
    return held, scored, by_summary


@compiled
def put_personas(
    out: Bytes,
    order: Numbers,
    personas: Bytes,
    spans: Numbers,
    segments: Numbers,
    winners: Numbers,
    segment: int,
    personas_at: Numbers,
) -> None:
    """Copy the personas of the winners of one segment to where they belong in `out`; nowhere for a place of -1."""
    for number in order:
        if segments[number] == segment and personas_at[number] >= 0:
            copy(personas, spans[winners[number]], spans[winners[number] + 1], out, personas_at[number])


def embedded_ranking(ranking: bytes) -> bytes:
    """Return a serialised RerankResponse as the field of a RecommendResponse."""
    opening = np.empty(11, np.uint8)
    return opening[put_field(opening, len(opening), _RANKING, len(ranking)) :].tobytes() + ranking
