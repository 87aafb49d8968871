"""Dead letters as a person reads them."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from persona4rec.plain import plain
from reranker.dead_letters import DeadLetter

# What fits beside the rest on a wide terminal; `dlq show` shows it all.
SHOWN_BYTES = 80


def letter_list(letters: Sequence[DeadLetter]) -> RenderableType:
    """Show a line for each letter: what it is, why it died, how it begins."""
    if not letters:
        return Text("no dead letters")
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("id", "sent", "error", "value"):
        table.add_column(heading, no_wrap=heading == "id")
    for letter in letters:
        beginning = _text((letter.value or b"")[:SHOWN_BYTES])
        table.add_row(Text(letter.letter_id), Text(_moment(letter)), Text(plain(letter.message)), beginning)
    return Group(table, Text(f"{len(letters):,} dead letters", style="dim"))


def whole_letter(letter: DeadLetter) -> RenderableType:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("id", Text(letter.letter_id)),
        ("sent", Text(_moment(letter))),
        ("error", Text(plain(f"{letter.error}: {letter.message}"))),
        ("key", _text(letter.key)),
        *((f"header {plain(name)}", _text(value)) for name, value in letter.headers),
        ("value", _text(letter.value)),
    ):
        table.add_row(name, value)
    return table


def _moment(letter: DeadLetter) -> str:
    try:
        return f"{datetime.fromtimestamp(letter.timestamp / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        # A producer may stamp its records with anything, e.g. microseconds.
        return str(letter.timestamp)


def _text(value: bytes | None) -> Text:
    # Whatever the bytes are: backslashes for what is no text.
    return Text("none", style="dim") if value is None else Text(plain(value.decode(errors="backslashreplace")))
