"""Which LLM the stages ask, and every setting of asking it, each documented where it stands.

Read from, the later winning: the defaults here, environment variables (PERSONA4REC_LLM_CONCURRENCY=...), and what a
command passes on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from offline.calls import Model
from offline.errors import ConfigurationError
from offline.spending import Prices
from reranker.histories import server_of, shown_address

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class NoLlm:
    """--llm none: the stages take their ways without an LLM."""


@dataclass(frozen=True, slots=True)
class LocalGguf:
    """--llm local=PATH: a model file that is served for the time of the command."""

    path: Path


@dataclass(frozen=True, slots=True)
class RemoteLlm:
    """--llm URL: an endpoint that speaks the OpenAI API.

    Its address holds no secret, and so may be shown. Raises ConfigurationError for one with a user part or a query.
    """

    url: str

    def __post_init__(self) -> None:
        if server_of(self.url) is None or _may_hold_a_secret(self.url):
            raise ConfigurationError(
                f"--llm is {shown_address(self.url)!r} with a user part, a query or no valid port: write the base URL "
                "alone, and give the key as PERSONA4REC_LLM_API_KEY"
            )


def _may_hold_a_secret(address: str) -> bool:
    return "@" in address or "?" in address


def _shown(address: str) -> str:
    if not _may_hold_a_secret(address):
        return address
    return shown_address(address) if "://" in address else "***"


LlmSource = NoLlm | LocalGguf | RemoteLlm


def llm_source(text: str) -> LlmSource:
    """Parse the value of --llm: none, local=PATH, or a URL. Raises ConfigurationError for anything else."""
    if text == "none":
        return NoLlm()
    scheme, _, path = text.partition("=")
    if scheme == "local" and path:
        return LocalGguf(Path(path).expanduser())
    parts = urlsplit(text)
    if parts.scheme in {"http", "https"} and parts.hostname:
        return RemoteLlm(text.rstrip("/"))
    raise ConfigurationError(
        f"--llm is {_shown(text)!r}: write local=PATH for a GGUF model file, the base URL of an OpenAI-compatible "
        "endpoint (https://HOST/v1), or none"
    )


class LlmSettings(BaseSettings):
    """How an LLM is asked."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_LLM_", frozen=True)

    model: str = ""
    """Its name at the endpoint; may stay empty where the endpoint has just one."""
    api_key: SecretStr = SecretStr("")
    """Best given by its environment variable alone."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    """Requests in flight. Hosted endpoints answer with 429 where it is too many; one GPU batches about as many."""
    timeout_seconds: Seconds = 400.0
    """Of one request: 2,100 tokens, the room for seven personas, take 350 s at 6 a second, what one of four gets of a
    1.5B model on two cores."""
    patience_seconds: Seconds = 600.0
    """How long one request is tried for in all, waits included: outlives a restart of an endpoint that loads 100 GB."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """How often a call is put to the model until its answer is usable; then the call is rejected: each one
    is paid for, and what fails at three temperatures is the fault of the prompt."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: int = 0
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the limit of the answer's tokens; OpenAI's reasoning models know only the longer name."""
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request body, in place of ours of the same name; null leaves a field out."""
    input_price: Price = 0.0
    """Of a million input tokens, in any currency."""
    output_price: Price = 0.0
    """Of a million output tokens, in the same currency."""
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """What one run of one stage may cost at most, in the currency of the prices; none: no limit. The worker, whose
    work has no end, refuses this and the next."""
    token_budget: Annotated[int, Field(ge=0)] | None = None
    """Tokens that it may use at most, input and output together; none: no limit."""
    local_slots: Annotated[int, Field(ge=1, le=256)] = 4
    """Requests that a local LLM works on at once: on a few cores more of them only share the same tokens per second."""
    local_context: Annotated[int, Field(ge=512)] = 8192
    """Tokens of prompt and answer together that one request to a local LLM may have; its memory grows with it."""

    @field_validator("parameters")
    @classmethod
    def _one_answer_in_one_piece(cls, parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
        wrong = [name for name in ("n", "best_of") if parameters.get(name) not in (None, 1)]
        wrong += ["stream"] * bool(parameters.get("stream"))
        if wrong:
            raise ValueError(
                f"{wrong[0]} is {parameters[wrong[0]]!r}: a call takes one answer, in one piece; leave it out"
            )
        return parameters

    @property
    def prices(self) -> Prices:
        return Prices(self.input_price, self.output_price)

    def named(self, name: str) -> Model:
        """Return what decides a reply of the model that the endpoint calls `name`."""
        return Model(name, self.temperature, self.seed, self.limit_field, self.parameters)
