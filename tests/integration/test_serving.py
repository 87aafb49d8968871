"""What the server answers to good requests, over the wire."""

import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from candidate_gen.implicit_models import load
from reranker.client import CallError, RankingOptions
from reranker.config import ServerSettings
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.profile import build_profile
from reranker.records import Event, HistoryStore
from reranker.scoring import Fusion, Rules, Scores, rerank
from reranker.v1 import reranker_pb2 as pb
from tests.integration.conftest import NEWCOMERS, Published
from tests.integration.processes import Server, eventually, serving

pytestmark = pytest.mark.integration

DEFAULTS = ServerSettings()
NOT_A_BOOK = "a-book-nobody-has"

Scored = Sequence[tuple[str, float | None]]


@pytest.fixture(scope="module")
def store(histories: Path) -> Iterator[HistoryStore]:
    with closing(SqliteHistoryStore(histories)) as opened:
        yield opened


@pytest.fixture(scope="module")
def candidates(published: Published) -> Scored:
    """Give every book, and one that is none, with scores: some equal, some missing."""
    chance = random.Random(0)
    scores = [*range(20), *range(20), *(None for _ in range(25))]
    chance.shuffle(scores)
    return list(zip([*published.item_ids, NOT_A_BOOK], scores, strict=True))


def ids(response: pb.RerankResponse) -> list[str]:
    return [item.item_id for item in response.items]


def first_stage_order(candidates: Scored) -> list[str]:
    ordered = sorted(candidates, key=lambda pair: -np.inf if pair[1] is None else pair[1], reverse=True)
    return [item_id for item_id, _ in ordered]


def as_array(candidates: Scored) -> Scores:
    return np.array([np.nan if score is None else score for _, score in candidates], np.float32)


@pytest.mark.parametrize("weight", [None, 0.3])
@pytest.mark.parametrize("user", ["hana", "kofi", "priya", "newcomer"])
def test_a_rerank_is_what_the_same_index_gives_in_process(
    server: Server, published: Published, store: HistoryStore, candidates: Scored, user: str, weight: float | None
) -> None:
    index, events = published.index, store.read(user, DEFAULTS.history_length) or ()
    profile = build_profile(events, index, DEFAULTS.gamma)
    places = index.locate([item_id for item_id, _ in candidates])
    expected = rerank(
        index, profile.vector, places, as_array(candidates), DEFAULTS.fusion_weight if weight is None else weight
    )

    response = server.client.rerank(user, candidates, fusion_weight=weight)

    assert ids(response) == [candidates[place][0] for place in expected.order]
    assert response.index_generation == index.generation
    assert response.profile_watermark == max(event.event_time for event in events)
    for rank, (place, item) in enumerate(zip(expected.order.tolist(), response.items, strict=True), start=1):
        assert (item.rank, item.rank_before) == (rank, expected.ranks_before[place])
        assert item.score == pytest.approx(expected.scores[place], abs=1e-5)
        assert (item.first_stage_score if item.HasField("first_stage_score") else None) == candidates[place][1]
        winner = index.single.persona(expected.winners[place]) if expected.winners[place] >= 0 else b""
        assert item.HasField("persona") == bool(winner)
        if winner:
            assert item.persona_score == pytest.approx(expected.persona_scores[place], abs=1e-5)
            assert item.persona == pb.Persona.FromString(winner)
            assert item.persona == published.persona(item.persona.persona_id)


def test_without_explanations_the_ranking_is_the_same(server: Server, candidates: Scored) -> None:
    explained = server.client.rerank("hana", candidates)
    bare = server.client.rerank("hana", candidates, explain=False)
    assert ids(bare) == ids(explained)
    assert [item.score for item in bare.items] == [item.score for item in explained.items]
    assert [item.reason for item in bare.items] == [item.reason for item in explained.items]
    assert sum(item.HasField("persona") for item in explained.items) == 63
    assert not any(item.HasField("persona") for item in bare.items)


