"""`persona4rec worker`: opens what the worker needs, runs it until SIGTERM, and closes it."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import chain

from offline.adapter_files import load_embedder
from offline.aspects import AspectsStage
from offline.dataset import Dataset
from offline.domains import load_domain
from offline.encoder import Embedder, Encoder, load_encoder
from offline.errors import ConfigurationError
from offline.evidence import PIECE_CHARACTERS
from offline.item_publisher import ItemPublisher
from offline.llm_cache import CACHE_FILE, ResponseCache
from offline.llm_settings import LlmSettings, NoLlm, llm_source
from offline.personas import PersonasStage
from offline.publish import documents
from offline.reasoning import Reasoning
from offline.records import Review, ReviewAspects
from offline.refresh import Bounds, Refresh
from offline.sentences import cut
from offline.summaries import SummariesStage
from offline.worker import Worker
from offline.worker_events import TOPICS
from offline.worker_metrics import WorkerMetrics
from offline.worker_settings import WorkerSettings
from offline.worker_state import WorkerState
from reranker.dead_letters import DeadLetters
from reranker.feed import FeedWriter
from reranker.health import Health, serve_monitoring
from reranker.ingest_process import parse_replay, stop_on_signals, watch_dead_letters
from reranker.kafka import KafkaSettings, group_consumer
from reranker.personas_milvus import MilvusPersonaStore
from reranker.records import Manifest

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0
"""How long one request to an LLM is tried for, before the worker says that it is stuck and tries anew: well within the
300 s that Kafka lets a consumer be busy."""

TIMEOUT_SECONDS = 180.0
"""Of a loop that does not turn: as long as one request to an LLM may take, while nothing else is heard."""

SEED_REVIEWS = 1000
"""Of one transaction."""


def work(settings: WorkerSettings, kafka: KafkaSettings, llm: LlmSettings) -> None:
    """Keep personas up with reviews until SIGTERM or SIGINT; then finish the batch, commit, leave the group.

    Raises what opening raises: BrokerUnavailableError, WorkerStateError, EncoderError, EndpointError, DatasetError,
    IndexUnavailableError; ConfigurationError for settings that cannot be used. Later outages are waited out.
    """
    replay_from = parse_replay(settings.replay, datetime.now(UTC))
    stop = stop_on_signals()
    metrics = WorkerMetrics()
    health = Health(patience=max(kafka.session_seconds * 2, TIMEOUT_SECONDS))
    metrics.healthy.set_function(lambda: 0 if health.told else 1)
    with ExitStack() as stack:
        port = serve_monitoring(settings.host, settings.metrics_port, metrics.registry, health)
        reasoning = stack.enter_context(opened_reasoning(settings, llm, metrics))
        encoder, embedder = _encoders(settings)
        state = stack.enter_context(closing(WorkerState(settings.state, encoder.space)))
        if settings.dataset:
            seed(state, Dataset.open(settings.dataset))
        letters = stack.enter_context(closing(DeadLetters(kafka)))
        refresh = stack.enter_context(_refresh(settings, kafka, state, reasoning, encoder, embedder, metrics))
        consumer = group_consumer(kafka, settings.group, settings.max_batch)
        stack.callback(consumer.close, timeout_ms=round(settings.stop_seconds * 1000))
        aspects = AspectsStage(refresh.personas.domain)
        worker = Worker(
            consumer,
            state,
            reasoning,
            aspects,
            refresh,
            embedder,
            letters,
            metrics,
            health,
            kafka,
            settings,
            replay_from,
        )
        stack.enter_context(closing(worker))
        _announce(settings, kafka, port)
        watch_dead_letters(kafka, TOPICS, metrics, stop)
        worker.run(stop)
    log.info("stopped")


def seed(state: WorkerState, dataset: Dataset) -> None:
    """Take over what a dataset has of items and reviews that are new to the state, personas and all.

    Of reviews, those with aspects; without a file of aspects, all of them by their own words, as personas are written.
    """
    batch: list[tuple[Review, ReviewAspects]] = []
    for found in _reviews(dataset):
        batch.append(found)
        if len(batch) == SEED_REVIEWS:
            state.seed_reviews(batch)
            batch = []
    state.seed_reviews(batch)
    erased = state.erased_reviews(chain(dataset.reviews(), dataset.aspects()))
    for document in documents(dataset):
        # The dataset may be older than an erasure, and an item of it new here.
        personas = [persona for persona in document.personas if erased.isdisjoint(persona.evidence)]
        state.seed(document.item, document.summary, personas)


def _reviews(dataset: Dataset) -> Iterator[tuple[Review, ReviewAspects]]:
    reviews = {review.review_id: review for review in dataset.reviews()}
    if not dataset.has("aspects"):
        for review in reviews.values():
            said = {"review": cut(f"{review.title}. {review.text}" if review.title else review.text, PIECE_CHARACTERS)}
            yield review, ReviewAspects(review.review_id, review.item_id, dict(said), review.user_id)
        return
    for aspects in dataset.aspects():
        own = Review(
            aspects.review_id, aspects.user_id or "", aspects.item_id, "", "", aspects.rating, aspects.timestamp
        )
        yield reviews.get(aspects.review_id, own), aspects


def _encoders(settings: WorkerSettings) -> tuple[Encoder, Embedder]:
    """Return what measures personas, and what embeds for index and histories: the same but for an adapter."""
    encoder = load_encoder(settings.encoder)
    if settings.adapter is None:
        return encoder, encoder
    return encoder, load_embedder(settings.encoder, settings.adapter)


@contextmanager
def opened_reasoning(settings: WorkerSettings, llm: LlmSettings, metrics: WorkerMetrics) -> Iterator[Reasoning]:
    source = llm_source(settings.llm)
    replies = settings.state.with_name(CACHE_FILE)
    if isinstance(source, NoLlm):
        # Of a time with an LLM: erasures reach them, too.
        with ResponseCache(replies) if replies.exists() else nullcontext() as cache:
            yield Reasoning(None, metrics, cache)
        return
    _require_no_budget(llm)
    # Here, because they take seconds to load, and most tests and demos do without.
    from offline.endpoints import opened
    from offline.llm import LlmClient

    bounded = llm.model_copy(update={"patience_seconds": min(llm.patience_seconds, PATIENCE_SECONDS)})
    with ResponseCache(replies) as cache, opened(source, bounded) as endpoint:
        yield Reasoning(LlmClient(endpoint, cache, bounded), metrics)


def _require_no_budget(llm: LlmSettings) -> None:
    """Raise ConfigurationError for a budget of one run: each handful of the worker's calls would get it anew."""
    for name in ("budget", "token_budget"):
        if getattr(llm, name) is not None:
            raise ConfigurationError(
                f"PERSONA4REC_LLM_{name.upper()} is of one run of a stage, which the worker's work is not: unset it. "
                "PERSONA4REC_WORKER_TOKENS_PER_HOUR and PERSONA4REC_WORKER_REWRITES_PER_HOUR bound what it rewrites"
            )


