"""What an LLM replied, and what can be made of it: an answer, or the reason why there is none."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, Field, JsonValue, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from offline.calls import Answer, Call, Likelihood, prefix
from offline.rejects import reason_of

CANDIDATES = 32
"""Places in a reply where a JSON object may begin that are tried; prose and reasoning before it hold a few braces."""

_DECODER = json.JSONDecoder(strict=False)
_BRACE = re.compile(r"\{")


class Reason(StrEnum):
    """Why a call has no answer."""

    MALFORMED = "malformed"
    """The reply holds no JSON object."""
    SCHEMA = "schema"
    """It holds one that breaks the schema."""
    TRUNCATED = "truncated"
    """It was cut off at the limit of tokens."""
    REFUSED = "refused"
    """The model declined."""
    FILTERED = "filtered"
    """The endpoint's content filter stepped in."""
    REQUEST = "request"
    """The endpoint found the request itself at fault, e.g. too long for its context."""
    UNREACHABLE = "unreachable"
    """The endpoint gave no reply in time, however often it was asked."""
    UNSAVED = "unsaved"
    """There was a reply, but it could not be kept, e.g. for a full disk."""
    UNASKED = "unasked"
    """Nobody was asked yet, e.g. as a batch is not back; no rejection, the call is open."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A call without an answer."""

    reason: Reason
    detail: str
    """For people; without words of the prompt or the reply, as these are made of personal data."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that were used."""

    asks: int = 0
    """Requests that were answered; a call takes more than one when its first answer is no good."""
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.asks + other.asks,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(
            self.asks - other.asks,
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
        )


NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request."""

    text: str
    finish: str
    """Why it ended, in the endpoint's words: stop, length, content_filter."""
    refusal: str = ""
    usage: Usage | None = None
    """None: the endpoint did not say."""


class _Message(BaseModel):
    content: JsonValue = None
    """Text, else nothing that can be read: some endpoints answer with a list of parts."""
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


def _if_usable(value: Any, usage: ValidatorFunctionWrapHandler) -> Any:
    try:
        return usage(value)
    except ValidationError:
        return None


class _Billed(BaseModel):
    usage: Annotated[_Usage | None, WrapValidator(_if_usable)] = None


class _Completion(_Billed):
    choices: list[_Choice]


class NoLikelihoodError(ValueError):
    """A completion without the log-probabilities of its prompt, which were asked for."""


class _Scores(BaseModel):
    token_logprobs: list[float | None] | None = None
    text_offset: list[int] | None = None


class _Continued(BaseModel):
    logprobs: _Scores | None = None


class _TextCompletion(_Billed):
    choices: list[_Continued] = Field(min_length=1)


def reply_to(call: Call[Any], completion: bytes | dict[str, Any]) -> Reply:
    """Return the reply to a call in a completion of its kind, as JSON or decoded.

    Raises ValueError where it is not one, NoLikelihoodError where it lacks the log-probabilities.
    """
    return _likelihood(call, completion) if call.continuation else reply_of(completion)


def _likelihood(call: Call[Any], completion: bytes | dict[str, Any]) -> Reply:
    parse = _TextCompletion.model_validate_json if isinstance(completion, bytes) else _TextCompletion.model_validate
    found = parse(completion)  # type: ignore[arg-type]  # as the branch says
    scores = found.choices[0].logprobs or _Scores()
    begin = len(prefix(call))
    end = begin + len(call.continuation)
    pairs = zip(scores.text_offset or (), scores.token_logprobs or (), strict=False)
    counted = [score for place, score in pairs if begin <= place < end and score is not None]
    if not counted:
        raise NoLikelihoodError("the completion has no log-probabilities of its prompt")
    likelihood = Likelihood(log_likelihood=sum(counted), tokens=len(counted))
    return Reply(likelihood.model_dump_json(), "stop", usage=_usage(found.usage))


def _usage(usage: _Usage | None) -> Usage | None:
    return None if usage is None else Usage(1, usage.prompt_tokens, usage.completion_tokens)


def usage_in(body: bytes) -> Usage:
    """Return what the body of any reply says was used, a completion or not; nothing where it does not say."""
    try:
        return _usage(_Billed.model_validate_json(body).usage) or NOTHING
    except ValidationError:
        return NOTHING


def reply_of(completion: bytes | dict[str, Any]) -> Reply:
    """Return the reply in a chat completion, as JSON or decoded; one without choices is a reply without text.

    Raises ValueError where it is no chat completion.
    """
    if isinstance(completion, bytes):
        found = _Completion.model_validate_json(completion)
    else:
        found = _Completion.model_validate(completion)
    if not found.choices:
        return Reply("", "", usage=_usage(found.usage))
    choice = found.choices[0]
    message = choice.message
    text = message.content if isinstance(message.content, str) else ""
    return Reply(text, choice.finish_reason or "", message.refusal or "", _usage(found.usage))


def read(reply: Reply, schema: type[Answer]) -> Answer | Rejected:
    """Return the answer in a reply, else the reason why there is none.

    JSON in a Markdown fence, after reasoning or amid prose is found. Of a reply that was cut off, only a whole that is
    valid counts: an object within it may be a part of what was meant.
    """
    if reply.finish == "content_filter":
        return Rejected(Reason.FILTERED, "the endpoint's content filter cut the reply off")
    if reply.refusal:
        return Rejected(Reason.REFUSED, "the model declined to answer")
    cut_off = reply.finish == "length"
    answer = _first_valid([reply.text] if cut_off else _objects(reply.text), schema)
    if isinstance(answer, Rejected) and cut_off:
        return Rejected(Reason.TRUNCATED, f"cut off after {len(reply.text):,} characters at the limit of tokens")
    if not reply.text:
        return Rejected(Reason.MALFORMED, "the completion holds no text")
    return answer


def _first_valid(texts: "Iterator[str] | list[str]", schema: type[Answer]) -> Answer | Rejected:
    rejected = Rejected(Reason.MALFORMED, "the reply holds no JSON object")
    for text in texts:
        try:
            return schema.model_validate_json(text)
        except ValidationError as error:
            if rejected.reason is Reason.MALFORMED and error.errors()[0]["type"] != "json_invalid":
                rejected = Rejected(Reason.SCHEMA, reason_of(error))
    return rejected


def _objects(text: str) -> Iterator[str]:
    """Yield the whole text, then every JSON object in it that is not within one already yielded."""
    yield text
    end = 0
    for start in [brace.start() for _, brace in zip(range(CANDIDATES), _BRACE.finditer(text), strict=False)]:
        if start < end:
            continue
        try:
            end = _DECODER.raw_decode(text, start)[1]
        except (ValueError, RecursionError):
            continue
        yield text[start:end]