def test_top_k_is_the_head_of_the_whole(server: Server, candidates: Scored) -> None:
    whole = server.client.rerank("hana", candidates)
    assert len(whole.items) == 65
    for top_k in (1, 20, 65, 1000):
        assert list(server.client.rerank("hana", candidates, top_k=top_k).items) == list(whole.items)[:top_k]


def test_excluded_items_are_left_out_before_anything_is_scored(server: Server, candidates: Scored) -> None:
    excluded = [item_id for item_id, _ in candidates[:10]]
    response = server.client.rerank("hana", candidates, exclude_item_ids=[*excluded, "unheard-of"])
    assert list(response.items) == list(server.client.rerank("hana", candidates[10:]).items)
    everything = [item_id for item_id, _ in candidates]
    nothing = server.client.rerank("hana", candidates, exclude_item_ids=everything)
    assert (list(nothing.items), list(nothing.degraded)) == ([], [])


def test_weight_0_is_the_first_stage_and_weight_1_the_personas(server: Server, candidates: Scored) -> None:
    scored = [(item_id, score) for item_id, score in candidates if score is not None]
    assert ids(server.client.rerank("hana", scored, fusion_weight=0)) == first_stage_order(scored)
    by_persona = server.client.rerank("hana", scored, fusion_weight=1).items
    assert [item.item_id for item in by_persona] != first_stage_order(scored)
    similarities = [item.persona_score for item in by_persona if item.HasField("persona_score")]
    assert similarities == sorted(similarities, reverse=True)


@pytest.mark.parametrize(
    ("told", "rules"),
    [
        ({"fusion": pb.FUSION_RECIPROCAL_RANK}, Rules(fusion=Fusion.RECIPROCAL_RANK)),
        ({"fusion": pb.FUSION_PERSONA}, Rules(fusion=Fusion.PERSONA)),
        ({"diversity": 0.7}, Rules(diversity=0.7)),
    ],
    ids=["reciprocal ranks", "persona", "diversity"],
)
def test_a_request_chooses_how_it_is_ordered(
    server: Server, published: Published, store: HistoryStore, candidates: Scored, told: RankingOptions, rules: Rules
) -> None:
    index, events = published.index, store.read("hana", DEFAULTS.history_length) or ()
    profile = build_profile(events, index, DEFAULTS.gamma).vector
    places = index.locate([item_id for item_id, _ in candidates])
    expected = rerank(index, profile, places, as_array(candidates), DEFAULTS.fusion_weight, rules)
    found = ids(server.client.rerank("hana", candidates, **told))
    assert found == [candidates[place][0] for place in expected.order]
    assert found != ids(server.client.rerank("hana", candidates))


def test_a_boost_lifts_an_item_and_leaves_its_reason(server: Server, candidates: Scored) -> None:
    plain = server.client.rerank("hana", candidates).items
    last = plain[-1]
    lifted = server.client.rerank("hana", candidates, boosts={last.item_id: 10.0, "of no candidate": 5.0}).items[0]
    assert (lifted.item_id, lifted.persona, lifted.rank_before) == (last.item_id, last.persona, last.rank_before)
    assert lifted.score == pytest.approx(last.score + 10, abs=1e-5)


def test_constant_or_absent_scores_let_the_personas_rank_alone(server: Server, published: Published) -> None:
    by_persona = ids(server.client.rerank("hana", [(i, None) for i in published.item_ids], fusion_weight=1))
    for score in (None, 7.5):
        response = server.client.rerank("hana", [(i, score) for i in published.item_ids], fusion_weight=0.01)
        assert ids(response) == by_persona


def test_a_history_sent_along_takes_the_place_of_the_stored_one(server: Server, candidates: Scored) -> None:
    events = [
        pb.HistoryEvent(item_id=e.item_id, event_time=e.event_time, event_id=e.event_id, kind=e.kind, rating=e.rating)
        for e in NEWCOMERS["newcomer"]
    ]
    stored = server.client.rerank("newcomer", candidates)
    for user in ("newcomer", "hana", ""):
        sent = server.client.rerank(user, candidates, history=pb.History(events=events))
        assert list(sent.items) == list(stored.items)
        assert sent.profile_watermark == stored.profile_watermark == 1_700_000_001_000
    assert ids(stored) != ids(server.client.rerank("hana", candidates))


