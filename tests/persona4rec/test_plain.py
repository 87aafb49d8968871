import logging

from hypothesis import given
from hypothesis import strategies as st

from persona4rec.plain import PlainFormatter, plain


@given(st.text())
def test_no_control_character_is_left_but_line_breaks_and_tabs(text: str) -> None:
    shown = plain(text)
    assert len(shown) == len(text)
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in shown if char not in "\n\t")


@given(st.text(st.characters(exclude_categories=["Cc"])))
def test_all_else_is_left_alone(text: str) -> None:
    assert plain(text) == text
    assert plain(f"{text}\n\t{text}") == f"{text}\n\t{text}"


def test_what_would_clear_a_screen_is_shown() -> None:
    assert plain("a\x1b[2Jb\x9b2Jc") == "a�[2Jb�2Jc"


def test_log_records_are_plain() -> None:
    record = logging.LogRecord("offline", logging.WARNING, "", 0, "bad: %s", ("\x1b[2J",), None)
    assert PlainFormatter("%(message)s").format(record) == "bad: �[2J"
