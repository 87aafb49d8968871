from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.alignment import HISTORY, LETTERS, AlignmentStage, Judge, choice_schema
from offline.calls import Call, Likelihood, Model, request_body
from offline.dataset import Dataset, write_interactions, write_jsonl
from offline.domains import load_domain
from offline.errors import DatasetError
from offline.flight import Outcome
from offline.judgements import Event, Judgement, earlier
from offline.places import Place, position_bias
from offline.records import Alignment, Interaction, Item, ItemPersonas, ItemSummary, Review, ReviewAspects
from offline.stages import run
from reranker.records import Persona, persona_id

BOOKS = load_domain("books")


def persona(item_id: str, name: str) -> Persona:
    return Persona(persona_id(item_id, name, "d", "r"), name, "d", "r", ("r1",))


PERSONAS = tuple(persona("b4", name) for name in ("one", "two", "three", "four"))
JUDGEMENT = Judgement("u", Event("b4", "Target. About it."), PERSONAS, (Event("b1", "First. Sea.", ("r1",)),))


def stage(judge: Judge = "choice", **settings: Any) -> AlignmentStage:
    return AlignmentStage(BOOKS, judge, **settings)


def choosing(letters: str) -> list[Any]:
    return [choice_schema(4).model_validate({"persona": letter, "reason": f"because {letter}"}) for letter in letters]


@pytest.mark.parametrize("judge", ["choice", "likelihood"])
def test_a_prompt_has_a_bounded_length_whatever_other_peoples_files_hold(judge: Judge) -> None:
    """20,000 characters are about 5,000 tokens, of 8,192."""
    endless = "word " * 20_000
    personas = tuple(Persona(f"b4:{n}", f"Kind {n}", endless, endless, ("r1",)) for n in range(26))
    judgement = Judgement("u", Event("b4", endless), personas, (Event("b1", f"Sea. {endless}"),) * HISTORY)
    for call in stage(judge).calls(judgement):
        assert len(call.messages[-1]["content"] + call.continuation) < 20_000
    shown = stage(judge).calls(judgement)[0].messages[-1]["content"]
    assert all(f"Kind {n}. word" in shown for n in range(26)) or judge == "likelihood"


times = st.one_of(st.none(), st.integers(0, 5))


@given(st.lists(st.tuples(st.integers(0, 6), times), max_size=10), times, st.integers(1, 4))
def test_a_profile_never_holds_the_target_nor_what_came_later(
    others: list[tuple[int, int | None]], time: int | None, most: int
) -> None:
    target = Interaction("u", "0", timestamp=time)
    interactions = [Interaction("u", str(item), timestamp=when) for item, when in others]
    found = earlier(target, [*interactions, target], most)
    assert len(found) <= most
    assert all(one.item_id != "0" for one in found)
    if time is not None:
        assert all(one.timestamp is not None and one.timestamp < time for one in found)
        stamps = [one.timestamp or 0 for one in found]
        assert stamps == sorted(stamps)
        possible = [one for one in interactions if one.item_id != "0" and one.timestamp in range(time)]
        assert len(found) == min(most, len(possible))


def test_without_times_the_last_of_the_file_count() -> None:
    interactions = [Interaction("u", str(number)) for number in range(5)]
    assert earlier(interactions[1], interactions, 3) == tuple(interactions[2:])


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    items = [Item(f"b{n}", f"Book {n}", "About the sea.") for n in range(1, 6)]
    write_jsonl(tmp_path / "items.jsonl", items)
    write_jsonl(tmp_path / "summaries.jsonl", [ItemSummary("b1", "It is about ships.")])
    events = [("u", "b1", 1), ("u", "b2", 2), ("u", "b4", 3), ("u", "b3", 4), ("new", "b4", 9), ("u", "b5", 5)]
    write_interactions(tmp_path / "interactions.csv", [Interaction(u, i, timestamp=t) for u, i, t in events])
    said = [("r1", "b1", "u", "storms"), ("r4", "b4", "u", "SECRET"), ("r3", "b3", "u", "LATER")]
    write_jsonl(tmp_path / "aspects.jsonl", [ReviewAspects(r, i, {"a": text}, u) for r, i, u, text in said])
    alone = ItemPersonas("b5", (persona("b5", "only"),))
    write_jsonl(tmp_path / "personas.jsonl", [ItemPersonas("b4", PERSONAS), alone])
    return Dataset.open(tmp_path)


