from pathlib import Path

import pytest

from offline.domains import DOMAINS, load_domain
from offline.errors import ConfigurationError

OWN = """
name = "wines"
item = "wine"
person = "drinker"
[slots]
taste = "how it tasted, in the words of the drinker"
occasion = "when it was drunk, and what with"
[notes]
aspects = "Grapes are no persons."
"""


@pytest.mark.parametrize("name", DOMAINS)
def test_each_domain_of_the_package_fills_every_prompt(name: str) -> None:
    domain = load_domain(name)
    assert domain.name == name
    words = {"aspects": {"slots": "SLOTS"}, "summary": {}, "alignment": {}}
    for prompt, given in words.items():
        text = domain.prompt(prompt, **given)
        assert domain.item in text
        assert "$" not in text


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("books", {"category_preference", "purchase_purpose", "quality_criteria", "usage_context"}),
        (
            "restaurants",
            {
                "cuisine_category",
                "specific_dishes_or_attributes",
                "visit_purpose",
                "quality_criteria",
                "visit_context",
            },
        ),
    ],
)
def test_the_slots_of_the_paper(name: str, slots: set[str]) -> None:
    assert set(load_domain(name).slots) == slots


def test_a_domain_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "wines.toml"
    path.write_text(OWN)
    domain = load_domain(str(path))
    assert list(domain.slots) == ["taste", "occasion"]
    prompt = domain.prompt("aspects", slots="SLOTS")
    assert "one wine" in prompt
    assert prompt.rstrip().endswith("Grapes are no persons.")


def test_words_for_item_and_person_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text('name = "d"\n[slots]\na = "b"\n')
    assert (load_domain(str(path)).item, load_domain(str(path)).person) == ("item", "person")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "is not TOML"),
        ('name = "w"', "slots: Field required"),
        ('name = "w"\n[slots]\n', "slots: Dictionary should have at least 1 item"),
        ('name = "w"\n[slots]\n"Bad Slot" = "x"', "slots.Bad Slot"),
        ('name = "w"\nslot = 1\n[slots]\na = "b"', "slot: Extra inputs are not permitted"),
        ('name = "w"\n[slots]\n' + "\n".join(f's{n} = "x"' for n in range(13)), "at most 12 items"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load_domain(str(path))
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_what_is_neither_name_nor_file() -> None:
    with pytest.raises(ConfigurationError, match="--domain boks is neither one of books, restaurants"):
        load_domain("boks")
