"""Every setting of the server, each documented where it stands.

Read from, the later winning: the defaults here, the file of `--config` (TOML; deploy/reranker.example.toml has every
setting), environment variables (PERSONA4REC_GRPC_PORT=...), and the flags of `persona4rec serve`.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from reranker import switch
from reranker.feedback import Feedback
from reranker.settings_table import Table

Port = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(ge=0, le=1)]


class Limits(Table):
    """What one request, connection or worker may take. Where nothing else is said, more is INVALID_ARGUMENT."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_MAX_", frozen=True)

    candidates: int = Field(1000, ge=1)
    """Of one request: scoring 1,000 costs about 1 ms, what a page can wait for."""
    history_events: int = Field(200, ge=1)
    """Of an inline history: as many as the store keeps."""
    id_bytes: int = Field(256, ge=1, le=256)
    """Of an item, user or event id: what the index can hold."""
    concurrency: int = Field(256, ge=1)
    """Requests of one worker at a time: at 1 ms each, a queue of a quarter second. Beyond it RESOURCE_EXHAUSTED; but as
    many may wait in gRPC's own queue, and beyond that it can only answer CANCELLED: retry both, with a pause."""
    label_bytes: int = Field(64, ge=1)
    """Of a variant or kind."""
    message_bytes: int = Field(1 << 20, ge=1024)
    """Of one request: 1,000 candidates with the longest ids are 0.3 MB. Beyond it RESOURCE_EXHAUSTED."""
    connection_streams: int = Field(100, ge=1)
    """Requests of one connection at a time; its client holds back the others. The least that RFC 9113 (6.5.2)
    recommends, and few enough that one connection whose reader is stuck does not take a worker's whole concurrency."""


class Tls(Table):
    """Certificates, PEM files; read anew when they change. Without them the server speaks plain text."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_TLS_", frozen=True)

    certificate: Path | None = None
    """The server's certificate, those of intermediate authorities after it."""
    key: Path | None = None
    """The certificate's private key, not encrypted."""
    client_ca: Path | None = None
    """Authorities whose certificates clients must show (mTLS); without it clients need none."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both, or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs certificate and key: clients can only be asked for one over TLS")
        return self


class ServedLogSettings(Table):
    """A sampled record of what was answered, for training and experiments."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_SERVED_LOG_", frozen=True)

    to: str = ""
    """A file of JSON lines that all workers append to, or kafka:TOPIC on the brokers of kafka_bootstrap. Empty:
    nothing is recorded."""
    share: Share = 0.01
    """Of answers. A record of 100 candidates is about 7 kB, and up to 1 ms of a worker's processor."""
    users: Literal["hashed", "given", "none"] = "hashed"
    """How the user's id is told. Files live longer and travel further than histories do, so not as it is by default."""
    hash_key: SecretStr = SecretStr("")
    """Key of the hash. Without one, whoever has a list of ids can tell which user a hash means."""
    file_bytes: int = Field(100 << 20, ge=1 << 20)
    """Size at which a file becomes FILE.1, that one FILE.2, ...: what an editor or jq still opens."""
    files: int = Field(5, ge=1)
    """How many of those are kept beside the current one."""
    queue: int = Field(1000, ge=1)
    """Records of a worker that wait to be written; beyond it they are dropped and counted. About 10 MB."""


class TracingSettings(Table):
    """Traces (OpenTelemetry), for those who follow one slow page through all its services."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_TRACING_", frozen=True)

    endpoint: str = Field("", pattern=r"^(https?://\S+)?$")
    """Base URL of a collector that takes OTLP over HTTP, as http://127.0.0.1:4318. Empty: nothing is traced."""
    share: Share = 0.01
    """Of the requests that come without a trace; where there is one (the header traceparent), it says whether it is
    sampled. One that is traced costs a worker a millisecond of processor."""


TABLES: dict[str, type[Table]] = {
    "limits": Limits,
    "tls": Tls,
    "served_log": ServedLogSettings,
    "tracing": TracingSettings,
    "feedback": Feedback,
}
"""The tables of the settings file."""