def test_judgements_of_a_dataset(dataset: Dataset) -> None:
    subjects = {one.key: one for one in stage().subjects(dataset)}
    assert set(subjects) == {"u\nb4", "u\nb5", "new\nb4"}
    judgement = subjects["u\nb4"]
    assert [event.item_id for event in judgement.history] == ["b1", "b2"]
    (call,) = stage().calls(judgement)
    prompt = call.messages[1]["content"]
    assert "Book 1. It is about ships. Said of it: storms" in prompt
    assert "Book 2. About the sea." in prompt
    assert "SECRET" not in prompt
    assert "LATER" not in prompt
    assert set(call.tags) == {"user:u", "review:r1"}


def told(dataset: Dataset, key: str = "u\nb4") -> str:
    """Return what the history of a judgement says."""
    (found,) = (one for one in stage().subjects(dataset) if one.key == key)
    return "; ".join(event.text.partition(" Said of it: ")[2] for event in found.history)


def rewrite_aspects(dataset: Dataset, *said: tuple[str, int | None]) -> None:
    """Let user u have said this of b1, at these times."""
    records = [ReviewAspects(f"r{n}", "b1", {"a": text}, "u", None, at) for n, (text, at) in enumerate(said)]
    write_jsonl(dataset.path / "aspects.jsonl", records)


def test_an_event_is_told_with_the_newest_that_was_said_until_the_target_was_chosen(dataset: Dataset) -> None:
    rewrite_aspects(dataset, ("second", 3), ("LATER", 4), ("first", 1))
    assert told(dataset) == "second; "
    rewrite_aspects(dataset, ("LATER", 4), ("LATER TOO", 9))
    assert told(dataset) == "; "
    rewrite_aspects(dataset, ("at no time", None), ("LATER", 4))
    assert told(dataset) == "at no time; "


def test_a_target_without_a_time_is_told_all_that_was_said_last(dataset: Dataset) -> None:
    rewrite_aspects(dataset, ("second", 4), ("first", 1))
    untimed = [replace(one, timestamp=None) for one in dataset.interactions()]
    write_interactions(dataset.path / "interactions.csv", untimed)
    assert told(dataset).startswith("second; ")


def test_aspects_that_say_no_time_have_that_of_their_review(dataset: Dataset) -> None:
    rewrite_aspects(dataset, ("first", None), ("LATER", None))
    reviews = [Review(f"r{n}", "u", "b1", "Words.", timestamp=at) for n, at in enumerate((1, 9))]
    write_jsonl(dataset.path / "reviews.jsonl", reviews)
    assert told(dataset) == "first; "


def test_who_chose_nothing_before_is_passed_over_and_an_only_persona_needs_no_judge(dataset: Dataset) -> None:
    subjects = {one.key: one for one in stage().subjects(dataset)}
    for key in ("new\nb4", "u\nb5"):
        assert stage().calls(subjects[key]) == ()
    passed_over = stage().made(subjects["new\nb4"], ())
    assert (passed_over.record, passed_over.problems) == (None, ())
    assert passed_over.counts == {"interactions with none before them": 1}
    record = stage().made(subjects["u\nb5"], ()).record
    assert isinstance(record, Alignment)
    assert record.history == ("b1", "b2", "b4", "b3")


def test_a_dataset_without_personas_is_told_what_to_do(dataset: Dataset) -> None:
    (dataset.path / "personas.jsonl").unlink()
    with pytest.raises(DatasetError, match="persona4rec personas"):
        list(stage().subjects(dataset))


def test_a_dataset_without_interactions_is_told_so(dataset: Dataset) -> None:
    (dataset.path / "interactions.csv").unlink()
    (dataset.path / "reviews.jsonl").unlink(missing_ok=True)
    with pytest.raises(DatasetError, match="has no interactions"):
        list(stage().subjects(dataset))


def test_without_interactions_reviews_count_as_such(dataset: Dataset) -> None:
    interactions = list(dataset.interactions())
    wanted = {judgement.key for judgement in stage().subjects(dataset)}
    (dataset.path / "interactions.csv").unlink()
    reviews = [
        Review(f"r{number}", one.user_id, one.item_id, "Words.", timestamp=one.timestamp)
        for number, one in enumerate(interactions)
    ]
    write_jsonl(dataset.path / "reviews.jsonl", reviews)
    assert {judgement.key for judgement in stage().subjects(dataset)} == wanted != set()


def test_a_choice_stands_as_long_as_the_personas_it_was_made_among(dataset: Dataset) -> None:
    def answers(calls: Iterable[Call[Any]]) -> Iterator[Outcome[Any]]:
        return (Outcome(call.key, choosing("B")[0]) for call in calls)

    assert (run(stage(), dataset, answers).done, run(stage(), dataset, answers).stale) == (2, 0)
    write_interactions(
        dataset.path / "interactions.csv", [*dataset.interactions(), Interaction("u", "b9", timestamp=2)]
    )
    assert run(stage(), dataset, answers).stale == 0, "the user went on choosing"
    alone = ItemPersonas("b5", (persona("b5", "only"),))
    write_jsonl(dataset.path / "personas.jsonl", [ItemPersonas("b4", (*PERSONAS[1:], persona("b4", "new"))), alone])
    report = run(stage(), dataset, answers)
    assert (report.stale, report.before, report.done) == (1, 1, 1)


