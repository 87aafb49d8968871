"""The candidates of a RerankRequest read from the wire, compiled: ids, hashes and scores as arrays.

Made into Python objects, a hundred candidates cost more than to score them. What is read here is a body as clients
write it; whatever else protobuf allows (unknown fields, other characters than ASCII, groups) or the contract refuses
(an id twice, a score that is no number) is left to protobuf's parser and to the checks, which say what is wrong.
Field numbers come from the contract. Protobuf encoding: a field is its tag, and then a varint, or four or eight bytes,
or a length and so many bytes.
"""

import numpy as np
from numpy.typing import NDArray

from reranker.kernels import compiled
from reranker.reply_wire import FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, Bytes, Numbers, copy, tag_of
from reranker.v1 import reranker_pb2 as pb
from reranker.xxh64 import xxh64

_CANDIDATE = tag_of(pb.RerankRequest, "candidates", LENGTH_DELIMITED)
_ITEM_ID = tag_of(pb.Candidate, "item_id", LENGTH_DELIMITED)
_SCORE = tag_of(pb.Candidate, "score", FIXED32)

LEAST_BYTES = 5
"""Of a candidate with an id: two tags, two lengths, one character."""
# Lengths beyond four bytes of seven bits, 256 MB, are over any limit of a message.
_LENGTH_BYTES = 4
_VARINT_BYTES = 10

ABSENT = np.float32(np.nan).view(np.uint32)
"""The bits of a score that was not sent."""
INFINITE = np.float32(np.inf).view(np.uint32)
"""The bits of infinity, all of which NaN has too."""


@compiled
def read_length(body: Bytes, at: int, end: int) -> tuple[int, int]:
    """Return the length that stands at `at`, and where what it is the length of begins; -1 if it leads beyond `end`."""
    length = 0
    for place in range(at, min(at + _LENGTH_BYTES, end)):
        length |= (int(body[place]) & 0x7F) << 7 * (place - at)
        if body[place] < 0x80:
            return (length, place + 1) if place + 1 + length <= end else (0, -1)
    return 0, -1


@compiled
def skip_field(body: Bytes, at: int) -> int:
    """Return where the field at `at` ends; -1 if it is none that is known here."""
    kind, end = body[at] & 7, len(body)
    if body[at] < 8 or body[at] >= 0x80:  # number 0, or one that takes more than a byte
        return -1
    if kind == VARINT:
        for place in range(at + 1, min(at + 1 + _VARINT_BYTES, end)):
            if body[place] < 0x80:
                return place + 1
        return -1
    if kind == LENGTH_DELIMITED:
        length, start = read_length(body, at + 1, end)
        return start + length if start >= 0 else -1
    size = 4 if kind == FIXED32 else 8
    return at + 1 + size if kind in (FIXED32, FIXED64) and at + 1 + size <= end else -1


@compiled
def read_score(body: Bytes, at: int) -> np.uint32:
    """Return the bits of the float32 at `at`, those of infinity for whatever is not finite."""
    bits = np.uint32(0)
    for place in range(at + 3, at - 1, -1):
        bits = (bits << np.uint32(8)) | np.uint32(body[place])
    return INFINITE if bits & INFINITE == INFINITE else bits


@compiled
def read_candidate(
    body: Bytes, at: int, end: int, number: int, starts: Numbers, ends: Numbers, scores: NDArray[np.uint32]
) -> bool:
    """Enter the candidate that stands from `at` to `end`; return whether all of it is known here."""
    starts[number] = ends[number] = 0
    scores[number] = ABSENT
    while at < end:
        if body[at] == _ITEM_ID and ends[number] == 0:
            length, start = read_length(body, at + 1, end)
            if start < 0:
                return False
            starts[number], ends[number] = start, start + length
            at = start + length
        elif body[at] == _SCORE and at + 5 <= end:
            scores[number] = read_score(body, at + 1)
            at += 5
        else:
            return False
    return True


@compiled
def is_sound(body: Bytes, start: int, end: int, score: np.uint32) -> bool:
    """Return whether the id is there and ASCII, and the score finite or absent."""
    for place in range(start, end):
        if body[place] >= 0x80:
            return False
    return bool(end > start and score != INFINITE)


@compiled
def repeats(hashes: NDArray[np.uint64]) -> bool:
    """Return whether two may be equal: by a table at most half full, in which 0 stands for nothing."""
    bits = 2
    while 1 << bits < 2 * len(hashes):
        bits += 1
    table, last = np.zeros(1 << bits, np.uint64), np.uint64((1 << bits) - 1)
    for value in hashes:
        place = value & last
        while table[place] != 0 and table[place] != value:
            place = (place + np.uint64(1)) & last
        if table[place] == value:
            return True
        table[place] = value
    return False


@compiled
def read_candidates(
    body: Bytes,
    starts: Numbers,
    ends: Numbers,
    hashes: NDArray[np.uint64],
    scores: NDArray[np.uint32],
    rest: Bytes,
    most: int,
) -> tuple[int, int, int]:
    """Enter where each candidate's id starts and ends in `body`, its hash, the bits of its score; copy all else.

    The arrays have room for len(body) // LEAST_BYTES candidates, `rest` for len(body). Returns how many candidates
    there are, the bytes of the longest id, and those of the rest; 0 candidates if any of the body is not as expected,
    or if there are more than `most`: to look for repeated ones would take seconds if all hashes were made alike.
    """
    count, longest, kept, at = 0, 0, 0, 0
    while at < len(body):
        if count == most and body[at] == _CANDIDATE:
            return 0, 0, 0
        if body[at] != _CANDIDATE:
            end = skip_field(body, at)
            if end < 0:
                return 0, 0, 0
            copy(body, at, end, rest, kept)
            kept, at = kept + end - at, end
            continue
        length, start = read_length(body, at + 1, len(body))
        if length < LEAST_BYTES - 2 or not read_candidate(body, start, start + length, count, starts, ends, scores):
            return 0, 0, 0
        if not is_sound(body, starts[count], ends[count], scores[count]):
            return 0, 0, 0
        hashes[count] = xxh64(body, starts[count], ends[count])
        longest = max(longest, ends[count] - starts[count])
        count, at = count + 1, start + length
    return (0, 0, 0) if repeats(hashes[:count]) else (count, longest, kept)