class ServerSettings(BaseSettings):
    """What `persona4rec serve` runs with."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_", frozen=True)

    config: Path | None = None
    """The TOML file that settings were read from."""
    host: str = "127.0.0.1"
    """Address to listen on, of IPv6 without brackets; plain text until certificates are set, so not open to the network
    by default."""
    grpc_port: Port = 50051
    """0 takes a free port and prints it."""
    metrics_port: Port = 9464
    """Prometheus metrics over HTTP, /metrics; 0 takes a free port and prints it."""
    milvus_uri: str = "http://127.0.0.1:19530"
    """Where Milvus answers."""
    milvus_token: SecretStr = SecretStr("")
    """TOKEN or USER:PASSWORD, where Milvus asks for one; better an environment variable than a line of a file."""
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
    """How often Milvus is asked for newer manifests, or with a change feed only whether it and the brokers answer."""
    kafka_bootstrap: str | None = None
    """Brokers of the change feed `published`, host:port with commas between them; without it there is none to follow.
    How to reach them otherwise: PERSONA4REC_KAFKA_..., reranker/kafka.py."""
    scan_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How often Milvus is asked for newer manifests although there is a feed: how long a change stays unseen whose
    publisher died before its record was written. Each time Milvus looks through the generations of all manifests."""
    scrub_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 86400.0
    """How often every byte of the index is read against its checksum, at the start first: a day, for disks lose blocks
    rarely, and a start may follow a crash. At the lowest priority, a second of processor for each GB or so."""
    merge_seconds: Annotated[float, Field(gt=0)] = 604800.0
    """How long what was replaced or deleted, an erased user's words among it, may stay in the index directory: a week,
    of the month that the GDPR (article 12.3) leaves. A merge then writes the index anew: 8 GB for a million items, a
    minute in which no change is taken in. Each server draws a time from the last quarter of it, so that not all do at
    once."""
    stale_seconds: Annotated[float, Field(gt=0)] = 60.0
    """With no refresh done for this long, answers are marked INDEX_STALE: a dozen of them failed in a row. A million
    items take as long to be read as a new version, or to be merged: what is published meanwhile is in no answer, and
    they say so."""
    connection_age_seconds: Annotated[float, Field(gt=0)] = 300.0
    """After it a client is asked to connect anew, so that long-lived clients spread over new workers."""
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    """On SIGTERM, how long requests in flight may take to finish."""
    keepalive_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How often a silent connection is asked whether its client still lives; one that does not answer is closed. Below
    the minutes after which load balancers forget a connection."""
    deadline_short_seconds: Annotated[float, Field(ge=0)] = 0.003
    """With less than this left of the caller's deadline the first stage's order is answered: the p99 of scoring and
    writing an answer, which is longer than its caller would wait. 0 never does."""
    switch_file: Path | None = None
    """The kill switch: while this file is there, every answer is the first stage's order. Without a path:
    `switched-off` in the index directory."""
    token_file: Path | None = None
    """Bearer tokens, one a line (# begins a comment), read anew when the file changes; without it clients need none.
    A Check of health needs none in either case: probes have none."""
    log_format: Literal["text", "json"] = "text"
    """Of the log on stderr: lines for people, or one JSON object a line."""
    log_share: Share = 0.0
    """Of requests that leave a line in the log: method, status, time, request id. Metrics count all of them."""
    served_log: ServedLogSettings = Field(default_factory=ServedLogSettings)
    """What is recorded of answers."""
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    """Where traces go."""
    tls: Tls = Field(default_factory=Tls)
    """Encryption."""
    limits: Limits = Field(default_factory=Limits)
    feedback: Feedback = Field(default_factory=Feedback)
    """What ratings and kinds of events weigh in the profile."""

    def address(self, port: int) -> str:
        """Return where a port of this host is, as URLs and gRPC write it."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @property
    def switch_path(self) -> Path:
        """The file of the kill switch."""
        return self.switch_file or self.index / switch.NAME

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file is named by one of the flags, or by the environment variable PERSONA4REC_CONFIG.
        given = init_settings.init_kwargs if isinstance(init_settings, InitSettingsSource) else {}
        file = given.get("config") or os.environ.get("PERSONA4REC_CONFIG")
        # Tables that nobody sets are made all the same, with the others, so that all that is wrong is told at once.
        tables = InitSettingsSource(settings_cls, {table: {} for table in TABLES})
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file), tables


class IngestSettings(BaseSettings):
    """What `persona4rec ingest` runs with, beside `reranker.kafka.KafkaSettings`."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_INGEST_", frozen=True, populate_by_name=True)

    group: str = Field("persona4rec-ingest", min_length=1)
    """The consumer group: processes of one group share the partitions."""
    histories: str = Field("histories.sqlite", min_length=1, validation_alias="PERSONA4REC_HISTORIES")
    """Path of a SQLite file, or redis://HOST:PORT/DB, rediss://..., redis+cluster://...; as the server reads it."""
    host: str = "127.0.0.1"
    """Address of /metrics and /health. /health is for readiness probes, not for liveness: it is 503 until the process
    has joined its group, and while broker or histories are away, which no restart mends."""
    metrics_port: Port = 9465
    """0 takes a free port and prints it; each process of a host needs its own."""
    max_batch: int = Field(2000, ge=1)
    """Events of one write: at 2,000 the commit to disk is a twentieth of it, and a full batch takes about 0.1 s."""
    replay: str = "committed"
    """Where to start: committed (where the group left off), earliest, a duration back like 2h, or ISO 8601; never later
    than committed."""
    stop_seconds: Annotated[float, Field(gt=0)] = 10.0
    """On SIGTERM, how long the last commit may take."""