def test_more_personas_than_letters_are_cut_off(dataset: Dataset) -> None:
    many = tuple(persona("b4", str(number)) for number in range(30))
    write_jsonl(dataset.path / "personas.jsonl", [ItemPersonas("b4", many)])
    (judgement,) = (one for one in stage().subjects(dataset) if one.history)
    assert judgement.personas == many[:26]
    assert len(stage("orders").calls(judgement)) == 26


def test_orders_are_drawn_from_the_seed_and_put_each_persona_anywhere() -> None:
    drawn = [stage(seed=seed).orders(JUDGEMENT)[0] for seed in range(200)]
    assert drawn == [stage(seed=seed).orders(JUDGEMENT)[0] for seed in range(200)]
    first = Counter(order[0].name for order in drawn)
    assert set(first) == {"one", "two", "three", "four"}
    assert min(first.values()) > 25


def test_the_letter_names_the_persona_that_was_shown_by_it() -> None:
    for seed in range(10):
        (order,) = stage(seed=seed).orders(JUDGEMENT)
        (call,) = stage(seed=seed).calls(JUDGEMENT)
        for letter, one in zip(LETTERS, order, strict=False):
            assert f'<persona letter="{letter}">\n{one.name}. d r' in call.messages[1]["content"]
            record = stage(seed=seed).made(JUDGEMENT, choosing(letter)).record
            made_from = stage().fingerprint(JUDGEMENT)
            assert record == Alignment("u", "b4", one.persona_id, f"because {letter}", ("b1",), made_from)


def test_in_all_rotations_each_persona_stands_at_each_place_once() -> None:
    orders = stage("orders").orders(JUDGEMENT)
    assert len(stage("orders").calls(JUDGEMENT)) == len(orders) == 4
    assert all({order[place] for order in orders} == set(PERSONAS) for place in range(4))


def test_a_judge_that_only_likes_the_first_place_decides_nothing_and_shows() -> None:
    made = stage("orders").made(JUDGEMENT, choosing("AAAA"))
    assert made.counts == {"place 1 of 4 chosen": 4, "judgements that changed with the order": 1}
    assert position_bias(made.counts)[0] == Place(1, 4, 1.0, 0.25)
    drawn = {stage("orders", seed=seed).made(JUDGEMENT, choosing("AAAA")).record for seed in range(100)}
    assert len(drawn) == 4


def test_the_persona_of_most_orders_wins() -> None:
    judging = stage("orders")
    wanted = PERSONAS[2]
    places = "".join(LETTERS[order.index(wanted)] for order in judging.orders(JUDGEMENT))
    for wrong in range(2):
        letters = places[:2] + places[2:].translate(str.maketrans(LETTERS[:4], "BCDA")) if wrong else places
        record = judging.made(JUDGEMENT, choosing(letters)).record
        assert isinstance(record, Alignment)
        assert record.persona_id == wanted.persona_id


def test_bias_is_measured_over_items_of_all_sizes() -> None:
    counts = {"place 1 of 2 chosen": 3, "place 2 of 2 chosen": 1, "place 4 of 4 chosen": 4, "null slots": 9}
    first, second, third, fourth = position_bias(counts)
    assert first == Place(1, 3, 3 / 8, (4 / 2 + 4 / 4) / 8)
    assert (second.chosen, third.chosen) == (1, 0)
    assert fourth == Place(4, 4, 1.0, 0.25)
    assert position_bias({}) == []


def test_the_likelihood_of_the_history_decides() -> None:
    judging = stage("likelihood")
    calls = judging.calls(JUDGEMENT)
    assert [call.continuation for call in calls] == ["First. Sea."] * 4
    for call, one in zip(calls, PERSONAS, strict=True):
        assert one.name in call.messages[0]["content"]
        assert request_body(call, Model("m"))["prompt"].endswith("one book a line:\nFirst. Sea.")
    answers = [Likelihood(log_likelihood=score, tokens=5) for score in (-9.0, -3.5, -2.0, -8.0)]
    record = judging.made(JUDGEMENT, answers).record
    assert isinstance(record, Alignment)
    assert record.persona_id == PERSONAS[2].persona_id
    assert "1.5 nats" in record.justification
