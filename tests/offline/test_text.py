import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from offline.records import Item
from offline.text import identity_text, interaction_text, persona_text, summary_of
from reranker.records import Persona

words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)
sentences = st.builds(
    "{}{}".format, st.lists(words, min_size=1, max_size=4).map(" ".join), st.sampled_from(".!?") | st.just("")
)
blanks = st.sampled_from(["", " ", "\n\t"])
items = st.builds(Item, words, sentences | blanks, sentences | blanks, st.lists(words, max_size=3).map(tuple))
personas = st.builds(Persona, words, sentences, sentences, sentences, st.just(()))

DUNE = Item("dune", "Dune", "A desert planet.", ("Science Fiction", "Adventure"))
READER = Persona("dune:1", "World Builder", "Loves deep worlds", "The ecology!", ())


def test_a_persona_carries_the_identity_of_its_item() -> None:
    assert persona_text(DUNE, "A saga of sand.", READER) == (
        "Dune. Science Fiction, Adventure. A saga of sand. World Builder. Loves deep worlds. The ecology!"
    )


def test_an_interaction_carries_the_identity_of_its_item_and_what_was_said_in_the_order_of_the_slots() -> None:
    aspects = {"usage_context": "on holiday", "category_preference": "epics", "purchase_purpose": None, "other": ""}
    assert interaction_text(DUNE, "A saga of sand.", aspects) == (
        "Dune. Science Fiction, Adventure. A saga of sand. epics; on holiday."
    )


def test_without_aspects_an_interaction_is_the_item_alone() -> None:
    alone = "Dune. Science Fiction, Adventure. A saga."
    assert interaction_text(DUNE, "A saga") == alone
    assert interaction_text(DUNE, "A saga", {"usage_context": None}) == alone


def test_the_order_of_the_slots_in_a_file_does_not_change_the_text() -> None:
    slots = {"a": "one", "b": "two"}
    assert interaction_text(DUNE, "s", slots) == interaction_text(DUNE, "s", dict(reversed(slots.items())))


def test_the_summary_is_the_best_there_is() -> None:
    assert summary_of(DUNE, "A saga.") == "A saga."
    assert summary_of(DUNE, None) == "A desert planet."
    assert summary_of(replace(DUNE, description=""), "") == "Dune"
    assert summary_of(Item("dune"), None) == "dune"


@given(items, sentences, personas, st.dictionaries(words, st.none() | sentences | blanks, max_size=3))
def test_every_part_is_there_once_closed_and_nothing_is_empty(
    item: Item, summary: str, persona: Persona, aspects: dict[str, str | None]
) -> None:
    identity = [item.title.strip(), *item.categories]
    said = [text.strip() for text in aspects.values() if text]
    for text, parts in (
        (identity_text(item), identity),
        (persona_text(item, summary, persona), [*identity, summary, persona.name, persona.description]),
        (interaction_text(item, summary, aspects), [*identity, summary, *said]),
    ):
        assert all(part in text for part in parts)
        assert text == text.strip()
        assert not re.search(r"\s{2}|[.!?]{2}|[,;] ?[.!?]|^[.!?]| [.!?]", text), text
        assert not text or text[-1] in ".!?"
