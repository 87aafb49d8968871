"""A stage's calls as a file in the OpenAI Batch API's format, and the results that come back.

One line a request: {custom_id, method, url, body}; one line a result, in any order: {custom_id, response {status_code,
body}, error}. So a stage can be answered at batch price, or on another machine (e.g. by `vllm run-batch`), and go on
here. The custom_id is the hexadecimal cache key of the call.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ValidationError

from offline.calls import Call, Model, cache_key, request_body
from offline.errors import LlmError
from offline.lines import replacing
from offline.llm_cache import ResponseCache
from offline.rejects import reason_of
from offline.replies import NOTHING, Rejected, Reply, Usage, read, reply_to
from offline.retries import as_code
from offline.spending import Prices, usage_of

VERSION = "/v1"
"""Before the path of every request: what hosted services and `vllm run-batch` expect."""

TRANSACTION = 500
"""Replies saved at a time: a commit each would take most of the time, and so many are read again in no time."""


FOREIGN = "its custom_id is not of an export"


@dataclass(frozen=True, slots=True)
class Exported:
    """What went into a file of requests."""

    requests: int
    cached: int
    """Calls that need no request: the cache has their replies."""
    repeated: int
    """Calls that ask the same as another one, which one request answers."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file of results brought."""

    answered: int
    """Calls that are now in the cache and were not before."""
    known: int
    """Calls that the cache had before."""
    open: int
    """Calls that are still to be asked."""
    problems: tuple[tuple[str, int], ...] = ()
    """Why results were of no use, and how many were of none for that reason."""


class _Response(BaseModel):
    status_code: int
    body: dict[str, Any] | None = None


class _Result(BaseModel):
    custom_id: str
    response: _Response | None = None
    error: Any = None


def export_calls(calls: Iterable[Call[Any]], model: Model, cache: ResponseCache, path: Path) -> Exported:
    """Write a request for every call that the cache does not answer; `path` is replaced at the end, in one step.

    Calls are taken one by one; of those written, the 32 bytes of their keys stay in memory. A hosted service limits the
    file (OpenAI: 50,000 lines and 200 MB): cut it with `split -l`; the results can be imported one file after another.

    Raises LlmError if the file cannot be written, ResponseCacheError if the cache cannot be read.
    """
    written: set[bytes] = set()
    cached = repeated = 0
    try:
        with replacing(path) as file:
            for call in calls:
                key = cache_key(call, model)
                if key in written:
                    repeated += 1
                elif cache.find(key, call.tags) is not None:
                    cached += 1
                else:
                    written.add(key)
                    file.write(_request(key, call, request_body(call, model)))
    except OSError as error:
        raise LlmError(f"{path} cannot be written: {error}") from error
    return Exported(len(written), cached, repeated)


def import_results(
    stage: str, calls: Iterable[Call[Any]], path: Path, model: Model, cache: ResponseCache, prices: Prices
) -> Imported:
    """Fill the cache from a file of results, so that a run of these calls asks only for what is still open.

    Taken is what answers one of `calls`, which must be those of the export (same dataset, model and settings): results
    for others, such as a review that was deleted meanwhile, are left out. Failed results, torn lines and replies that
    give no answer are counted and leave their calls open. Importing again changes nothing.

    What the saved replies used is booked to `stage` at `prices` (those of a batch, where cheaper). Of each result,
    its key and its place in the file stay in memory, about 200 bytes.

    Raises LlmError if the file cannot be read, ResponseCacheError if the cache cannot be.
    """
    counts: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    try:
        with path.open("rb") as file:
            results = _Results(file, dict(_places(file, problems)), problems)
            remaining = iter(calls)
            while chunk := list(islice(remaining, TRANSACTION)):
                used = NOTHING
                with cache.transaction():
                    for call in chunk:
                        fate, usage = _taken(call, model, results, cache)
                        counts[fate] += 1
                        used += usage
                    cache.book(stage, model.name, used, prices.cost(used.input_tokens, used.output_tokens))
    except OSError as error:
        raise LlmError(f"{path} cannot be read: {error}") from error
    return Imported(counts["answered"], counts["known"], counts["open"], tuple(problems.most_common()))


@dataclass(frozen=True, slots=True)
class _Results:
    """A file of results, and where in it each one stands."""

    file: IO[bytes]
    places: dict[bytes, int]
    problems: Counter[str]

    def reply(self, call: Call[Any], key: bytes) -> Reply | None:
        if key not in self.places:
            return None
        self.file.seek(self.places[key])
        try:
            return _reply(call, _Result.model_validate_json(self.file.readline()))
        except ValueError as error:
            self.problems[reason_of(error)] += 1
            return None


def _taken(
    call: Call[Any], model: Model, results: _Results, cache: ResponseCache
) -> tuple[Literal["answered", "known", "open"], Usage]:
    """Save the result of a call if there is a good one; return what became of it, and what is to be booked."""
    key = cache_key(call, model)
    if cache.find(key, call.tags) is not None:
        return "known", NOTHING
    reply = results.reply(call, key)
    if reply is None:
        return "open", NOTHING
    answer = read(reply, call.schema)
    if isinstance(answer, Rejected):
        results.problems[f"{answer.reason}: {answer.detail}"] += 1
        return "open", NOTHING
    cache.save(key, reply, call.tags)
    return "answered", usage_of(reply, request_body(call, model))


def _places(file: IO[bytes], problems: Counter[str]) -> Iterator[tuple[bytes, int]]:
    """Yield the key and the place of every result; a later one for the same key wins."""
    place = 0
    for line in file:
        try:
            yield bytes.fromhex(_Result.model_validate_json(line).custom_id), place
        except ValueError as error:
            if line.strip():
                problems[f"not a result: {reason_of(error)}" if isinstance(error, ValidationError) else FOREIGN] += 1
        place += len(line)


def _reply(call: Call[Any], result: _Result) -> Reply:
    """Return the reply in a result. Raises ValueError, saying why, where there is none."""
    if result.error is not None:
        raise ValueError(f"the service reports an error: {_code(result.error)}")
    if result.response is None or result.response.status_code != HTTPStatus.OK:
        status = result.response.status_code if result.response else "no response"
        raise ValueError(f"the request failed: {status}")
    return reply_to(call, result.response.body or {})


def _code(error: object) -> str:
    found = error.get("code") if isinstance(error, dict) else None
    return as_code(found) or "without a code"


def _request(key: bytes, call: Call[Any], body: dict[str, Any]) -> str:
    request = {"custom_id": key.hex(), "method": "POST", "url": VERSION + call.path, "body": body}
    return json.dumps(request, ensure_ascii=False) + "\n"
