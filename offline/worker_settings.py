"""Every setting of the worker, each documented where it stands."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from offline.encoder import BUNDLED
from offline.rewriting import FAR, LEAST_NEW, NEW_SHARE, Thresholds
from offline.worker_state import Quiet
from reranker.config import Port

Seconds = Annotated[float, Field(ge=0)]


class WorkerSettings(BaseSettings):
    """What `persona4rec worker` runs with, beside `reranker.kafka.KafkaSettings` and `offline.llm_settings`."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_WORKER_", frozen=True, populate_by_name=True)

    group: str = Field("persona4rec-worker", min_length=1)
    """The consumer group: processes of one group share the partitions, and the state, so they run on one host."""
    state: Path = Path("worker.sqlite")
    """Items, reviews and what was made of them; made if it is not there. The LLM's replies are beside it."""
    dataset: Path | None = None
    """A dataset directory: what it has of items that are new to the state is taken over at every start, and what an
    editor decides there about personas holds."""
    milvus_uri: str = Field("http://127.0.0.1:19530", validation_alias="PERSONA4REC_MILVUS_URI")
    """Where the index is published to."""
    milvus_token: SecretStr = Field(SecretStr(""), validation_alias="PERSONA4REC_MILVUS_TOKEN")
    encoder: str = BUNDLED
    """As the index was published with: a sentence-transformers model, by name or directory."""
    adapter: Path | None = None
    """As the index was published with, or none."""
    llm: str = "none"
    """The URL of an endpoint, local=PATH of a GGUF file, or none."""
    domain: str = "generic"
    """books, restaurants, movies, generic, or a TOML file."""
    host: str = "127.0.0.1"
    """Address of /metrics and /health. /health is for readiness probes, not for liveness: it is 503 until the process
    has joined its group, and while LLM, broker or Milvus is away, which no restart mends."""
    metrics_port: Port = 9466
    """0 takes a free port and prints it; each process of a host needs its own."""
    max_batch: int = Field(64, ge=1)
    """Records of one batch: twice what an LLM is asked at a time, and done well before a group's patience ends."""
    refresh_items: int = Field(16, ge=1)
    """Items that are refreshed between two batches: events wait for a few seconds at most without an LLM."""
    replay: str = "committed"
    """Where to start: committed (where the group left off), earliest, a duration back like 2h, or ISO 8601; never later
    than committed."""
    stop_seconds: Annotated[float, Field(gt=0)] = 10.0
    """On SIGTERM, how long the last commit may take, once the batch in hand is done."""
    debounce_seconds: Seconds = 30.0
    """How long an item must have had no new review before its personas are looked at: reviews of a launch come in
    bursts, and one rewrite serves them all."""
    most_wait_seconds: Seconds = 600.0
    """But no longer than this after the first of them."""
    rewrites_per_hour: int = Field(1000, ge=0)
    """Of all processes. At 3,000 tokens each, three million tokens an hour; beyond it items wait."""
    tokens_per_hour: int | None = Field(None, ge=0)
    """What rewrites of an hour may take, as estimated before each; none: no limit. Aspects and summaries, one call a
    review and item, always go ahead."""
    least_new: int = Field(LEAST_NEW, ge=1)
    """See offline.rewriting."""
    new_share: float = Field(NEW_SHARE, ge=0)
    far: Annotated[float, Field(ge=-1, le=1)] = FAR

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.least_new, self.new_share, self.far)

    @property
    def quiet(self) -> Quiet:
        return Quiet(round(self.debounce_seconds * 1000), round(self.most_wait_seconds * 1000))
