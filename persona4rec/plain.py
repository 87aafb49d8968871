"""Text of reviews, files and servers, made safe to show: whoever wrote it must not drive the reader's terminal."""

import logging

# Line breaks and tabs only move text about; all other control characters, C1 among them, may be read as commands.
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


def plain(text: str) -> str:
    """Return the text with its control characters made visible and harmless."""
    return text.translate(_CONTROLS)


class PlainFormatter(logging.Formatter):
    """Log records as plain text: a reason that is logged may quote what a file holds."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))
