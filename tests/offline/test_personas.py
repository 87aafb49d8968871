"""The personas stage: what it asks, what becomes of an answer, and what it does without an LLM."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.dataset import Dataset, Item, ItemPersonas, ItemSummary, Review, ReviewAspects, write_jsonl
from offline.decisions import Decision, decide
from offline.domains import load_domain
from offline.encoder import Encoder
from offline.evidence import PROMPT_CHARACTERS, ItemEvidence, Piece, persona_count, put_forward, shown
from offline.evidence_by_item import evidence
from offline.extractive import extractive_aspects, extractive_summary, sentences
from offline.persona_checks import words
from offline.personas import PersonasStage, Subject, personas_schema
from offline.stages import Made, run_without_llm
from offline.summaries import LONGEST_DESCRIPTION, LONGEST_TITLE
from offline.text import summary_of
from reranker.records import Persona
from tests.offline.encoders import Hashed
from tests.offline.written import to_be_written

BOOKS = load_domain("books")
ITEM = Item("moby", "Moby-Dick", "A captain hunts a whale. It ends badly. Few survive. One tells.")
PIECES = (
    Piece(
        "r1", "The whale hunt is thrilling, the storms are grand", "The whale hunt is thrilling, the storms are grand"
    ),
    Piece("r2", "Ishmael's humour kept me laughing", "Ishmael's humour kept me laughing"),
    Piece("r3", "Endless chapters about ropes bored me", "Endless chapters about ropes bored me", "u3", critical=True),
)
HUNT = {
    "evidence": [1],
    "name": "Storm and Hunt Seeker",
    "description": "Looks for danger at sea and for weather that threatens everybody.",
    "preference_rationale": "This persona appreciates this book because the whale hunt thrills and storms are grand.",
}
ROPES = {
    "evidence": [3],
    "name": "Impatient Plot Follower",
    "description": "Wants a story to move and skips what does not serve it.",
    "preference_rationale": "This persona is wary of this book because endless chapters about ropes are boring.",
}


@pytest.fixture(scope="module")
def stage(encoder: Encoder) -> PersonasStage:
    return PersonasStage(BOOKS, encoder)


def subject(*pieces: Piece, decisions: tuple[Decision, ...] = ()) -> Subject:
    return Subject(ItemEvidence(ITEM, "A captain hunts a whale.", pieces or PIECES), decisions)


def made(stage: PersonasStage, about: Subject, *personas: Mapping[str, Any]) -> Made:
    return stage.made(about, [personas_schema(1, 7).model_validate({"personas": personas})])


def personas_of(found: Made) -> tuple[Persona, ...]:
    return found.record.personas if isinstance(found.record, ItemPersonas) else ()


def test_a_call_shows_numbered_reviews_and_which_are_critical(stage: PersonasStage) -> None:
    (call,) = stage.calls(subject())
    data = call.messages[1]["content"]
    assert '<review number="1">\nThe whale hunt' in data
    assert '<review number="3" opinion="critical">' in data
    assert "r1" not in data
    assert set(call.tags) == {"review:r1", "review:r2", "review:r3", "user:u3"}


def test_one_review_is_good_for_one_persona_and_several_for_two_at_least(stage: PersonasStage) -> None:
    alone, several = stage.calls(subject(PIECES[0]))[0].schema, stage.calls(subject())[0].schema
    alone.model_validate({"personas": [HUNT]})
    with pytest.raises(ValueError, match="at least 2"):
        several.model_validate({"personas": [HUNT]})


def test_numbers_become_review_ids(stage: PersonasStage) -> None:
    found = made(stage, subject(), HUNT, ROPES)
    assert {p.name: p.evidence for p in personas_of(found)} == {HUNT["name"]: ("r1",), ROPES["name"]: ("r3",)}
    assert found.problems == ()


def test_a_number_that_was_never_shown_is_noticed(stage: PersonasStage) -> None:
    found = made(stage, subject(), HUNT | {"evidence": [1, 99]}, ROPES | {"evidence": [0]})
    assert [p.evidence for p in personas_of(found)] == [("r1",)]
    assert [problem.reason for problem in found.problems] == ["evidence invented", "evidence invented", "no evidence"]


def test_an_item_of_which_nothing_is_left_has_no_record(stage: PersonasStage) -> None:
    found = made(stage, subject(), HUNT | {"evidence": [2]})
    assert found.record is None
    assert [problem.reason for problem in found.problems] == ["not supported by its evidence"]


def test_only_items_with_other_evidence_are_written_anew(tmp_path: Path, stage: PersonasStage) -> None:
    dataset = to_be_written(tmp_path, 3)
    run_without_llm(stage, dataset)
    before = {entry.item_id: entry for entry in dataset.personas()}
    assert (len(before), run_without_llm(stage, dataset).stale) == (3, 0)
    more = Review("more", "u", "i1", "A gentle romance in a lighthouse, told in letters that never arrive.")
    write_jsonl(tmp_path / "reviews.jsonl", [*dataset.reviews(), more])
    report = run_without_llm(stage, Dataset.open(tmp_path))
    assert (report.stale, report.before, report.done) == (1, 2, 1)
    after = {entry.item_id: entry for entry in dataset.personas()}
    assert [item_id for item_id in before if after[item_id] != before[item_id]] == ["i1"]
    assert any("more" in persona.evidence for persona in after["i1"].personas)


def items_in(dataset: Dataset) -> list[str]:
    return [json.loads(line)["item_id"] for line in (dataset.path / "personas.jsonl").read_text().splitlines()]


def test_nothing_is_left_of_reviews_that_were_deleted(tmp_path: Path, stage: PersonasStage) -> None:
    dataset = to_be_written(tmp_path, 20)
    # Above 5 % of the lines lose all their reviews, and as many again one of their two.
    marked = {f"r{n}-{k}": k == 1 and n >= 3 for n in range(6) for k in (0, 1)}
    gone = {review_id for review_id, stays in marked.items() if not stays}
    reviews = [replace(r, text=f"Zanzibar {r.text}") if r.review_id in gone else r for r in dataset.reviews()]
    write_jsonl(tmp_path / "reviews.jsonl", reviews)
    run_without_llm(stage, dataset)
    assert "Zanzibar" in (tmp_path / "personas.jsonl").read_text()
    write_jsonl(tmp_path / "reviews.jsonl", [review for review in reviews if review.review_id not in gone])
    assert {p.item_id for p in dataset.personas()} >= {f"i{n}" for n in range(6, 20)}, "before they are made anew"
    report = run_without_llm(stage, dataset)
    assert (report.gone, report.stale, report.done, report.before) == (3, 3, 3, 14)
    assert sorted(items_in(dataset)) == sorted(f"i{n}" for n in range(3, 20))
    assert len(list(dataset.personas())) == 17
    told = [path.read_text() for path in tmp_path.iterdir() if path.name != "reviews.jsonl"]
    assert not any("Zanzibar" in text for text in told)
    assert (again := run_without_llm(stage, dataset)).before == 17
    assert (again.gone, again.stale, again.done) == (0, 0, 0)


def test_of_two_lines_of_an_item_the_one_whose_reviews_are_gone_goes(tmp_path: Path, stage: PersonasStage) -> None:
    dataset = to_be_written(tmp_path, 3)
    reviews = list(dataset.reviews())
    run_without_llm(stage, dataset)
    path = tmp_path / "personas.jsonl"
    before = path.read_text()
    write_jsonl(
        tmp_path / "reviews.jsonl", [replace(review, review_id=f"new {review.review_id}") for review in reviews]
    )
    run_without_llm(stage, dataset)
    anew = path.read_text()
    assert set(before.splitlines()).isdisjoint(anew.splitlines())
    path.write_text(before + anew)
    assert run_without_llm(stage, dataset).before == 3
    assert path.read_text() == anew


def test_what_an_editor_blocked_does_not_come_back_in_other_words(stage: PersonasStage) -> None:
    hunt = personas_of(made(stage, subject(), HUNT))[0]
    reworded = HUNT | {"name": "Seeker of Storms and Hunts"}
    found = made(stage, subject(decisions=(Decision("block", "moby", hunt),)), reworded, ROPES)
    assert [p.name for p in personas_of(found)] == [ROPES["name"]]


def test_pieces_that_do_not_fit_are_represented_cluster_by_cluster() -> None:
    praise = [Piece(f"p{n}", "x" * 100, "") for n in range(50)]
    other = [Piece("odd", "x" * 100, ""), *(Piece(f"c{n}", "x" * 100, "", critical=True) for n in range(2))]
    vectors = np.zeros((53, 3), np.float32)
    vectors[:50, 0], vectors[50, 1], vectors[51:, 2] = 1, 1, 1
    vectors[:50, 1] = np.linspace(0, 0.2, 50)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    places = put_forward([*praise, *other], vectors, characters=1000)
    assert len(places) <= 10
    assert 50 in places, "the one that says something else"
    assert {51, 52} & set(places), "a critical one"
    assert put_forward(praise[:5], vectors[:5]) == [0, 1, 2, 3, 4]


def test_what_is_put_forward_fits_with_its_tags_and_every_opinion_is_in_it(stage: PersonasStage) -> None:
    short = [Piece(f"r{n}", f"Five stars {n}", "") for n in range(900)]
    different = [Piece("slow", "Endless chapters about ropes bored me", "", critical=True)]
    (call,) = stage.calls(subject(*short, *different))
    data = call.messages[1]["content"]
    assert len(data) < PROMPT_CHARACTERS + 500
    assert data.count("Five stars") > 20
    assert different[0].text in data


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None, max_examples=20)
def test_no_mixture_of_long_and_short_reviews_outgrows_a_prompt(said: list[tuple[int, bool]]) -> None:
    pieces = [Piece(f"r{n}", "x" * long, "", critical=critical) for n, (long, critical) in enumerate(said)]
    vectors = Hashed().encode([f"{n}" for n in range(len(pieces))])
    places = put_forward(pieces, vectors, characters=2500)
    assert sum(len(shown(number, pieces[place])) + 1 for number, place in enumerate(places, 1)) <= 2500
    assert {pieces[place].critical for place in places} == {piece.critical for piece in pieces}


def test_a_long_title_and_description_are_cut_in_a_prompt(stage: PersonasStage) -> None:
    long = Item("moby", "Title " * 20_000, "A sentence that goes on. " * 5_000)
    (call,) = stage.calls(Subject(ItemEvidence(long, summary_of(long, None), PIECES)))
    item, _, reviews = call.messages[1]["content"].partition("</item>")
    assert LONGEST_DESCRIPTION < len(item) < LONGEST_DESCRIPTION + LONGEST_TITLE + 20
    assert item.endswith("goes on.\n")
    assert PIECES[0].text in reviews


def test_more_different_evidence_is_good_for_more_personas() -> None:
    same, different = np.tile(np.eye(1, 20, dtype=np.float32), (20, 1)), np.eye(20, dtype=np.float32)
    assert [persona_count(v) for v in (same[:1], same, different[:4], different)] == [1, 2, 3, 7]
    # Of more pieces than dimensions the same comes out another way.
    assert [persona_count(np.repeat(v, 9, axis=0)) for v in (same, different[:4])] == [2, 3]


def test_low_ratings_are_critical_on_the_scale_that_occurs(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "items.jsonl", [ITEM])
    rated = [Review(f"r{n}", "u", "moby", "Words.", rating=n) for n in (1, 2, 3, 4, 5)]
    write_jsonl(tmp_path / "reviews.jsonl", rated)
    (found,) = evidence(Dataset(tmp_path))
    assert [piece.critical for piece in found.pieces] == [True, True, False, False, False]


def test_evidence_comes_item_by_item_from_files_in_any_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "items.jsonl", [Item("a", "A"), Item("none", "N"), Item("b", "B")])
    reviews = [Review(f"{item}{n}", f"u{n}", item, f"Words {n}.", title="T") for n in range(3) for item in "ba"]
    write_jsonl(tmp_path / "reviews.jsonl", reviews)
    write_jsonl(tmp_path / "summaries.jsonl", [ItemSummary("b", "About b.")])
    dataset = Dataset(tmp_path)
    found = list(evidence(dataset))
    assert [(e.item.item_id, [p.review_id for p in e.pieces]) for e in found] == [
        ("a", ["a0", "a1", "a2"]),
        ("b", ["b0", "b1", "b2"]),
    ]
    assert found[1].summary == "About b."
    assert found[0].pieces[1] == Piece("a1", "T. Words 1.", "T. Words 1.", "u1")
    said = [ReviewAspects("b2", "b", {"x": "slow", "y": None}), ReviewAspects("gone", "a", {"x": "fast"})]
    write_jsonl(tmp_path / "aspects.jsonl", [*said, ReviewAspects("a0", "a", {"x": None})])
    assert [e.pieces for e in evidence(dataset)] == [
        (Piece("gone", "fast", "fast "),),
        (Piece("b2", "slow", "slow T. Words 2."),),
    ]


@pytest.fixture
def small(catalogue: Dataset, tmp_path: Path) -> Dataset:
    """Return five items of the demo catalogue without personas."""
    items = list(catalogue.items())[:5]
    chosen = {item.item_id for item in items}
    write_jsonl(tmp_path / "items.jsonl", items)
    write_jsonl(tmp_path / "reviews.jsonl", (r for r in catalogue.reviews() if r.item_id in chosen))
    write_jsonl(tmp_path / "aspects.jsonl", (a for a in catalogue.aspects() if a.item_id in chosen))
    return Dataset(tmp_path)


def test_without_an_llm_every_item_gets_personas_that_the_dataset_accepts(stage: PersonasStage, small: Dataset) -> None:
    report = run_without_llm(stage, small)
    found = list(small.personas())
    assert report.done == len(found) == 5
    assert all(2 <= len(of_item.personas) <= 7 for of_item in found)
    assert not (small.path / "rejects.jsonl").exists()
    assert run_without_llm(stage, small).done == 0


def test_without_an_llm_names_and_addresses_get_into_no_persona_and_cost_none(stage: PersonasStage) -> None:
    said = (
        "My daughter Annabel adored the dragons. Annabel sketched every dragon herself.",
        "Annabel drew dragons all week, my daughter Annabel even dreamt of dragons.",
        "Slow prose, heavy politics and endless councils bored me; councils everywhere.",
        "Write me at john.krakowski@mail.example, the maps and the councils are superb maps.",
    )
    found = stage.extracted(subject(*(Piece(f"r{n}", text, text) for n, text in enumerate(said))))
    stored = " ".join(words(persona) for persona in personas_of(found)).casefold()
    assert len(personas_of(found)) == 2
    assert found.problems == ()
    assert "dragons" in stored
    assert not [secret for secret in ("annabel", "john", "krakowski", "mail", "example") if secret in stored]


def test_the_same_reviews_give_the_same_personas_and_decisions_outlive_a_refresh(
    stage: PersonasStage, small: Dataset
) -> None:
    run_without_llm(stage, small)
    first = {of_item.item_id: of_item.personas for of_item in small.personas()}
    item_id, (blocked, *others) = next(iter(first.items()))
    decide(small.path, Decision("block", item_id, blocked))
    (small.path / "personas.jsonl").unlink()
    run_without_llm(stage, small)
    assert {of_item.item_id: of_item.personas for of_item in small.personas()} == first | {item_id: tuple(others)}


def test_an_extractive_summary_is_the_first_sentences_or_what_there_is() -> None:
    assert extractive_summary(ITEM) == "A captain hunts a whale. It ends badly. Few survive."
    assert extractive_summary(replace(ITEM, description="")) == "Moby-Dick"
    assert extractive_summary(Item("x")) == "x"


def test_extractive_aspects_quote_each_sentence_once_and_leave_the_rest_null() -> None:
    review = Review("r", "u", "moby", "The plot and the characters are superb. I read it aloud to my children. Yes.")
    found = extractive_aspects(review, BOOKS)
    assert list(found) == list(BOOKS.slots)
    assert {*found.values()} == {None, "The plot and the characters are superb.", "I read it aloud to my children."}
    assert list(found.values()).count(None) == len(found) - 2


def test_sentences_end_where_people_end_them() -> None:
    text = 'Mr. Darcy wins! "Truly." Costs 3.50 pounds\nNext line... and on. ???'
    assert sentences(text) == ["Mr. Darcy wins!", '"Truly.', "Costs 3.50 pounds", "Next line... and on."]
