"""What each RPC does: read a history, make a profile, score, order, explain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from time import perf_counter_ns, time

import numpy as np

from candidate_gen.generator import CandidateGenerator, Candidates, Source
from reranker.breaker import Breaker
from reranker.calls import UNTIMED, Call
from reranker.config import Limits, ServerSettings
from reranker.errors import HistoryStoreError, NotServedError, UnknownUserError
from reranker.histories_sqlite import KEEP_EVENTS
from reranker.item_ids import ItemIds, hash_ids
from reranker.live_index import LiveIndex
from reranker.metrics import Metrics
from reranker.profile import build_profile
from reranker.reading import Sent, inline_events, read_candidates, read_rules
from reranker.records import Event, HistoryStore
from reranker.replies import Ranked, profile_events, ranked_items, recommendation
from reranker.scoring import Rules, Scores, rerank
from reranker.served_log import ServedLog, Serving
from reranker.switch import Switch
from reranker.unscored import first_stage_items
from reranker.v1 import reranker_pb2 as pb
from reranker.validation import (
    DEFAULT_N,
    Ranking,
    check_count,
    check_id,
    check_ids,
    check_recommend,
    check_rerank,
)

# What a first stage usually hands on; recall beyond it costs more time than it gains places.
DEFAULT_CANDIDATES = 100

# Stage timings are counted of every so many answers: an observation writes to a shared file, five of them take 25 us.
STAGES_EVERY = 16

Degraded = list["pb.Degradation.ValueType"]


@dataclass(slots=True)
class Stages:
    """A stopwatch of one request."""

    started: int = field(default_factory=perf_counter_ns)
    last: int = field(default_factory=perf_counter_ns)
    micros: dict[str, int] = field(default_factory=dict)

    def mark(self, stage: str) -> None:
        """Count the time since the last mark to this stage."""
        now = perf_counter_ns()
        self.micros[stage] = (now - self.last) // 1000
        self.last = now

    def seconds(self) -> float:
        """Return the time since the start."""
        return (perf_counter_ns() - self.started) / 1e9

    def timings(self) -> pb.StageTimings:
        total = (perf_counter_ns() - self.started) // 1000
        return pb.StageTimings(total_us=total, **{f"{stage}_us": micros for stage, micros in self.micros.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A rerank to be done, wherever its candidates came from."""

    item_ids: ItemIds
    first_stage: Scores
    top_k: int
    explain: bool
    fusion: "pb.Fusion.ValueType"
    weight: float
    rules: Rules
    variant: str
    user_id: str
    call: Call


