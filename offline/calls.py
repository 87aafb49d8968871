"""What is asked of an LLM: a frozen call, the request that it becomes, and the key that its reply is kept under."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast

from openai import pydantic_function_tool
from pydantic import BaseModel, JsonValue

Answer = TypeVar("Answer", bound=BaseModel)

KEY_FORMAT = 1
"""Goes into every cache key: raise it when a request of equal fields begins to mean something else."""

HOTTER = 0.3
"""Added to the temperature with every further attempt: a greedy model would only repeat its bad reply."""

IN_WORDS = "Reply with a single JSON object and nothing around it. It has to be valid under this JSON Schema:\n{schema}"

BYTES_PER_TOKEN = 4
"""Of UTF-8, for estimates. Measured: 4.4 on English book reviews with Qwen2.5's vocabulary. With a smaller vocabulary,
in another language or for JSON it may be fewer, and an estimate too low."""

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
"""What endpoints call the limit of the answer's tokens. With both in a request, each heeds the one that it knows."""

TOKENS_PER_MESSAGE = 4
"""What chat templates put around a message: role and delimiters."""


class Message(TypedDict):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One question to an LLM, answered by an object of `schema`."""

    key: str
    """Whose question it is, e.g. an item_id or review_id; comes back with the outcome."""
    messages: tuple[Message, ...]
    schema: type[Answer]
    """What a good answer is. A validator of the model that raises ValueError makes the LLM try again."""
    max_tokens: int
    """Tokens that the answer may take; a longer one is cut off, and asked for once more with twice the room."""
    tags: tuple[str, ...] = ()
    """Whose words the prompt was made of (`user_tag`, `review_tag`), so that they can be forgotten."""
    continuation: str = ""
    """Where it is set, nothing is to be written: asked is how likely this text is behind the messages, taken as plain
    text. `schema` is then `Likelihood`."""
    anew: bool = False
    """Its answer is known and was of no use: it is asked again, as a further attempt, for one to take its place."""

    @property
    def path(self) -> Literal["/chat/completions", "/completions"]:
        """Where the endpoint takes it, behind its base URL."""
        return "/completions" if self.continuation else "/chat/completions"


class Likelihood(BaseModel, frozen=True):
    """How likely a call's continuation is."""

    log_likelihood: float
    """Sum over its tokens, in nats, 0 at most."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Model:
    """What decides a reply beside the call."""

    name: str
    temperature: float = 0.0
    """0 to 2, of the first attempt."""
    seed: int = 0
    """Of the first attempt; endpoints that know no seed ignore it."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the limit of the answer's tokens."""
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)
    """Further fields of the request body, in place of ours where they share a name; null leaves a field out."""

    @property
    def limits_answers(self) -> bool:
        """Whether requests limit the answer's tokens; `parameters` may take that out of them."""
        return most_output_tokens({self.limit_field: 0, **self.parameters}) is not None


def user_tag(user_id: str) -> str:
    return f"user:{user_id}"


def review_tag(review_id: str) -> str:
    return f"review:{review_id}"


def request_body(
    call: Call[Any], model: Model, *, attempt: int = 0, max_tokens: int | None = None, constrained: bool = True
) -> dict[str, Any]:
    """Return the body of a chat completion request.

    Each attempt after the first (0) has another seed and a higher temperature, and states the schema in words too, as
    it does where the endpoint cannot constrain its output: some endpoints accept a schema and ignore it. Of a call with
    a continuation it is that of a completion, whose prompt comes back with its log-probabilities.
    """
    if call.continuation:
        return _scoring_body(call, model)
    schema: type[BaseModel] = call.schema
    body: dict[str, Any] = {
        "model": model.name,
        "messages": list(call.messages),
        "temperature": model.temperature + HOTTER * attempt,
        "seed": model.seed + attempt,
        model.limit_field: max_tokens or call.max_tokens,
    }
    if constrained:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": schema.__name__, "strict": True, "schema": schema_of(schema)},
        }
    if attempt or not constrained:
        body["messages"] = [*call.messages, {"role": "user", "content": IN_WORDS.format(schema=_text(schema))}]
    return {name: value for name, value in (body | dict(model.parameters)).items() if value is not None}


def _scoring_body(call: Call[Any], model: Model) -> dict[str, Any]:
    # One token more than wanted: not every endpoint lets a completion be empty.
    prompt = prefix(call) + call.continuation
    body = {"model": model.name, "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0.0}
    return {name: value for name, value in (body | dict(model.parameters)).items() if value is not None}


def prefix(call: Call[Any]) -> str:
    """Return the plain text that a call's continuation follows."""
    return "\n\n".join(message["content"] for message in call.messages)


def cache_key(call: Call[Any], model: Model) -> bytes:
    """Return the SHA-256 over model, parameters, messages and schema: what decides the first attempt's reply."""
    return hashlib.sha256(_canonical([KEY_FORMAT, request_body(call, model)])).digest()


@lru_cache(maxsize=256)
def schema_of(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a model, strict as endpoints want it: every field required, no others allowed."""
    # The openai package offers its strict form of a schema only within the declaration of a tool.
    return cast("dict[str, Any]", pydantic_function_tool(schema)["function"]["parameters"])


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text takes: a quarter of its UTF-8 bytes, rounded up."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def estimated_input_tokens(body: Mapping[str, Any]) -> int:
    """Return about how many tokens a request's messages, or its prompt, take.

    A schema counts where it is said in words, not as `response_format`: few endpoints put that in a prompt.
    """
    asked = sum(TOKENS_PER_MESSAGE + estimated_tokens(message["content"]) for message in body.get("messages", ()))
    return asked + estimated_tokens(body.get("prompt", ""))


def most_output_tokens(body: Mapping[str, Any]) -> int | None:
    """Return how many tokens the answer to a request may take; None where nothing in it limits them."""
    limits = [limit for name in LIMIT_FIELDS if isinstance(limit := body.get(name), int)]
    return max(limits, default=None)


@lru_cache(maxsize=256)
def _text(schema: type[BaseModel]) -> str:
    return json.dumps(schema_of(schema), ensure_ascii=False)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