@contextmanager
def _refresh(
    settings: WorkerSettings,
    kafka: KafkaSettings,
    state: WorkerState,
    reasoning: Reasoning,
    encoder: Encoder,
    embedder: Embedder,
    metrics: WorkerMetrics,
) -> Iterator[Refresh]:
    domain, feed = load_domain(settings.domain), _Feed(kafka)
    with closing(MilvusPersonaStore(settings.milvus_uri, settings.milvus_token.get_secret_value())) as store:
        try:
            yield Refresh(
                state,
                reasoning,
                SummariesStage(domain),
                PersonasStage(domain, encoder),
                ItemPublisher(store, embedder, feed.tell),
                metrics,
                settings.thresholds,
                Bounds(settings.rewrites_per_hour, settings.tokens_per_hour),
                settings.dataset,
            )
        finally:
            feed.close()


class _Feed:
    """A FeedWriter for a long life: one that met dead brokers gives up on them, and the next one tries again."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._writer = FeedWriter(kafka)

    def tell(self, manifests: Iterable[Manifest]) -> None:
        if self._writer.untold:
            self.close()
            self._writer = FeedWriter(self._kafka)
        self._writer.tell(manifests)

    def close(self) -> None:
        self._writer.close()


def _announce(settings: WorkerSettings, kafka: KafkaSettings, port: int) -> None:
    log.info(
        "from %s as group %s into %s and Milvus at %s, LLM %s, replay %s",
        kafka.bootstrap,
        settings.group,
        settings.state,
        settings.milvus_uri,
        settings.llm,
        settings.replay,
    )
    log.info("metrics on http://%s:%d/metrics, health on http://%s:%d/health", *(settings.host, port) * 2)
