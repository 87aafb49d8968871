import pytest
from pydantic import ValidationError

from offline.domains import load_domain
from offline.fingerprints import fingerprint
from offline.records import Item, ItemSummary
from offline.summaries import LONGEST_DESCRIPTION, MOST_WORDS, SummariesStage, Summary, described

STAGE = SummariesStage(load_domain("books"))
ITEM = Item("b1", "A Title", "What it is about.", ("Fiction", "Sea"), {"Author": "A. Writer", "empty": " "})


def test_what_is_known_of_an_item_is_in_its_prompt() -> None:
    (call,) = STAGE.calls(ITEM)
    assert call.key == "b1"
    for words in ("title: A Title", "categories: Fiction, Sea", "Author: A. Writer", "description: What it is about."):
        assert words in call.messages[1]["content"]
    assert "empty" not in call.messages[1]["content"]


def test_a_long_description_is_cut_at_a_sentence() -> None:
    text = described(Item("b", description="A sentence that goes on. " * 500))
    assert LONGEST_DESCRIPTION - 30 < len(text) < LONGEST_DESCRIPTION + 20
    assert text.endswith("goes on.")


def test_whatever_metadata_there_is_a_prompt_has_a_bounded_length() -> None:
    """10,000 characters are about 2,500 tokens, of 8,192."""
    endless = "word " * 20_000
    text = described(Item("b", endless, endless, (endless,) * 3, {f"{n} {endless}": endless for n in range(50)}))
    assert len(text) < 10_000
    assert text.count("word") > 1000


def test_an_item_without_metadata_asks_nobody_and_has_no_summary() -> None:
    assert STAGE.calls(Item("b1")) == ()
    for made in (STAGE.made(Item("b1"), ()), STAGE.extracted(Item("b1"))):
        assert made.record is None
        assert made.problems[0].reason == "no metadata"


def test_an_answer_becomes_the_summary() -> None:
    assert STAGE.made(ITEM, [Summary(summary=" Two\n words. ")]).record == ItemSummary(
        "b1", "Two words.", fingerprint(ITEM)
    )


@pytest.mark.parametrize("text", ["", " \n", "word " * (MOST_WORDS + 1)])
def test_what_is_no_summary_is_asked_for_again(text: str) -> None:
    with pytest.raises(ValidationError):
        Summary(summary=text)


def test_without_an_llm_the_description_speaks() -> None:
    assert STAGE.extracted(ITEM).record == ItemSummary("b1", "What it is about.", fingerprint(ITEM))
