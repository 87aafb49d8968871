"""XXH64, compiled, so that an id is hashed where it lies in a request.

The package xxhash, which hashes strings elsewhere, gives the same numbers; a test holds the two together. Source: the
XXH64 algorithm description in the specification of xxHash.
"""

import numpy as np
from numpy.typing import NDArray

from reranker.kernels import compiled

# Unsigned numbers throughout: an index that may be negative costs numba a comparison, and two signs make a float.
U = np.uint64
_P1 = U(0x9E3779B185EBCA87)
_P2 = U(0xC2B2AE3D27D4EB4F)
_P3 = U(0x165667B19E3779F9)
_P4 = U(0x85EBCA77C2B2AE63)
_P5 = U(0x27D4EB2F165667C5)


@compiled
def _read_4(data: NDArray[np.uint8], at: np.uint64) -> np.uint64:
    """Return the four bytes at `at`, the first of them the lowest. Written out, they become one load."""
    low, high = U(data[at]) | U(data[at + U(1)]) << U(8), U(data[at + U(2)]) | U(data[at + U(3)]) << U(8)
    return low | high << U(16)


@compiled
def _read_8(data: NDArray[np.uint8], at: np.uint64) -> np.uint64:
    return _read_4(data, at) | _read_4(data, at + U(4)) << U(32)


@compiled
def _rotated(value: np.uint64, bits: int) -> np.uint64:
    return (value << U(bits)) | (value >> U(64 - bits))


@compiled
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotated(lane + word * _P2, 31) * _P1


@compiled
def _stripes(data: NDArray[np.uint8], at: np.uint64, end: np.uint64) -> np.uint64:
    """Return what 32 bytes at a time come to, by four lanes that are then merged."""
    a, b, c, d = _P1 + _P2, _P2, U(0), U(0) - _P1
    while at + U(32) <= end:
        a, b = _round(a, _read_8(data, at)), _round(b, _read_8(data, at + U(8)))
        c, d = _round(c, _read_8(data, at + U(16))), _round(d, _read_8(data, at + U(24)))
        at += U(32)
    value = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
    for lane in (a, b, c, d):
        value = (value ^ _round(U(0), lane)) * _P1 + _P4
    return value


@compiled
def xxh64(data: NDArray[np.uint8], start: int, end: int) -> np.uint64:
    """Return the hash of data[start:end], seed 0."""
    length, stop = U(end - start), U(end)
    value = (_stripes(data, U(start), stop) if length >= U(32) else _P5) + length
    at = stop - length % U(32)
    while at + U(8) <= stop:
        value = _rotated(value ^ _round(U(0), _read_8(data, at)), 27) * _P1 + _P4
        at += U(8)
    if at + U(4) <= stop:
        value = _rotated(value ^ (_read_4(data, at) * _P1), 23) * _P2 + _P3
        at += U(4)
    while at < stop:
        value = _rotated(value ^ (U(data[at]) * _P5), 11) * _P1
        at += U(1)
    value = (value ^ (value >> U(33))) * _P2
    value = (value ^ (value >> U(29))) * _P3
    return value ^ (value >> U(32))
