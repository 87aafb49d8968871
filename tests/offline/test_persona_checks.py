"""The checks of a persona, each by what it refuses and what it must let pass."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offline.dataset import Dataset
from offline.encoder import Encoder
from offline.persona_checks import (
    SUPPORT,
    checked,
    contact,
    length,
    merged,
    private,
    private_names,
    secret_names,
    sensitive,
    supports,
    with_evidence,
    without_secrets,
)
from reranker.records import Persona
from tests.benchmarks.support import auc, cases

GOOD = Persona(
    "x:1",
    "Sea Story Regular",
    "Looks for long voyages and salt air, told without hurry.",
    "This persona appreciates this book because the voyage is slow and the sea is everywhere.",
    ("r1",),
)
SAID = {"r1": "The voyage is slow, the sea is everywhere, and I loved it.", "r2": "Too many chapters about ropes."}


def test_evidence_that_no_review_has_is_taken_away_and_counted(encoder: Encoder) -> None:
    assert with_evidence(replace(GOOD, evidence=("", "r1", "r1", "r9")), SAID).evidence == ("r1",)
    found = checked([replace(GOOD, evidence=("r9", "r1"))], SAID, "", encoder)
    assert found.personas == (GOOD,)
    assert [problem.reason for problem in found.problems] == ["evidence invented"]


def test_a_persona_on_invented_evidence_alone_is_refused(encoder: Encoder) -> None:
    found = checked([replace(GOOD, evidence=("r9",))], SAID, "", encoder)
    assert found.personas == ()
    assert [problem.reason for problem in found.problems] == ["evidence invented", "no evidence"]


def test_a_rationale_that_its_evidence_does_not_bear_out_is_refused(encoder: Encoder) -> None:
    found = checked([GOOD, replace(GOOD, evidence=("r2",))], SAID, "", encoder)
    assert found.personas == (GOOD,)
    assert [problem.reason for problem in found.problems] == ["not supported by its evidence"]


def test_near_duplicates_become_one_with_the_evidence_of_both(encoder: Encoder) -> None:
    other = replace(GOOD, name="Follower of Captains", evidence=("r1", "r2"))
    other = replace(other, description="Seeks long voyages and salt air that are told without any hurry.")
    third = replace(GOOD, description="Knits.", preference_rationale="This persona is wary of chapters about ropes.")
    assert merged([GOOD, other, third], encoder) == (replace(GOOD, evidence=("r1", "r2")), third)
    assert len(checked([GOOD, replace(other, evidence=("r1",))], SAID, "", encoder).personas) == 1


def test_personas_of_the_same_topic_and_opposite_minds_stay_two(encoder: Encoder) -> None:
    """The likest two of a film in IMDB, which a large model wrote to differ."""
    gleeful = replace(
        GOOD,
        description="Wants horror that makes an audience scream and giggle in quick succession. Enjoys outrageous "
        "timing, dark jokes and a filmmaker who treats terror like a carnival ride.",
        preference_rationale="This persona appreciates this film because it is a fun, campy and over-the-top horror "
        "with dark humor.",
    )
    straight = replace(
        GOOD,
        description="Wants horror to frighten with logic, restraint and convincing effects. Bodily fluids, digital "
        "trickery and unintended laughter feel like an insult to a serious supernatural threat.",
        preference_rationale="This persona is wary of this film because gross-out gore, poor CGI and plot holes make "
        "horror laughable.",
    )
    assert merged([gleeful, straight], encoder) == (gleeful, straight)


@pytest.mark.parametrize(
    ("part", "words"),
    [("name", "Me"), ("name", "a " * 9), ("description", "Short."), ("preference_rationale", "x" * 501)],
)
def test_length(part: str, words: str) -> None:
    found = length(replace(GOOD, **{part: words}))  # type: ignore[arg-type]
    assert found is not None
    assert part.replace("_", " ") in found.reason


@pytest.mark.parametrize(
    "words",
    ["write to ann.b@mail.example", "see www.shop.example", "at https://x.example", "go to cheap-books.com",
     "call +49 170 1234567", "(555) 010-9999 12", "follow @seareader"],
)  # fmt: skip
def test_what_leads_to_a_person_or_away_is_refused(words: str) -> None:
    assert contact(replace(GOOD, description=words))


@pytest.mark.parametrize(
    "words", ["the years 1939-1945 at sea", "chapters 1, 2, 3 and 4", "4.5 stars at 12.99", "Dr. No"]
)
def test_numbers_and_dots_of_honest_words_pass(words: str) -> None:
    assert contact(replace(GOOD, description=words)) is None


def test_names_that_reviews_give_to_private_people_are_refused_and_characters_pass() -> None:
    reviews = ["Bought it for my daughter Ottilie.", "My name is Bertram Quill, I fish.", "Ahab is mad.\n- Wilma"]
    names = private_names(reviews)
    assert names == {"Ottilie", "Bertram", "Quill", "Wilma"}
    assert private(replace(GOOD, description="Reads it to Ottilie at night."), names)
    assert private(replace(GOOD, description="Is Ottilie's mother."), names)
    assert private(replace(GOOD, description="Is struck by Ahab."), names) is None


@pytest.mark.parametrize(
    "words",
    ["A reader for ottilie and dragons.", "ANN-ottilie", "Ottilie-loving", "ottilie's mother",
     "OTTILIE\N{RIGHT SINGLE QUOTATION MARK}s", "reads with Wren"],
)  # fmt: skip
def test_a_private_name_is_refused_in_any_spelling(words: str) -> None:
    """Also a name that the review has with something joined to it."""
    names = secret_names(["My daughter Ottilie reads.", "My son Wren's book."], "The Keep")
    assert private(replace(GOOD, description=words), names)


def test_what_is_a_word_too_is_refused_as_a_name_alone() -> None:
    reviews = ["My daughter Hope reads, I hope.", "Full of hope."]
    assert private(replace(GOOD, description="Read by Hope."), secret_names(reviews, ""))
    assert private(replace(GOOD, description="Looks for hope."), secret_names(reviews, "")) is None
    assert private(replace(GOOD, description="Looks for hope."), secret_names(reviews[:1], "A tale of hope.")) is None
    careless = ["My daughter Ottilie reads, ottilie again."]
    assert private(replace(GOOD, description="Looks for ottilie."), secret_names(careless, ""))


def test_names_that_the_item_has_itself_are_no_secrets() -> None:
    names = secret_names(["My daughter Ottilie reads.", "Yours, Wren"], "Ottilie's House, by WREN HALL")
    assert names == frozenset()


def test_the_end_of_a_compound_is_no_signature() -> None:
    assert private_names(["A film about neo-Nazism", "Loved it -Ann", "Loved it!-Wren"]) == {"Ann", "Wren"}


def test_nothing_private_is_left_of_a_text_without_secrets() -> None:
    text = "Ottilie-loving maps, write me at ann.lee@mail.example or www.ann.example/lee, maps of ottilie."
    left = without_secrets(text, {"Ottilie", "ottilie"}).split()
    assert [word for word in left if word.isalpha()] == ["write", "me", "at", "or", "maps", "of"]


@pytest.mark.parametrize(
    "review", ["Lovely gift, thanks, This made my week.", "Call me This.", "Good.\n- Avid Reader", "Love, Persona"]
)
def test_words_that_any_persona_uses_are_no_names(review: str) -> None:
    """Or one review could have every persona of its item refused."""
    assert not private_names([review]) & {"This", "Reader", "Persona"}
    assert private_names(["My husband Will says so.", "Yours, May"]) == {"Will", "May"}


def test_a_long_text_of_hyphens_is_looked_through_at_once() -> None:
    """Half a megabyte; where the time grows with the square of the length, this does not end."""
    assert private_names(["-Ab" * 170_000 + "!"]) == frozenset()


@pytest.mark.parametrize(
    "words",
    ["This reader is a devout Catholic, who wants comfort.", "They are gay and want to see themselves.",
     "Appeals to Jewish readers who long for home.", "A conservative reader who wants order.",
     "This persona lives with diabetes and needs recipes.", "As a lesbian, this reader seeks romance.",
     "Written for cancer survivors.", "This viewer is black and wants heroes.",
     "For people struggling with their depression."],
)  # fmt: skip
def test_a_person_described_by_a_protected_trait_is_refused(words: str) -> None:
    assert sensitive(replace(GOOD, description=words))


@pytest.mark.parametrize("name", ["The Lapsed Catholic", "Black Reader", "Proud Conservative", "Cancer Survivor"])
def test_so_is_a_name_that_says_so(name: str) -> None:
    assert sensitive(replace(GOOD, name=name))


@pytest.mark.parametrize(
    "words",
    ["Looks for Jewish history and life under the tsars.", "A gay romance fan with a sweet tooth.",
     "Enjoys white-knuckle thrillers and liberal use of irony.", "Likes black comedy.",
     "Reads of faith, church and politics with interest.",
     "Wants memoirs of illness and of depression told with wit.", "Is conservative about spoilers.",
     "Watches straight through the night.", "Admires the queer cinema of the period."],
)  # fmt: skip
def test_what_an_item_is_about_passes(words: str) -> None:
    assert sensitive(replace(GOOD, description=words)) is None


def test_hardly_any_persona_of_a_careful_author_is_refused(shared: Path, catalogue: Dataset) -> None:
    """Of 5,188 film and 266 book personas that a large model wrote under such a rule."""
    items = [*Dataset(shared / "data/imdb").personas(), *catalogue.personas()]
    personas = [persona for of_item in items for persona in of_item.personas]
    refused = [p.name for p in personas if length(p) or contact(p) or sensitive(p)]
    assert len(refused) <= 0.01 * len(personas), refused


@pytest.mark.integration
def test_support_tells_true_rationales_from_those_of_other_books(catalogue: Dataset, encoder: Encoder) -> None:
    found, said = cases(catalogue)
    true, swapped = (
        np.array(supports([case.persona for case in found[kind][:120]], said, encoder)) for kind in ("true", "swapped")
    )
    assert auc(true, swapped) >= 0.9
    assert np.mean(true >= SUPPORT) >= 0.9
    assert np.mean(swapped < SUPPORT) >= 0.9