class RerankerService:
    """The contract of reranker.proto over an index, a history store and, for Recommend, a candidate generator.

    A method a RPC, each from a parsed request to a message or its bytes. None awaits anything: a request takes a
    fraction of a millisecond, less than handing it to a thread would cost. GetItemPersonas of a thousand items
    takes some 40 ms, as the contract says.
    """

    def __init__(
        self,
        settings: ServerSettings,
        live: LiveIndex,
        histories: HistoryStore,
        generator: CandidateGenerator | None,
        metrics: Metrics,
        switch: Switch,
        served_log: ServedLog | None = None,
    ) -> None:
        self._settings = settings
        self._live = live
        self._histories = histories
        self._reads = Breaker(histories)
        self._generator = generator
        self._metrics = metrics
        self._switch = switch
        self._served_log = served_log
        self._answers = 0

    def Rerank(self, sent: Sent, call: Call = UNTIMED) -> bytes:
        stages, request = Stages(), sent.request
        check_rerank(request, self._settings.limits)
        item_ids, first_stage = read_candidates(sent, self._settings.limits)
        ask = self._ask(request, item_ids, first_stage, request.top_k, call)
        unscored = self._unscored(request, call, stages)
        if unscored is not None:
            return self._in_first_stage_order(ask, unscored, stages)
        events, degraded = self._events(request)
        stages.mark("history")
        return self._answer(ask, events, degraded, stages)

    def Recommend(self, request: pb.RecommendRequest, call: Call = UNTIMED) -> bytes:
        stages = Stages()
        generator = self._required_generator()
        check_recommend(request, self._settings.limits)
        seen, degraded = self._stored_events(request.user_id, KEEP_EVENTS)
        stages.mark("history")
        candidates = self._generate(generator, request, seen)
        degraded = [*degraded, *_GENERATED.get(candidates.source, ())]
        ask = self._ask(request, ItemIds.of(candidates.item_ids), candidates.scores, request.n or DEFAULT_N, call)
        stages.mark("generate")
        unscored = self._unscored(request, call, stages)
        if unscored is not None:
            ranking = self._in_first_stage_order(ask, [*degraded, *unscored], stages)
        else:
            ranking = self._answer(ask, seen[: self._settings.history_length], degraded, stages)
        return recommendation(ranking, generator.name)

    def GetUserProfile(self, request: pb.GetUserProfileRequest, _: Call = UNTIMED) -> pb.GetUserProfileResponse:
        check_id("user_id", request.user_id, self._settings.limits)
        events = self._reads.read(request.user_id, self._settings.history_length)
        if events is None:
            raise UnknownUserError("the history store does not know this user_id")
        index = self._live.current
        profile = build_profile(events, index, self._settings.gamma, self._settings.feedback)
        return pb.GetUserProfileResponse(
            user_id=request.user_id,
            events=profile_events(events, profile),
            stored_events=self._histories.count(request.user_id),
            profile_watermark=profile.watermark,
            embedding_space=index.space,
            vector=profile.vector if request.include_vector and profile.vector is not None else (),
        )

    def GetItemPersonas(self, request: pb.GetItemPersonasRequest, _: Call = UNTIMED) -> pb.GetItemPersonasResponse:
        check_count("item_ids", len(request.item_ids), 1, self._settings.limits.candidates)
        check_ids("item_ids", request.item_ids, self._settings.limits)
        index = self._live.current
        return pb.GetItemPersonasResponse(items=map(index.item, request.item_ids))

    def Info(self, request: pb.InfoRequest, _: Call = UNTIMED) -> pb.InfoResponse:  # noqa: ARG002 - a method a RPC, alike
        index, settings = self._live.current, self._settings
        return pb.InfoResponse(
            limits=_limits(settings.limits),
            server_version=version("persona4rec"),
            embedding_space=index.space,
            dimension=index.dimension,
            index_version=index.version,
            index_generation=index.generation,
            items=index.item_count,
            personas=index.persona_count,
            index_loaded_at=index.loaded_at,
            generator=self._generator.name if self._generator else "",
            fusion_weight=settings.fusion_weight,
            gamma=settings.gamma,
            history_length=settings.history_length,
        )

    def _ask(self, request: Ranking, item_ids: ItemIds, first_stage: Scores, top_k: int, call: Call) -> Ask:
        given = request.HasField("fusion_weight")
        return Ask(
            item_ids=item_ids,
            first_stage=first_stage,
            top_k=top_k,
            explain=request.explain if request.HasField("explain") else True,
            fusion=request.fusion,
            weight=request.fusion_weight if given else self._settings.fusion_weight,
            rules=read_rules(request, item_ids, top_k),
            variant=request.variant,
            user_id=request.user_id,
            call=call,
        )

    def _unscored(self, request: Ranking, call: Call, stages: Stages) -> Degraded | None:
        """Return None if the candidates are to be scored, else what that degrades: nothing where the caller asked."""
        if request.fusion == pb.FUSION_FIRST_STAGE:
            return []
        if self._switch.off:
            return [pb.DEGRADATION_SWITCHED_OFF]
        left = call.seconds_left - stages.seconds()
        return [pb.DEGRADATION_DEADLINE_SHORT] if left < self._settings.deadline_short_seconds else None

    def _in_first_stage_order(self, ask: Ask, degraded: Degraded, stages: Stages) -> bytes:
        items = list(first_stage_items(ask.item_ids, ask.first_stage, ask.top_k))
        stages.mark("reply")
        self._count(ask, degraded, stages)
        self._metrics.by_nothing.inc(len(ask.item_ids))
        self._log_served(ask, degraded, None)
        return pb.RerankResponse(
            items=items,
            degraded=degraded,
            index_generation=self._live.current.generation,
            variant=ask.variant,
            timings=stages.timings(),
            request_id=ask.call.request_id,
        ).SerializeToString()

    def _log_served(self, ask: Ask, degraded: Degraded, ranked: Ranked | None) -> None:
        if self._served_log is not None and self._served_log.wants():
            self._served_log.offer(
                Serving(
                    request_id=ask.call.request_id,
                    user_id=ask.user_id,
                    variant=ask.variant,
                    fusion=ask.fusion,
                    weight=ask.weight,
                    top_k=ask.top_k,
                    item_ids=ask.item_ids,
                    first_stage=ask.first_stage,
                    degraded=degraded,
                    index=self._live.current if ranked is None else ranked.index,
                    ranked=ranked,
                )
            )

    def _answer(self, ask: Ask, events: Sequence[Event], degraded: Degraded, stages: Stages) -> bytes:
        index = self._live.current
        # Looked up together: a lookup costs the same for ten items more.
        past = hash_ids([event.item_id for event in events], len(events))
        located = index.find(np.concatenate((past, ask.item_ids.hashes)))
        places, settings = located[len(events) :], self._settings
        profile = build_profile(events, index, settings.gamma, settings.feedback, located[: len(events)])
        stages.mark("profile")
        ranking = rerank(index, profile.vector, places, ask.first_stage, ask.weight, ask.rules)
        stages.mark("score")
        ranked = Ranked.of(index, ask.item_ids, places, ask.first_stage, profile, ranking)
        degraded = [*degraded, *self._shortcomings(ranked, events, degraded)]
        items = ranked_items(ranked, ask.top_k, ask.explain)
        stages.mark("reply")
        self._observe(ask, ranked, degraded, stages)
        self._log_served(ask, degraded, ranked)
        rest = pb.RerankResponse(
            degraded=degraded,
            index_generation=index.generation,
            profile_watermark=profile.watermark,
            variant=ask.variant,
            timings=stages.timings(),
            request_id=ask.call.request_id,
        )
        return items + rest.SerializeToString()

    def _events(self, request: pb.RerankRequest) -> tuple[Sequence[Event], Degraded]:
        if request.HasField("history"):
            return inline_events(request.history, self._settings.history_length), []
        return self._stored_events(request.user_id, self._settings.history_length)

    def _stored_events(self, user_id: str, limit: int) -> tuple[Sequence[Event], Degraded]:
        try:
            events = self._reads.read(user_id, limit)
        except HistoryStoreError:
            return (), [pb.DEGRADATION_HISTORY_UNAVAILABLE]
        return (events, []) if events is not None else ((), [pb.DEGRADATION_UNKNOWN_USER])

    def _shortcomings(
        self, ranked: Ranked, events: Sequence[Event], known: Degraded
    ) -> Iterable["pb.Degradation.ValueType"]:
        if not events and not _NO_HISTORY.intersection(known):
            yield pb.DEGRADATION_EMPTY_HISTORY
        if events and ranked.profile.vector is None:
            yield pb.DEGRADATION_HISTORY_WITHOUT_VECTORS
        if ranked.held < len(ranked.item_ids):
            yield pb.DEGRADATION_ITEMS_NOT_INDEXED
        if self._live.stale:
            yield pb.DEGRADATION_INDEX_STALE

    def _generate(
        self, generator: CandidateGenerator, request: pb.RecommendRequest, seen: Sequence[Event]
    ) -> Candidates:
        weights = self._settings.feedback.weights(seen)
        # What the user saw is not recommended again; only what speaks for its item tells what else to look for.
        liked = [event.item_id for event, weight in zip(seen, weights, strict=True) if weight > 0]
        return generator.generate(
            request.user_id,
            request.candidates or max(DEFAULT_CANDIDATES, request.n),
            history=liked,
            exclude={event.item_id for event in seen}.union(request.exclude_item_ids),
        )

    def _required_generator(self) -> CandidateGenerator:
        if self._generator is None:
            raise NotServedError(
                "this server has no candidate generator: start it with --generator DIR, "
                "a directory that `persona4rec candidates train` wrote"
            )
        return self._generator

    def _count(self, ask: Ask, degraded: Degraded, stages: Stages) -> None:
        self._answers += 1
        if ask.call.trace:
            ask.call.trace.tell(stages.micros, map(_reason, degraded))
        if self._answers % STAGES_EVERY == 0:
            for stage, micros in stages.micros.items():
                self._metrics.stage(stage).observe(micros / 1e6)
        for reason in degraded:
            self._metrics.degraded.labels(_reason(reason)).inc()

    def _observe(self, ask: Ask, ranked: Ranked, degraded: Degraded, stages: Stages) -> None:
        self._count(ask, degraded, stages)
        if self._answers % STAGES_EVERY == 0 and ranked.profile.watermark:
            self._metrics.history_age.observe(max(0.0, time() - ranked.profile.watermark / 1000))
        self._metrics.by_persona.inc(ranked.scored - ranked.by_summary)
        # Nought is most often what there is to add, and adding it takes as long.
        if ranked.by_summary:
            self._metrics.by_summary.inc(ranked.by_summary)
        if ranked.scored < len(ranked.item_ids):
            self._metrics.by_nothing.inc(len(ranked.item_ids) - ranked.scored)


_NO_HISTORY: frozenset["pb.Degradation.ValueType"] = frozenset(
    {pb.DEGRADATION_UNKNOWN_USER, pb.DEGRADATION_HISTORY_UNAVAILABLE}
)
_GENERATED: dict[Source, Degraded] = {
    Source.HISTORY: [pb.DEGRADATION_CANDIDATES_FROM_HISTORY],
    Source.POPULAR: [pb.DEGRADATION_CANDIDATES_POPULAR],
}


def _reason(degradation: "pb.Degradation.ValueType") -> str:
    return pb.Degradation.Name(degradation).removeprefix("DEGRADATION_").lower()


def _limits(limits: Limits) -> pb.Limits:
    return pb.Limits(
        candidates=limits.candidates,
        history_events=limits.history_events,
        id_bytes=limits.id_bytes,
        label_bytes=limits.label_bytes,
        message_bytes=limits.message_bytes,
    )
