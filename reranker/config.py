"""Every setting of the server, each documented where it stands.

Read from, the later winning: the defaults here, environment variables (PERSONA4REC_GRPC_PORT=...), and the flags of
`persona4rec serve`.
"""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from reranker.feedback import Feedback

Port = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(ge=0, le=1)]


class Limits(BaseSettings):
    """What one request may ask for; beyond it the answer is INVALID_ARGUMENT."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_MAX_", frozen=True)

    candidates: int = Field(1000, ge=1)
    """Of one request: scoring 1,000 costs about 1 ms, what a page can wait for."""
    history_events: int = Field(200, ge=1)
    """Of an inline history: as many as the store keeps."""
    id_bytes: int = Field(256, ge=1, le=256)
    """Of an item, user or event id: what the index can hold."""
    concurrency: int = Field(256, ge=1)
    """Requests of one worker at a time; beyond it RESOURCE_EXHAUSTED. At 1 ms each, a queue of a quarter second."""
    label_bytes: int = Field(64, ge=1)
    """Of a variant or kind."""
    message_bytes: int = Field(1 << 20, ge=1024)
    """Of one request: 1,000 candidates with the longest ids are 0.3 MB."""


class ServerSettings(BaseSettings):
    """What `persona4rec serve` runs with."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_", frozen=True)

    host: str = "127.0.0.1"
    """Address to listen on; plain text until certificates are set, so not open to the network by default."""
    grpc_port: Port = 50051
    """0 takes a free port and prints it."""
    metrics_port: Port = 9464
    """Prometheus metrics over HTTP, /metrics; 0 takes a free port and prints it."""
    milvus_uri: str = "http://127.0.0.1:19530"
    milvus_token: SecretStr = SecretStr("")
    index: Path = Path("index")
    """The directory that Milvus is read into and all workers map; made if it is not there."""
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Serving processes that share the port: one a core."""
    histories: str = Field("histories.sqlite", min_length=1)
    """The user histories: a SQLite file, made if it is not there, or redis://HOST:PORT/DB, rediss://, redis+cluster://."""
    generator: Path | None = None
    """A directory that `persona4rec candidates train` wrote; without it Recommend is not served."""
    space: str | None = None
    """The embedding space the index must be of; without it the index's own is taken."""
    fusion_weight: Share = 0.5
    """Share of the persona score in the fused score: chosen for each catalogue by `persona4rec evaluate --tune`."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Decay of the profile for each step back in the history (eq. 7)."""
    history_length: Annotated[int, Field(ge=1, le=200)] = 20
    """Newest events that make the profile (L in eq. 4)."""
    refresh_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How often Milvus is asked for newer manifests."""
    stale_seconds: Annotated[float, Field(gt=0)] = 60.0
    """With no answer from Milvus for this long, answers are marked INDEX_STALE: a dozen failed refreshes in a row."""
    connection_age_seconds: Annotated[float, Field(gt=0)] = 300.0
    """After it a client is asked to connect anew, so that long-lived clients spread over new workers."""
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    """On SIGTERM, how long requests in flight may take to finish."""
    limits: Limits = Field(default_factory=Limits)
    feedback: Feedback = Field(default_factory=Feedback)
    """What ratings and kinds of events weigh in the profile."""


class IngestSettings(BaseSettings):
    """What `persona4rec ingest` runs with, beside `reranker.kafka.KafkaSettings`."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_INGEST_", frozen=True, populate_by_name=True)

    group: str = Field("persona4rec-ingest", min_length=1)
    """The consumer group: processes of one group share the partitions."""
    histories: str = Field("histories.sqlite", min_length=1, validation_alias="PERSONA4REC_HISTORIES")
    """Path of a SQLite file, or redis://HOST:PORT/DB, rediss://..., redis+cluster://...; as the server reads it."""
    host: str = "127.0.0.1"
    """Address of /metrics and /health."""
    metrics_port: Port = 9465
    """0 takes a free port and prints it."""
    max_batch: int = Field(2000, ge=1)
    """Events of one write: at 2,000 the commit to disk is a twentieth of it, and a full batch takes about 0.1 s."""
    replay: str = "committed"
    """Where to start: committed (where the group left off), earliest, a duration back like 2h, or ISO 8601."""
    stop_seconds: Annotated[float, Field(gt=0)] = 10.0
    """On SIGTERM, how long the last commit may take."""