def test_the_variant_comes_back(server: Server) -> None:
    assert server.client.rerank("hana", [("dracula", None)], variant="b \N{SNOWMAN}").variant == "b \N{SNOWMAN}"
    assert server.client.recommend("hana", variant="b").ranking.variant == "b"


def test_the_stages_of_an_answer_add_up(server: Server, candidates: Scored) -> None:
    timings = server.client.rerank("hana", candidates).timings
    stages = [timings.history_us, timings.profile_us, timings.score_us, timings.reply_us]
    assert all(stages)
    assert timings.generate_us == 0
    assert sum(stages) <= timings.total_us
    assert server.client.recommend("hana").ranking.timings.generate_us > 0


INLINE_EMPTY = {"history": pb.History()}
INLINE_UNKNOWN = {"history": pb.History(events=[pb.HistoryEvent(item_id=NOT_A_BOOK, event_time=5)])}


@pytest.mark.parametrize(
    ("user", "options", "degraded"),
    [
        pytest.param("nobody", {}, pb.DEGRADATION_UNKNOWN_USER, id="unknown user"),
        pytest.param("hana", INLINE_EMPTY, pb.DEGRADATION_EMPTY_HISTORY, id="empty history"),
        pytest.param("hana", INLINE_UNKNOWN, pb.DEGRADATION_HISTORY_WITHOUT_VECTORS, id="history sent, no vectors"),
        pytest.param("stranger", {}, pb.DEGRADATION_HISTORY_WITHOUT_VECTORS, id="history stored, no vectors"),
    ],
)
def test_without_a_profile_the_first_stage_order_stands(
    server: Server,
    published: Published,
    user: str,
    options: dict[str, Any],
    degraded: "pb.Degradation.ValueType",
) -> None:
    scored: Scored = [(item_id, float(n % 7)) for n, item_id in enumerate(published.item_ids)]
    response = server.client.rerank(user, scored, **options)
    assert list(response.degraded) == [degraded]
    assert ids(response) == first_stage_order(scored)
    assert {item.reason for item in response.items} == {pb.ITEM_REASON_NO_PROFILE}
    assert [item.rank for item in response.items] == [item.rank_before for item in response.items]
    assert all(item.score == item.first_stage_score for item in response.items)
    assert not any(item.HasField("persona") or item.HasField("persona_score") for item in response.items)


def test_an_item_that_is_not_indexed_is_ranked_and_told(server: Server, candidates: Scored) -> None:
    response = server.client.rerank("hana", candidates)
    (unknown,) = [item for item in response.items if item.item_id == NOT_A_BOOK]
    assert list(response.degraded) == [pb.DEGRADATION_ITEMS_NOT_INDEXED]
    assert unknown.reason == pb.ITEM_REASON_NOT_INDEXED
    assert not unknown.HasField("persona_score")


def test_an_item_without_personas_is_scored_by_its_summary(
    server: Server, published: Published, candidates: Scored
) -> None:
    response = server.client.rerank("hana", candidates)
    (cold,) = [item for item in response.items if item.item_id == published.without_personas]
    assert cold.reason == pb.ITEM_REASON_SUMMARY_ONLY
    assert cold.HasField("persona_score")
    assert not cold.HasField("persona")
    others = [item for item in response.items if item.HasField("persona")]
    assert {item.reason for item in others} == {pb.ITEM_REASON_UNSPECIFIED}


def test_one_candidate_and_no_known_candidate_are_ranked(server: Server) -> None:
    assert ids(server.client.rerank("hana", [("dracula", 2.5)])) == ["dracula"]
    unknown = server.client.rerank("hana", [("x", 1.0), ("y", 2.0)])
    assert ids(unknown) == ["y", "x"]
    assert {item.reason for item in unknown.items} == {pb.ITEM_REASON_NOT_INDEXED}


