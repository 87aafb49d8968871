"""Every setting of the server, each documented where it stands.

Read from, the later winning: the defaults here, environment variables (PERSONA4REC_GRPC_PORT=...), and the flags of
`persona4rec serve`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    milvus_token: str = Field("", repr=False)
    histories: Path = Path("histories.sqlite")
    """The SQLite file with the user histories; made if it is not there."""
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
    drain_seconds: Annotated[float, Field(ge=0)] = 10.0
    """On SIGTERM, how long requests in flight may take to finish."""
    limits: Limits = Field(default_factory=Limits)
