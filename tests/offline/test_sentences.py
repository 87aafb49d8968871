import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.sentences import cut


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("One. Two.", 9, "One. Two."),
        ("One thing. Two things", 15, "One thing."),
        ('"Really?" she said. More', 22, '"Really?" she said.'),
        ("No. But a very long second sentence", 20, "No. But a very long"),
        ("A price of 3.50 dollars", 12, "A price of"),
        ("x" * 30, 10, "x" * 10),
    ],
)
def test_a_long_text_ends_with_what_fits_whole(text: str, limit: int, expected: str) -> None:
    assert cut(text, limit) == expected


@given(st.text(alphabet="ab .!?\n", max_size=80), st.integers(1, 60))
def test_a_cut_text_fits_and_is_how_the_text_begins(text: str, limit: int) -> None:
    found = cut(text, limit)
    assert len(found) <= limit
    assert text.startswith(found)
    assert (found == text) == (len(text) <= limit)