def test_a_history_store_that_breaks_leaves_the_first_stage_order(
    tmp_path: Path, published: Published, histories: Path, generator: Path, candidates: Scored
) -> None:
    mine = Path(shutil.copy(histories, tmp_path / "histories.sqlite"))
    whole = mine.read_bytes()
    with serving(tmp_path, published.uri, mine, f"--generator={generator}") as server:
        with mine.open("r+b") as file:
            file.truncate(100)
        response = server.client.rerank("hana", candidates)
        assert pb.DEGRADATION_HISTORY_UNAVAILABLE in response.degraded
        assert pb.DEGRADATION_EMPTY_HISTORY not in response.degraded
        assert ids(response) == first_stage_order(candidates)
        recommended = server.client.recommend("hana", 5)
        assert list(recommended.ranking.degraded) == [pb.DEGRADATION_HISTORY_UNAVAILABLE]
        assert len(recommended.ranking.items) == 5
        with pytest.raises(CallError, match=r"UNAVAILABLE.*histories\.sqlite"):
            server.client.user_profile("hana")
        with mine.open("r+b") as file:
            file.write(whole)
        eventually(lambda: not server.client.recommend("hana").ranking.degraded, "the histories' return")


def test_recommend_reranks_what_the_generator_proposes(
    server: Server, published: Published, store: HistoryStore, generator: Path
) -> None:
    events = store.read("hana", 200) or ()
    seen = [event.item_id for event in events]
    proposed = load(generator).generate("hana", 30, history=seen)
    response = server.client.recommend("hana", 12, candidates=30)
    assert response.generator == "als"
    expected = server.client.rerank(
        "hana", list(zip(proposed.item_ids, proposed.scores.tolist(), strict=True)), top_k=12
    )
    assert list(response.ranking.items) == list(expected.items)
    assert not {item.item_id for item in response.ranking.items} & set(seen)
    assert list(response.ranking.degraded) == []


def test_recommend_gives_ten_by_default_and_no_more_than_there_are(server: Server, published: Published) -> None:
    assert len(server.client.recommend("hana").ranking.items) == 10
    everything = server.client.recommend("hana", 1000).ranking
    seen = {event.event.item_id for event in server.client.user_profile("hana").events}
    assert {item.item_id for item in everything.items} == set(published.item_ids) - seen
    best = ids(everything)[0]
    assert best not in ids(server.client.recommend("hana", 1000, exclude_item_ids=[best]).ranking)


def test_recommend_for_a_user_the_generator_does_not_know(server: Server) -> None:
    newcomer = server.client.recommend("newcomer", 20).ranking
    assert list(newcomer.degraded) == [pb.DEGRADATION_CANDIDATES_FROM_HISTORY]
    assert not {event.item_id for event in NEWCOMERS["newcomer"]} & set(ids(newcomer))
    assert all(item.HasField("persona") or item.reason == pb.ITEM_REASON_SUMMARY_ONLY for item in newcomer.items)
    nobody = server.client.recommend("nobody").ranking
    assert list(nobody.degraded) == [pb.DEGRADATION_UNKNOWN_USER, pb.DEGRADATION_CANDIDATES_POPULAR]
    assert len(nobody.items) == 10


def test_a_limit_on_inline_histories_is_none_on_what_a_user_has_seen(
    tmp_path: Path, published: Published, histories: Path, generator: Path
) -> None:
    limited = f"--generator={generator}"
    with serving(tmp_path, published.uri, histories, limited, workers=1, MAX_HISTORY_EVENTS="1") as server:
        recommended = server.client.recommend("newcomer", 1000).ranking
    assert not {event.item_id for event in NEWCOMERS["newcomer"]} & set(ids(recommended))


def test_what_a_user_disliked_is_neither_recommended_nor_looked_for(server: Server, store: HistoryStore) -> None:
    store.merge({"grumbler": [Event("e1", "dracula", 1, "dislike"), Event("e2", "emma", 2, "", 1.0)]})
    ranking = server.client.recommend("grumbler", 1000).ranking
    assert list(ranking.degraded) == [pb.DEGRADATION_CANDIDATES_POPULAR, pb.DEGRADATION_HISTORY_WITHOUT_VECTORS]
    assert not {"dracula", "emma"} & set(ids(ranking))


