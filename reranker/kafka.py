"""Kafka as the project uses it: the topics, how to reach the brokers, consumers that share a group, a producer."""

from collections.abc import Callable
from typing import Any, Literal

from kafka import KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import KafkaError
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from reranker.errors import BrokerUnavailableError

# Keyed by user_id.
INTERACTIONS = "interactions"
ASPECTS = "aspects"
ERASURES = "erasures"
# Keyed by item_id.
REVIEWS = "reviews"
ITEMS = "items"
PUBLISHED = "published"

INPUTS = (INTERACTIONS, ASPECTS, ERASURES, REVIEWS, ITEMS)
"""What platforms, and for aspects the worker, send; each has its DLQ."""

DLQ_SUFFIX = ".dlq"
"""After an input topic's name: where its records go that cannot be used."""

# Dead records carry the original and headers, so they may be a little larger than what the brokers let in; the limit of
# a `.dlq` topic (max.message.bytes) should be above that of its input. Kafka's default for both is 1 MiB.
MAX_REQUEST_BYTES = 16 << 20
# How long a start waits for a broker to answer, and a send to be acknowledged, before the brokers count as away.
ANSWER_SECONDS = 10.0
# A broker that was stopped is tried again this often at the latest; the library's own 30 s would show in the lag.
RECONNECT_SECONDS = 2.0
# How long a broker may hold a fetch while there is nothing new. Some look for news only when it is over: with the
# library's 500 ms the produced-to-readable p99 was 285 ms on the tests' broker, with 25 ms it was 68 ms. An idle
# consumer sends 20 requests a second for it.
FETCH_WAIT_MS = 50


class KafkaSettings(BaseSettings):
    """How to reach the brokers. Environment variables: PERSONA4REC_KAFKA_BOOTSTRAP and so on."""

    model_config = SettingsConfigDict(env_prefix="PERSONA4REC_KAFKA_", frozen=True)

    bootstrap: str = "127.0.0.1:9092"
    """host:port of one broker or several, with commas between them."""
    topic_prefix: str = ""
    """Put before every topic's name, where clusters are shared."""
    session_seconds: float = Field(45.0, gt=0)
    """Without a sign of life for this long a consumer's partitions go to others; Kafka's own default."""
    heartbeat_seconds: float = Field(3.0, gt=0)
    """Between signs of life, a third of session_seconds at most; Kafka's own default."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ssl_cafile: str | None = None
    """PEM file with the authorities to trust; the system's without it."""
    ssl_certfile: str | None = None
    """PEM file with this client's certificate, where the brokers ask for one."""
    ssl_keyfile: str | None = None
    ssl_password: str | None = Field(None, repr=False)
    """Of the key file."""
    ssl_check_hostname: bool = True
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: str | None = Field(None, repr=False)

    def topic(self, name: str) -> str:
        """Return a topic's name on these brokers."""
        return self.topic_prefix + name


class Claims(CooperativeStickyAssignor):  # type: ignore[misc]
    """Deals out partitions by what each consumer has, and lets its own claim nothing that it has lost.

    The library's remembers its last assignment beyond the loss of it. A process that was frozen for longer than its
    session then claims what others have by now, and some partitions are left to nobody (seen with kafka-python 3.0.12).
    """

    def __init__(self) -> None:
        super().__init__()
        self.owned: Callable[[], Any] = tuple
        """Gives what the consumer has now."""

    def metadata(self, topics: Any) -> Any:
        self.member_assignment = list(self.owned())
        return super().metadata(topics)


def group_consumer(settings: KafkaSettings, group: str, max_records: int) -> Any:
    """Return a consumer that shares its topics with the others of the group. It commits when told to, not before.

    Rebalances are cooperative: partitions that stay with a process are consumed throughout.
    Raises BrokerUnavailableError if no broker answers.
    """
    claims = Claims()
    consumer = _reached(
        settings,
        lambda: KafkaConsumer(
            **_common(settings),
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=[claims],
            max_poll_records=max_records,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            session_timeout_ms=round(settings.session_seconds * 1000),
            heartbeat_interval_ms=round(settings.heartbeat_seconds * 1000),
        ),
    )
    claims.owned = consumer.assignment
    return consumer


def reader(settings: KafkaSettings) -> Any:
    """Return a consumer of no group, to read given partitions from their beginning. Raises BrokerUnavailableError."""
    return _reached(
        settings, lambda: KafkaConsumer(**_common(settings), enable_auto_commit=False, auto_offset_reset="earliest")
    )


def follower(settings: KafkaSettings, answer_seconds: float) -> Any:
    """Return a consumer of no group that waits for what is new; where it has lost its place, it reads all again.

    `answer_seconds` is how long the brokers may take to answer. Raises BrokerUnavailableError.
    """
    return _reached(
        settings,
        lambda: KafkaConsumer(
            **_common(settings) | {"bootstrap_timeout_ms": round(answer_seconds * 1000)},
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
        ),
    )


def producer(settings: KafkaSettings, linger_seconds: float = 0.0) -> Any:
    """Return an idempotent producer that waits for all replicas. Raises BrokerUnavailableError.

    `linger_seconds` is how long a record may wait for others to be sent with it.
    """
    return _reached(
        settings,
        lambda: KafkaProducer(
            **_common(settings),
            linger_ms=round(linger_seconds * 1000),
            # Sixteen times the library's default: a batch a partition is then rarely full before its linger is over.
            batch_size=1 << 18,
            max_request_size=MAX_REQUEST_BYTES,
            max_block_ms=round(ANSWER_SECONDS * 1000),
            delivery_timeout_ms=round(ANSWER_SECONDS * 1000),
            request_timeout_ms=round(ANSWER_SECONDS * 500),
        ),
    )


def _reached(settings: KafkaSettings, connect: Callable[[], Any]) -> Any:
    try:
        return connect()
    except KafkaError as error:
        raise BrokerUnavailableError(
            f"no Kafka broker can be used at {settings.bootstrap}: {type(error).__name__}. "
            "Is PERSONA4REC_KAFKA_BOOTSTRAP right, and do the brokers accept this client's protocol and credentials?"
        ) from error


def _common(settings: KafkaSettings) -> dict[str, Any]:
    return {
        "bootstrap_servers": [address.strip() for address in settings.bootstrap.split(",")],
        "bootstrap_timeout_ms": round(ANSWER_SECONDS * 1000),
        "client_id": "persona4rec",
        "reconnect_backoff_max_ms": round(RECONNECT_SECONDS * 1000),
        "security_protocol": settings.security_protocol,
        "ssl_cafile": settings.ssl_cafile,
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
        "ssl_password": settings.ssl_password,
        "ssl_check_hostname": settings.ssl_check_hostname,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password,
    }
