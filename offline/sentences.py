"""Where sentences end."""

import re

_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|\n|[。！？]")  # noqa: RUF001  (how sentences end in print and in Chinese)


def cut(text: str, limit: int) -> str:
    """Return a text of `limit` characters at most: a longer one ends with its last sentence, or word, that fits."""
    if len(text) <= limit:
        return text
    ends = [end.end() for end in _END.finditer(text, 0, limit + 1) if end.end() <= limit]
    # A sentence that ends in the first half would cost more than half a sentence does.
    end = ends[-1] if ends and ends[-1] >= limit // 2 else text.rfind(" ", 0, limit + 1)
    return text[: end if end > 0 else limit].rstrip()
