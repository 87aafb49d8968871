"""Personas without an LLM (--llm none): clusters of what reviews say, described by their key phrases."""

import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from offline.domains import Domain
from offline.encoder import Encoder
from offline.evidence import ItemEvidence, Piece, central, clusters, persona_count
from offline.extractive import SENTENCE_CHARACTERS, sentences, stems
from offline.persona_checks import safe_to_quote, secret_names, without_secrets
from offline.sentences import cut
from reranker.records import Persona, persona_id

PHRASES = 3
"""That describe a cluster: two in the name, all in the description."""

PHRASE_CHARACTERS = 24
"""Of a phrase: two of them and their frame fit a name."""

_BREAK = re.compile(r"[^\w\s'-]+")


def extractive_personas(found: ItemEvidence, domain: Domain, encoder: Encoder) -> list[Persona]:
    """Return a persona for each cluster of an item's pieces, as many as their diversity is good for.

    A persona is named after the phrases that set its cluster apart from the item's others (TF-IDF over clusters), and
    its rationale quotes the review nearest to the cluster's centre; contact details and names of private people get
    into neither. Deterministic.
    """
    names = secret_names([piece.words for piece in found.pieces], found.about)
    vectors = encoder.encode([piece.text for piece in found.pieces])
    grouped = clusters(vectors, persona_count(vectors))
    texts = [without_secrets(piece.text, names) for piece in found.pieces]
    named = key_phrases([[texts[place] for place in places] for places in grouped], domain)
    return [
        _persona(
            found,
            domain,
            phrases,
            [found.pieces[place] for place in places],
            _quote(found.pieces[central(vectors, places)].text, names),
        )
        for places, phrases in zip(grouped, named, strict=True)
        if phrases
    ]


def key_phrases(groups: Sequence[Sequence[str]], domain: Domain) -> list[list[str]]:
    """Return the phrases that set each group of texts apart, the best first, none within another; maybe none."""
    common = stems(f"{domain.item} {domain.person} {domain.name} good great really like liked love loved read story")
    texts = [". ".join(group) for group in groups]
    vectorizer = TfidfVectorizer(analyzer=lambda text: list(phrases(text, common)), sublinear_tf=True)
    try:
        weights = vectorizer.fit_transform(texts).toarray()
    except ValueError:
        return [[] for _ in groups]  # there is no telling word in any of them
    names = vectorizer.get_feature_names_out()
    # Of equal weights the longer phrase says more; then the alphabet, so that the same text gives the same names.
    order = [sorted(range(len(names)), key=lambda n: (-round(row[n], 6), -len(names[n]), names[n])) for row in weights]
    return [_apart([str(names[n]) for n in best if row[n] > 0]) for best, row in zip(order, weights, strict=True)]


def phrases(text: str, common: frozenset[str]) -> Iterator[str]:
    """Yield the telling words of a text, and the pairs of those that stand side by side."""
    for run in _BREAK.split(text.lower()):
        before = ""
        for word in run.split():
            telling = len(word) > 2 and word not in ENGLISH_STOP_WORDS and word.isalpha() and not stems(word) <= common
            if telling:
                yield word
                if before and len(before) + len(word) < PHRASE_CHARACTERS:
                    yield f"{before} {word}"
            before = word if telling else ""


def _apart(ordered: Sequence[str]) -> list[str]:
    found: list[str] = []
    for phrase in ordered:
        if len(found) < PHRASES and stems(phrase).isdisjoint(stems(" ".join(found))):
            found.append(phrase)
    return found


def _quote(text: str, names: Collection[str]) -> str | None:
    """Return the first sentence of a text that may be quoted, if there is one."""
    return next((sentence for sentence in sentences(text) if safe_to_quote(sentence, names)), None)


def _persona(found: ItemEvidence, domain: Domain, named: list[str], pieces: list[Piece], quote: str | None) -> Persona:
    wary = np.mean([piece.critical for piece in pieces]) > 0.5
    kind = "Critic" if wary else f"{domain.person.capitalize()}"
    name = f"{kind} of {' and '.join(named[:2])}" if wary else f"{kind} for {' and '.join(named[:2])}"
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    description = f"A {domain.person} who {'finds fault with' if wary else 'looks for'} {listed}."
    verb = "is wary of" if wary else "appreciates"
    reason = cut(quote or f"{listed}.", SENTENCE_CHARACTERS)
    rationale = f"This persona {verb} this {domain.item} because reviews say: {reason}"
    evidence = tuple(piece.review_id for piece in pieces)
    own_id = persona_id(found.item.item_id, name, description, rationale)
    return Persona(own_id, name, description, rationale, evidence)
