"""An editor's decisions: they hold for what a refresh writes anew, and for whoever publishes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.dataset import Dataset, Item, ItemPersonas, Review, write_jsonl
from offline.decisions import Decision, decide, decided, decided_personas, decisions, edited, same_words
from offline.errors import DatasetError
from offline.publish import documents
from reranker.records import Persona, persona_id


def persona(name: str, *evidence: str, description: str = "", rationale: str = "") -> Persona:
    of = {"Ishmael": "whales and sermons", "Ahab": "vengeance without rest", "Queequeg": "quiet loyal friendship"}
    words = name, description or f"Looks for {of[name]}.", rationale or f"{name} praises {of[name]} beyond measure."
    return Persona(persona_id("moby", *words), *words, evidence or ("r1",))


ISHMAEL, AHAB, QUEEQUEG = persona("Ishmael"), persona("Ahab", "r2"), persona("Queequeg", "r3")


def never(one: Persona, other: Persona) -> bool:
    return False


def always(one: Persona, other: Persona) -> bool:
    return True


def test_blocked_goes_and_its_likeness_too() -> None:
    again = persona("Ishmael", "r2", rationale="Ishmael praises whales and sermons of all kinds.")
    taken = [Decision("block", "moby", ISHMAEL)]
    assert decided([ISHMAEL, AHAB], taken, None, never) == (AHAB,)
    assert decided([again, AHAB], taken, None, same_words) == (AHAB,)


def test_pinned_comes_back_in_place_of_its_likeness_with_the_evidence_of_both() -> None:
    again = persona("Ishmael", "r2", rationale="Ishmael praises whales and sermons of all kinds.")
    (kept,) = decided([again], [Decision("pin", "moby", ISHMAEL)], None, same_words)
    assert kept.persona_id == ISHMAEL.persona_id
    assert kept.evidence == ("r1", "r2")


def test_edited_words_replace_what_a_refresh_writes_and_what_was_replaced_is_remembered(tmp_path: Path) -> None:
    new = edited("moby", ISHMAEL, "Narrator", "Tells the tale.", "Survives to tell it.")
    decide(tmp_path, Decision("edit", "moby", ISHMAEL, new, by="ed"))
    (read,) = decisions(tmp_path)
    assert (read.persona, read.replacement, read.by) == (ISHMAEL, new, "ed")
    assert new.persona_id == persona_id("moby", "Narrator", "Tells the tale.", "Survives to tell it.")
    assert decided([ISHMAEL, AHAB], [read], None, never) == (AHAB, new)
    assert decided([AHAB], [read], None, never) == (AHAB, new)


def test_the_later_decision_holds() -> None:
    taken = [Decision("block", "moby", ISHMAEL), Decision("pin", "moby", ISHMAEL)]
    assert decided([AHAB], taken, None, never) == (AHAB, ISHMAEL)
    assert decided([AHAB, ISHMAEL], taken[::-1], None, never) == (AHAB,)


def test_evidence_that_is_gone_goes_and_takes_a_persona_without_any_with_it() -> None:
    both = persona("Ishmael", "r1", "r2")
    assert decided([both], [Decision("pin", "moby", both)], {"r2"}, never)[0].evidence == ("r2",)
    assert decided([AHAB], [Decision("pin", "moby", both)], set(), never) == ()


def test_words_out_of_a_review_that_is_gone_do_not_come_back() -> None:
    both = persona("Ishmael", "r1", "r2")
    partly = edited("moby", both, "Narrator", both.description, "Survives to tell it.")
    wholly = edited("moby", both, "Narrator", "Tells the tale.", "Survives to tell it.")
    assert decided([QUEEQUEG], [Decision("pin", "moby", both)], {"r1", "r3"}, always) == (QUEEQUEG,)
    assert decided([], [Decision("edit", "moby", both, partly)], {"r1"}, never) == ()
    assert [p.name for p in decided([], [Decision("edit", "moby", both, wholly)], {"r1"}, never)] == ["Narrator"]


def test_a_later_decision_takes_the_place_of_what_an_edit_made() -> None:
    first, second = (edited("moby", ISHMAEL, name, "Tells the tale.", "Survives.") for name in ("First", "Second"))
    to_first, to_second = Decision("edit", "moby", ISHMAEL, first), Decision("edit", "moby", ISHMAEL, second)
    assert decided([ISHMAEL], [to_first, to_second], None, never) == (second,)
    assert decided([ISHMAEL], [to_first, Decision("pin", "moby", ISHMAEL)], None, never) == (ISHMAEL,)
    assert decided([ISHMAEL], [to_first, Decision("block", "moby", ISHMAEL)], None, never) == ()
    assert decided([ISHMAEL], [to_first, Decision("edit", "moby", first, second)], None, never) == (second,)


CREW = st.sampled_from([ISHMAEL, AHAB, QUEEQUEG])
TAKEN = st.builds(
    lambda action, about: Decision(
        action, "moby", about, edited("moby", about, f"{about.name} anew", "d", "r") if action == "edit" else None
    ),
    st.sampled_from(["block", "pin", "edit"]),
    CREW,
)


@given(st.lists(CREW, unique=True), st.lists(TAKEN, max_size=6))
def test_deciding_again_changes_nothing(found: list[Persona], taken: list[Decision]) -> None:
    once = decided(found, taken, None, same_words)
    twice = decided(once, taken, None, same_words)
    assert {p.persona_id: p.evidence for p in twice} == {p.persona_id: p.evidence for p in once}
    assert len({p.persona_id for p in once}) == len(once)


@pytest.fixture
def catalogue_of_one(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "items.jsonl", [Item("moby", "Moby-Dick")])
    write_jsonl(tmp_path / "reviews.jsonl", [Review(f"r{n}", "u", "moby", "text") for n in (1, 2, 3)])
    write_jsonl(tmp_path / "personas.jsonl", [ItemPersonas("moby", (ISHMAEL, AHAB))])
    return tmp_path


def test_publishing_reads_what_the_editor_decided(catalogue_of_one: Path) -> None:
    decide(catalogue_of_one, Decision("block", "moby", AHAB))
    decide(catalogue_of_one, Decision("pin", "moby", QUEEQUEG))
    (document,) = documents(Dataset(catalogue_of_one))
    assert document.personas == (ISHMAEL, QUEEQUEG)


def test_a_pinned_persona_outlives_the_file_of_personas(catalogue_of_one: Path) -> None:
    decide(catalogue_of_one, Decision("pin", "moby", AHAB))
    (catalogue_of_one / "personas.jsonl").unlink()
    assert [of_item.personas for of_item in decided_personas(Dataset(catalogue_of_one))] == [(AHAB,)]


def test_a_line_that_cannot_be_read_stops_the_publisher_and_is_named(catalogue_of_one: Path) -> None:
    decide(catalogue_of_one, Decision("block", "moby", AHAB))
    with (catalogue_of_one / "decisions.jsonl").open("a") as file:
        file.write('{"action": "burn", "item_id": "moby"}\n')
    with pytest.raises(DatasetError, match=r"decisions\.jsonl, line 2: action"):
        documents(Dataset(catalogue_of_one))