def test_a_profile_says_what_it_is_made_of(server: Server, published: Published, store: HistoryStore) -> None:
    events = store.read("hana", DEFAULTS.history_length) or ()
    profile = build_profile(events, published.index, DEFAULTS.gamma)
    response = server.client.user_profile("hana", include_vector=True)
    assert [shared.event.event_id for shared in response.events] == [event.event_id for event in events]
    np.testing.assert_allclose([shared.weight for shared in response.events], profile.weights, rtol=1e-5)
    assert {shared.source for shared in response.events} >= {pb.VECTOR_SOURCE_ASPECTS, pb.VECTOR_SOURCE_ITEM}
    assert profile.vector is not None
    np.testing.assert_allclose(response.vector, profile.vector, atol=1e-6)
    assert (response.user_id, response.stored_events) == ("hana", store.count("hana"))
    assert response.embedding_space == published.index.space
    assert len(server.client.user_profile("hana").vector) == 0


def test_an_event_comes_back_as_it_was_stored(server: Server) -> None:
    response = server.client.user_profile("newcomer")
    by_id = {shared.event.event_id: shared.event for shared in response.events}
    assert list(by_id) == ["n2", "n1", "n3"]
    assert by_id["n1"] == pb.HistoryEvent(
        item_id="dracula", event_time=1_700_000_000_000, kind="read", rating=5, event_id="n1"
    )
    assert not by_id["n2"].HasField("rating")


def test_an_event_without_a_vector_weighs_nothing(server: Server) -> None:
    response = server.client.user_profile("stranger", include_vector=True)
    (only,) = response.events
    assert (only.weight, only.source, list(response.vector)) == (0, pb.VECTOR_SOURCE_UNSPECIFIED, [])
    assert response.profile_watermark == 1_700_000_000_000


def test_the_profile_of_an_unknown_user_is_not_found(server: Server) -> None:
    with pytest.raises(CallError) as refused:
        server.client.user_profile("nobody")
    assert refused.value.code == grpc.StatusCode.NOT_FOUND


def test_the_personas_of_items_as_they_were_published(server: Server, published: Published) -> None:
    asked = [*reversed(published.item_ids), NOT_A_BOOK, published.item_ids[0]]
    answered = server.client.item_personas(asked).items
    assert [item.item_id for item in answered] == asked
    by_id = {document.item.item_id: document for document in published.documents}
    for item in answered:
        document = by_id.get(item.item_id)
        assert item.found == (document is not None)
        if document:
            assert (item.title, item.summary) == (document.item.title, document.summary)
            assert [p.persona_id for p in item.personas] == [p.persona_id for p in document.personas]
            assert [tuple(p.evidence) for p in item.personas] == [p.evidence for p in document.personas]
    assert answered[-2] == pb.ItemPersonas(item_id=NOT_A_BOOK)


def test_info_says_what_is_served(server: Server, published: Published) -> None:
    info = server.client.info()
    index, limits = published.index, DEFAULTS.limits
    assert (info.index_version, info.index_generation) == (index.version, index.generation)
    assert (info.items, info.personas) == (64, sum(len(d.personas) for d in published.documents))
    assert (info.embedding_space, info.dimension) == (index.space, 384)
    assert (info.generator, info.history_length) == ("als", DEFAULTS.history_length)
    assert info.fusion_weight == pytest.approx(DEFAULTS.fusion_weight)
    assert info.gamma == pytest.approx(DEFAULTS.gamma)
    assert (info.limits.candidates, info.limits.history_events) == (limits.candidates, limits.history_events)
    assert (info.limits.id_bytes, info.limits.label_bytes) == (limits.id_bytes, limits.label_bytes)
    assert info.limits.message_bytes == limits.message_bytes
    assert info.server_version
    assert info.index_loaded_at > 1_700_000_000_000
