"""What can be said of items and reviews without an LLM (--llm none): their own sentences, chosen by fixed rules.

The same text gives the same words, in any language that ends its sentences with a full stop. Matching of slots and the
list of words that mean little know English; other languages get the longest sentences instead.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache

from offline.domains import Domain
from offline.records import Item, Review
from offline.sentences import cut

SUMMARY_SENTENCES = 3
"""What eq. 1 asks an LLM for, at most."""

SUMMARY_CHARACTERS = 400
"""About 90 tokens: three such sentences of the bundled catalogues have 150 to 390 characters."""

SENTENCE_CHARACTERS = 240
"""Of a sentence that is quoted: of 2,376 in book reviews, 97 % are no longer. Others end at a whole word."""

STEM = 5
"""Letters by which words count as the same, e.g. "character" and "characters": crude, and good enough for matching."""

TELLING = 2
"""Telling words of a sentence that says anything: "Great plot." does, "Loved it!" does not."""

_QUOTE = "\N{RIGHT SINGLE QUOTATION MARK}"
_FULL_STOPS = "\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH EXCLAMATION MARK}\N{FULLWIDTH QUESTION MARK}"
_TITLES = "".join(rf"(?<!\b{title}\.)" for title in ("Mr", "Mrs", "Ms", "Dr", "St", "[A-Z]"))
_END = re.compile(
    rf"(?<=[.!?\N{{HORIZONTAL ELLIPSIS}}]){_TITLES}[\"')\]\N{{RIGHT DOUBLE QUOTATION MARK}}{_QUOTE}]*\s+(?=[^a-z])"
    rf"|(?<=[{_FULL_STOPS}])|\n+"
)
_WORD = re.compile(rf"[^\W\d_]+(?:['{_QUOTE}][^\W\d_]+)?")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, without those that hold no word."""
    return [part for end in _END.split(text) if _WORD.search(part := " ".join(end.split()))]


def telling_words(text: str) -> list[str]:
    """Return the words of a text in their order, in lower case, without those that mean little or have two letters."""
    words = (word.lower().replace(_QUOTE, "'") for word in _WORD.findall(text))
    return [word for word in words if len(word) > 2 and word not in stop_words()]


@cache
def stop_words() -> frozenset[str]:
    """Return the words that mean little, in lower case."""
    # Here, because scikit-learn takes half a second to load.
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def stems(text: str) -> frozenset[str]:
    """Return the first letters of the telling words of a text."""
    return frozenset(word[:STEM] for word in telling_words(text))


def extractive_summary(item: Item) -> str:
    """Return the first sentences of an item's description; without one, its title and categories, or its id."""
    found = sentences(item.description)
    if not found:
        return ". ".join(part for part in (item.title, ", ".join(item.categories)) if part) or item.item_id
    chosen = cut(found[0], SUMMARY_CHARACTERS)
    for sentence in found[1:SUMMARY_SENTENCES]:
        if len(chosen) + len(sentence) >= SUMMARY_CHARACTERS:
            break
        chosen += f" {sentence}"
    return chosen


def extractive_aspects(review: Review, domain: Domain) -> dict[str, str | None]:
    """Return sentences of the review by slot: each slot takes the sentence that shares most words with what it is for.

    The longest of the other sentences go into empty slots, if they say anything: they are there to be embedded, and no
    reader sees the names of slots. No sentence stands in two.
    """
    left = dict.fromkeys(cut(sentence, SENTENCE_CHARACTERS) for sentence in sentences(review.text))
    found: dict[str, str | None] = dict.fromkeys(domain.slots)
    # Every sentence may speak of the book, and every slot says whose it is: that tells nothing.
    common = stems(f"{domain.item} {domain.person}")
    wanted = {name: stems(f"{name.replace('_', ' ')} {what}") - common for name, what in domain.slots.items()}
    for _, name, sentence in sorted(_matches(wanted, left), key=lambda match: -match[0]):
        if found[name] is None and sentence in left:
            found[name] = sentence
            del left[sentence]
    telling = [sentence for sentence in left if len(telling_words(sentence)) >= TELLING]
    longest = iter(sorted(telling, key=len, reverse=True))
    return {name: sentence or next(longest, None) for name, sentence in found.items()}


def _matches(wanted: dict[str, frozenset[str]], found: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """Yield how many words each slot shares with each sentence, where it shares any."""
    for sentence in found:
        words = stems(sentence)
        yield from ((shared, name, sentence) for name, stem in wanted.items() if (shared := len(words & stem)))
