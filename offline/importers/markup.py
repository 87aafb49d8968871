"""Text out of the HTML that shops keep in titles, descriptions and reviews."""

from html.parser import HTMLParser

_BREAKS = frozenset(
    (
        *("address", "article", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "footer", "header", "hr"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "li", "ol", "p", "pre", "section", "table", "td", "th", "tr", "ul"),
    )
)
"""Elements that start a line of their own, so that the words around them are two. Others may stand within a word."""

_UNREAD = frozenset(("script", "style"))


class _Reader(HTMLParser):
    """Gathers the text; entities are resolved by the base class."""

    # Scripts are read as any markup: the base class would drop the rest of a text in which one is never closed.
    CDATA_CONTENT_ELEMENTS = ()  # type: ignore[misc]  # final in its stub alone

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unread_from: int | None = None

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - the base class calls it so
        if tag in _UNREAD:
            self._unread_from = len(self.parts)
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNREAD and self._unread_from is not None:
            del self.parts[self._unread_from :]
            self._unread_from = None
        self._break(tag)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def _break(self, tag: str) -> None:
        if tag in _BREAKS:
            self.parts.append("\n")


def _read(html: str) -> str:
    reader = _Reader()
    try:
        reader.feed(html)
        reader.close()
    except AssertionError:
        # Of `<![spoiler[`: the base class takes it for a marked section, and knows only those of HTML.
        return html
    return "".join(reader.parts)


def plain_text(html: str) -> str:
    """Return the text of HTML: without tags and entities, a line for each block, no blank lines or doubled spaces.

    Text that is none, like `I <3 it` or `2 < 3`, stays as it is, its white space apart.
    """
    if "<" in html or "&" in html:
        html = _read(html)
    lines = (" ".join(line.split()) for line in html.splitlines())
    return "\n".join(line for line in lines if line)
