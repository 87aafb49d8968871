import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.importers.markup import plain_text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Good.<br /><br />Really&nbsp;good.", "Good.\nReally good."),
        ("<p>One</p><p>two</p>", "One\ntwo"),
        ("un<b>believ</b>able &amp; cheap &#39;n fun", "unbelievable & cheap 'n fun"),
        ("a<style>p { color: red }</style>b", "ab"),
        ("a<script>if (b<c) { '<p>d</p>' }</script>e", "ae"),
        ("<ul><li>one<li>two</ul>", "one\ntwo"),
        ("a <p class='x > y'>b</p><a href='?c=d&amp;e' title=\"it's > f\">g</a>", "a\nb\ng"),
        ("<!DOCTYPE html><?x y?>a<!-- <b> > -->b<![CDATA[ c ]]><![if !IE]>d<![endif]>", "abd"),
        ("<SCRIPT src=x>'</b>'; a<b</SCRIPT >c<script/>d</BR>e", "cd\ne"),
        ("  doubled   spaces\tand\r\n\r\n\r\nblank lines ", "doubled spaces and\nblank lines"),
    ],
)
def test_html_becomes_text(source: str, text: str) -> None:
    assert plain_text(source) == text


@pytest.mark.parametrize(
    "text",
    [
        "I <3 it",
        "</3 it",
        "2 < 3 & 4 > 3",
        'end <a href="x',
        "R&D; AT&T",
        "wow <!!!",
        "a <![spoiler[ dies ]]>",
        "a <",
        "a &",
        "<",
        "&#;",
    ],
)
def test_text_that_is_no_html_stays(text: str) -> None:
    assert plain_text(text) == text


@pytest.mark.parametrize(
    "text", ["the <style of it> is fine", "a <script> that never ends", "stop </style> it", "a <!-- b"]
)
def test_what_is_never_closed_takes_no_words_around_it(text: str) -> None:
    first, *_, last = text.split()
    assert plain_text(text).startswith(first)
    if "style of" not in text:
        assert plain_text(text).endswith(last)


@pytest.mark.parametrize(
    "unit",
    ["<", "<a ", "<a = ", '<a x="', '<a x=">" ', '<a x="<>" ', "</ ", "</a ", "<!a ", "<!--x>", "<![CDATA[", "<![x[",
     "<?", "<script><", "<p>", "&#1"],
)  # fmt: skip
def test_a_megabyte_of_what_is_never_closed_is_read_at_once(unit: str) -> None:
    """Where the time grows with the square of the length, the worst of these do not end: 24 kB took 6 s."""
    assert plain_text(unit * (1_000_000 // len(unit)) + " end").endswith("end")


words = st.lists(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1), min_size=1)


@settings(deadline=None)
@given(words)
def test_escaped_text_comes_back(parts: list[str]) -> None:
    text = " ".join(parts)
    assert plain_text(html.escape(text)) == text


@settings(deadline=None)
@given(st.text(alphabet="<>&;!-/?'\" abpsctyle\n#x1"))
def test_nothing_breaks_it(text: str) -> None:
    assert "\n\n" not in plain_text(text)
