"""Text out of the HTML that shops keep in titles, descriptions and reviews.

Read here and not by a parser of the standard library, whose time grows with the square of what is never closed: one
review of a megabyte could hold an import for hours. Here a tag ends before the next `<`, and the end of anything else,
once it was not found, is not looked for again; so every character is looked at a few times whatever comes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape

_BREAKS = frozenset(
    (
        *("address", "article", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "footer", "header", "hr"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "li", "ol", "p", "pre", "section", "table", "td", "th", "tr", "ul"),
    )
)
"""Elements that start a line of their own, so that the words around them are two. Others may stand within a word."""

_UNREAD = frozenset(("script", "style"))

_TAG = re.compile(r"<(?:([a-z][^\s/<>]*)|/\s*([a-z][^\s/<>]*))", re.IGNORECASE)
_WITHIN_TAG = re.compile(r"[<>]|=\s*([\"'])")
_QUOTED = {quote: re.compile(rf"[^{quote}<]*{quote}") for quote in "\"'"}

_ENDS = (
    ("<!--", "-->"),
    ("<![cdata[", "]]>"),
    ("<![if", "]>"),
    ("<![endif", "]>"),
    ("<![", ""),
    ("<!", ">"),
    ("<?", ">"),
)
"""How what is neither tag nor text begins and ends, the longest first. Other sections, as `<![spoiler[`, are text."""


@dataclass(frozen=True, slots=True)
class _Markup:
    """What is no text, from `start` to before `end`."""

    start: int
    end: int
    opened: str = ""
    """The element that begins with it, in lower case."""
    closed: str = ""
    """The element that ends with it."""


@dataclass
class _Reader:
    """Gathers the text, entities resolved."""

    parts: list[str] = field(default_factory=list)
    unread_from: int | None = None

    def take(self, text: str, markup: _Markup) -> None:
        """Take a text and what stands behind it."""
        self.parts.append(unescape(text))
        if markup.opened in _UNREAD:
            self.unread_from = len(self.parts)
        if markup.closed in _UNREAD and self.unread_from is not None:
            del self.parts[self.unread_from :]
            self.unread_from = None
        if markup.opened in _BREAKS or markup.closed in _BREAKS:
            self.parts.append("\n")


def _read(html: str) -> str:
    reader, read = _Reader(), 0
    for markup in _markup(html):
        reader.take(html[read : markup.start], markup)
        read = markup.end
    return "".join((*reader.parts, unescape(html[read:])))


def _markup(html: str) -> Iterator[_Markup]:
    missing: set[str] = set()
    start = html.find("<")
    while start >= 0:
        found = _tag(html, start) or _section(html, start, missing)
        if found:
            yield found
        start = html.find("<", found.end if found else start + 1)


def _tag(html: str, start: int) -> _Markup | None:
    named = _TAG.match(html, start)
    end = _tag_end(html, named.end()) if named else None
    if named is None or end is None:
        return None
    opened, closed = (name.lower() for name in named.groups(default=""))
    return _Markup(start, end, opened, opened if html[end - 2] == "/" else closed)


def _tag_end(html: str, start: int) -> int | None:
    """Return where a tag ends whose name ends at `start`; None if it does not before the next begins."""
    while found := _WITHIN_TAG.search(html, start):
        if not found[1]:
            return found.end() if found[0] == ">" else None
        value = _QUOTED[found[1]].match(html, found.end())
        if not value:
            return None
        start = value.end()
    return None


def _section(html: str, start: int, missing: set[str]) -> _Markup | None:
    """Return a comment or the like; `missing`: the ends that are not in the rest of the text, to be added to."""
    begins = html[start : start + 9].lower()
    begin, end = next((pair for pair in _ENDS if begins.startswith(pair[0])), ("", ""))
    if not end or end in missing:
        return None
    place = html.find(end, start + len(begin))
    if place < 0:
        missing.add(end)
        return None
    return _Markup(start, place + len(end))


def plain_text(html: str) -> str:
    """Return the text of HTML: without tags and entities, a line for each block, no blank lines or doubled spaces.

    Text that is none, like `I <3 it` or `2 < 3`, stays as it is, its white space apart. Takes time in proportion to
    the length.
    """
    if "<" in html or "&" in html:
        html = _read(html)
    lines = (" ".join(line.split()) for line in html.splitlines())
    return "\n".join(line for line in lines if line)
