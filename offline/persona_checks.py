"""Whether a persona may be stored. Every check is pure, and says why not in a few words that are counted.

The words of a reason never quote the persona or a review: what is refused for being personal must not live on in a log.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

import numpy as np

from offline.encoder import Encoder
from offline.extractive import stems, stop_words
from offline.stages import Problem
from reranker.records import Persona, Vector

SUPPORT: Final = 0.3
"""Of `support`, what a rationale has at least. What stops 95 % of the rationales of other items was 0.35 on half
of IMDB and 0.26 on half of the bundled catalogue: between the two."""

ALIKE: Final = 0.85
"""`likeness` from which two personas are one. Measured on the 5,188 personas of IMDB, which a large model wrote to
differ within each film: of 9,227 pairs within a film 99.9 % are at most 0.80 and all at most 0.833; of 13 million pairs
across films 0.01 % are above 0.80, the likest has 0.905. To lose no persona matters more than a repetition."""

LENGTHS: Final[Mapping[str, tuple[int, int]]] = {
    "name": (3, 60),
    "description": (20, 500),
    "preference_rationale": (20, 500),
}
"""Characters. Of 5,454 personas at hand all are within; models that ramble or are cut off are not."""

NAME_WORDS: Final = 8
"""Of a name at most: more is a sentence."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is left of an item's personas, and why others are not."""

    personas: tuple[Persona, ...]
    problems: tuple[Problem, ...]


def checked(
    personas: Sequence[Persona],
    said: Mapping[str, str],
    about: str,
    encoder: Encoder,
    unsupported: Sequence[Problem | None] | None = None,
) -> Checked:
    """Return the personas of one item that pass every check, near-duplicates merged.

    said, about: as of `admissible`. unsupported: of each of the personas that `admissible` returns what somebody holds
    against its support by its evidence; None: it is measured (`support`).
    """
    found = admissible(personas, said, about)
    against = unsupported_by_measure(found.personas, said, encoder) if unsupported is None else unsupported
    supported = [persona for persona, problem in zip(found.personas, against, strict=True) if problem is None]
    different = merged(supported, encoder)
    problems = [*found.problems, *(problem for problem in against if problem)]
    problems += [Problem("near-duplicate, merged")] * (len(supported) - len(different))
    return Checked(different, tuple(problems))


def admissible(personas: Sequence[Persona], said: Mapping[str, str], about: str) -> Checked:
    """Return the personas of one item that pass every check but those of support and likeness.

    said: the texts that they were written from, by review id. about: title, metadata and summary of the item, whose
    names are no secrets.
    """
    problems: list[Problem] = []
    kept: list[Persona] = []
    names = secret_names(said.values(), about)
    for persona in personas:
        found = with_evidence(persona, said)
        problems += [Problem("evidence invented")] * (len(persona.evidence) - len(found.evidence))
        problem = no_evidence(found) or length(found) or contact(found) or private(found, names) or sensitive(found)
        if problem:
            problems.append(problem)
        else:
            kept.append(found)
    return Checked(tuple(kept), tuple(problems))


def words(persona: Persona) -> str:
    """Return a persona's own words."""
    return f"{persona.name}. {persona.description} {persona.preference_rationale}"


def with_evidence(persona: Persona, known: Collection[str]) -> Persona:
    """Return the persona with that of its evidence that exists, each review once."""
    return replace(persona, evidence=tuple(dict.fromkeys(r for r in persona.evidence if r in known)))


def no_evidence(persona: Persona) -> Problem | None:
    return None if persona.evidence else Problem("no evidence")


def length(persona: Persona) -> Problem | None:
    for part, (least, most) in LENGTHS.items():
        if not least <= len(getattr(persona, part).strip()) <= most:
            return Problem(f"{part.replace('_', ' ')} too short or too long")
    return Problem("name too short or too long") if len(persona.name.split()) > NAME_WORDS else None


_CONTACT = {
    "e-mail address": re.compile(r"[\w.+-]+\s?(?:@|\(at\)|\[at\])\s?[\w-]+\.\w{2,}", re.IGNORECASE),
    "link": re.compile(
        r"https?:|\bwww\.|\b[a-z0-9-]{2,}\.(?:com|net|org|info|biz|io|co|me|ly|shop|xyz|example|de|uk|fr|ru|cn)\b",
        re.IGNORECASE,
    ),
    "phone number": re.compile(r"(?<![\w-])\+?\(?\d(?:[\s().-]{0,2}\d){8,}(?!\w)"),
    "user name": re.compile(r"(?<!\w)@\w{2,}"),
}
"""A phone number has nine digits or more, so that years, prices and ISBN prefixes are none."""


def contact(persona: Persona) -> Problem | None:
    """Refuse what leads to a person, or away from the platform."""
    found = next((what for what, pattern in _CONTACT.items() if pattern.search(words(persona))), None)
    return Problem(f"{found} in it") if found else None


# Bounded, or a text of nothing but hyphens and letters takes the square of its length.
_NAME = r"([A-Z][\w'-]{1,40}(?: [A-Z][\w'-]{1,40})?)"
_WORD = re.compile(r"[^\W_]+")
"""Of "Ann's", "Ann-loving" and "O'Hara" every part."""

_INTRODUCED = re.compile(
    r"\b(?i:my name is|name's|call me|signed,?|yours,|regards,|thanks,|love,)\s+" + _NAME + r"|"
    r"\b(?i:i am|i'm|this is) " + _NAME + r"(?= (?:from|of|in|here|and)\b|[,.!])|"
    r"\b(?i:my|our) (?:\w+ )?(?:wife|husband|son|daughter|mother|father|mom|mum|dad|brother|sister|friend|partner|"
    r"boyfriend|girlfriend|fianc\w+|boss|colleague|neighbou?r|teacher|doctor|uncle|aunt|"
    r"niece|nephew|cousin|grand\w+|baby),? "
    + _NAME
    # A signature; but not the rest of "neo-Nazism" at the end of a line.
    + r"|(?:(?<!\w)-|[~\N{EM DASH}\N{EN DASH}])\s*"
    + _NAME
    + r"\s*$",
    re.MULTILINE,
)


def private_names(texts: Collection[str]) -> frozenset[str]:
    """Return the names that reviews give to private people, word by word, as they are written.

    The rule: a name is private where the text introduces it so ("my name is", "my daughter Ann", a signature).
    Characters, authors and places are named without that, and are what a persona may speak of. Names that nobody
    introduces are not found, nor names in scripts without capital letters.
    """
    found = (group for text in texts for match in _INTRODUCED.finditer(text) for group in match.groups() if group)
    return frozenset(filter(_is_name, chain.from_iterable(map(_WORD.findall, found))))


def _is_name(word: str) -> bool:
    """Return whether an introduced word is more than a word that any persona may use ("Thanks, This was ...").

    Nor is the rest of "Ann-loving" or "Ann's" a name, nor an initial.
    """
    lower = word.lower()
    common = lower in stop_words() and lower not in _NAMES_TOO
    part = word[0].islower() or len(word) == 1
    return not (common or part or lower == "persona" or re.fullmatch(_PERSON, lower))


def secret_names(texts: Collection[str], about: str) -> frozenset[str]:
    """Return the words that no persona of an item may hold: the names that its reviews give to private people.

    They are there as written, and casefolded, for any spelling, where they are nothing but names. A name that the item
    itself has is no secret. One that the item or another review than those that introduce it has in lower case is a
    word as well ("Hope"): its lower case may stand in a persona. In the review that introduces it, it may be the name,
    written carelessly.
    """
    introduced = [private_names([text]) for text in texts]
    open_names = {word.casefold() for word in _WORD.findall(about) if not word.islower()}
    names = {name for name in frozenset().union(*introduced) if name.casefold() not in open_names}
    if not names:
        return frozenset()
    said = [(about, frozenset[str]()), *zip(texts, introduced, strict=True)]
    ordinary = {word for text, own in said for word in set(_WORD.findall(text)) - {name.casefold() for name in own}}
    return frozenset(names | ({name.casefold() for name in names} - ordinary))


def private(persona: Persona, names: Collection[str]) -> Problem | None:
    """Refuse a persona that holds one of the `secret_names`."""
    used = any(_is_secret(word, names) for word in _WORD.findall(words(persona)))
    return Problem("name of a private person in it") if used else None


def without_secrets(text: str, names: Collection[str]) -> str:
    """Return a text with a full stop in place of contact details and of the `secret_names`."""
    found = [match.span() for pattern in _CONTACT.values() for match in pattern.finditer(text)]
    # All that is written without a space goes with them: of a link its path, which may be a name.
    harmless = (
        "." if any(start < run.end() and run.start() < end for start, end in found) else run[0]
        for run in re.finditer(r"\S+", text)
    )
    return _WORD.sub(lambda word: "." if _is_secret(word[0], names) else word[0], " ".join(harmless))


def _is_secret(word: str, names: Collection[str]) -> bool:
    return word in names or word.casefold() in names


_NAMES_TOO = frozenset({"bill", "may", "will"})
"""Of the stop words, those that people are called."""

_TERMS = {
    "religion": r"christians?|catholics?|protestants?|evangelicals?|mormons?|baptists?|jews?|jewish|muslims?|islamic|"
    r"hindus?|buddhists?|sikhs?|atheists?|agnostics?|religious|pious|devout|churchgo(?:er|ing)|believers?|pagans?",
    "health": r"diabetics?|autistic|dyslexic|disabled|depressed|bipolar|epileptic|asthmatic|infertile|obese|"
    r"alcoholics?|addicts?|anorexic|schizophrenic|handicapped|mentally ill|chronically ill|"
    r"cancer (?:survivors?|patients?)|"
    r"(?:patients?|survivors?|sufferers?) (?:of|with) \w+|adhd|ptsd|hiv[- ]positive|pregnant|in recovery",
    "ethnicity": r"black|white|asian|hispanic|latin[oax]s?|african[- ]americans?|asian[- ]americans?|arabs?|romani|"
    r"gypsy|native americans?|indigenous|caucasian|mixed[- ]race|biracial|"
    r"(?:person|people|woman|women|man|men) of colou?r",
    "politics": r"republicans?|democrats?|conservatives?|liberals?|socialists?|communists?|marxists?|libertarians?|"
    r"left-?wing(?:ers?)?|right-?wing(?:ers?)?|leftists?|feminists?|trump supporters?|anarchists?|nationalists?",
    "sexuality": r"gay|lesbians?|bisexuals?|homosexuals?|heterosexuals?|straight|queer|transgender|trans|asexual|"
    r"lgbtq?\+?|closeted|nonbinary|non-binary",
}
_PERSON = (
    r"(?:readers?|viewers?|guests?|diners?|persons?|people|users?|customers?|buyers?|shoppers?|fans?|wom[ae]n|m[ae]n|"
    r"mothers?|fathers?|mom|mum|dad|moms|dads|parents?|famil(?:y|ies)|couples?|individuals?|teens?|teenagers?|adults?|"
    r"students?|teachers?|girls?|boys?|kids?|caregivers?|seekers?|enthusiasts?|lovers?|critics?)"
)
_IS = (
    r"(?:they are|they're|he is|she is|who is|who are|who's|(?:this|the) \w+ is|(?:this|the) persona is|"
    r"identif(?:y|ies) as|being|as|raised|born|diagnosed (?:as|with)|suffer(?:s|ing)? from|liv(?:es?|ing) with|"
    r"recover(?:s|ing) from|struggl(?:es?|ing) with (?:their|his|her))"
)
_AILMENTS = (
    r"(?:cancer|diabetes|depression|anxiety|autism|adhd|ptsd|dementia|alzheimer\w*|epilepsy|asthma|arthritis|"
    r"addiction|alcoholism|anorexia|infertility|chronic (?:pain|illness)|mental illness|an illness|a disability|"
    r"an? eating disorder)"
)
_DESCRIBES = {
    what: re.compile(
        # "a Jewish reader", "gay men": but not "a gay romance reader", where it is the book that is.
        rf"\b(?:{terms})[ -]+(?:\w+-?aged? )?{_PERSON}\b"
        # "This reader is a devout Catholic", "as a lesbian": but not "is conservative about", "as Jewish history".
        rf"|\b{_IS} (?:an? |the )?(?:(?!about|into|with|for|on|of|in|to)[\w-]+ )?(?:{terms})"
        rf"(?=\s*(?:[.,;:!?]|$|and\b|or\b|who\b|but\b|{_PERSON}\b))"
        # As all that a name says: "The Lapsed Catholic".
        rf"|\A(?:the )?(?:[\w'-]+ )?(?:{terms})\.",
        re.IGNORECASE,
    )
    for what, terms in _TERMS.items()
}
_AILING = re.compile(
    rf"\b(?:{_IS}|their|his|her|has|have|having|with) (?:own |\w+ly )?{_AILMENTS}\b"
    r"(?! (?:story|stories|memoirs?|books?|films?))"
    rf"|\b{_AILMENTS}[ -]{_PERSON}\b|\b{_AILMENTS}[ -](?:survivor|patient|sufferer)s?\b",
    re.IGNORECASE,
)


def sensitive(persona: Persona) -> Problem | None:
    """Refuse a persona that says what its people are by health, religion, ethnicity, politics or sexuality.

    The rule is on grammar, since an item may well be about these: refused is a term of them that stands right before a
    person ("Jewish reader"), is said of the person ("who is a devout Catholic", "lives with diabetes"), or is all that
    the name says ("The Lapsed Catholic"). Let pass is a term before any other noun ("reader of Jewish history", "gay
    romance fan", "politically minded satire").

    Its limits: English only; a term that is not listed, or said over several words, passes; and so does what follows
    from a topic without being said. An editor can block what does. It errs the other way, too, where an item is about
    "black people": of 5,188 personas of films it refuses 11, some of them for what the film is about.
    """
    found = next((what for what, pattern in _DESCRIBES.items() if pattern.search(words(persona))), None)
    if found is None and _AILING.search(words(persona)):
        found = "health"
    return Problem("describes the person by a protected trait", found) if found else None


UNSUPPORTED: Final = "not supported by its evidence"


def unsupported_by_measure(
    personas: Sequence[Persona], said: Mapping[str, str], encoder: Encoder
) -> list[Problem | None]:
    """Return what `support` holds against each persona: that it is below `SUPPORT`, or nothing."""
    scores = supports(personas, said, encoder)
    return [Problem(UNSUPPORTED, f"{score:.2f}") if score < SUPPORT else None for score in scores]


def supports(personas: Sequence[Persona], said: Mapping[str, str], encoder: Encoder) -> list[float]:
    """Return the `support` of each persona by its evidence, all of it being in `said`."""
    evidence = list(dict.fromkeys(review_id for persona in personas for review_id in persona.evidence))
    rationales = encoder.encode([persona.preference_rationale for persona in personas])
    vectors = dict(zip(evidence, encoder.encode([said[review_id] for review_id in evidence]), strict=True))
    return [
        support(
            p.preference_rationale, [said[r] for r in p.evidence], rationale, np.stack([vectors[r] for r in p.evidence])
        )
        for p, rationale in zip(personas, rationales, strict=True)
    ]


def support(rationale: str, evidence: Sequence[str], rationale_vector: Vector, evidence_vectors: Vector) -> float:
    """Return how far evidence bears a rationale out, about 0 to 1: half meaning, half words.

    Half the cosine with the mean of the evidence (the encoder's space), half the share of the rationale's telling words
    that occur in the evidence. `tests/benchmarks/support.py` measures it.
    """
    centre = evidence_vectors.mean(axis=0)
    meaning = float(rationale_vector @ centre / max(float(np.linalg.norm(centre)), 1e-9))
    wanted = stems(rationale) - FORMULA
    shared = len(wanted & stems(" ".join(evidence))) / max(1, len(wanted))
    return (meaning + shared) / 2


FORMULA: Final = stems(
    "This persona appreciates this item film book because; is wary of values enjoys likes reader viewer"
)
"""What rationales say whatever the item."""


def likeness(personas: Sequence[Persona], encoder: Encoder) -> Vector:
    """Return how far each persona says what each other one does: cosines, shape (personas, personas).

    Of description and rationale alone: under another name the same words would seem to differ.
    """
    vectors = encoder.encode([f"{persona.description} {persona.preference_rationale}" for persona in personas])
    return vectors @ vectors.T


def merged(personas: Sequence[Persona], encoder: Encoder) -> tuple[Persona, ...]:
    """Return the personas without those that are near-duplicates of an earlier one, which gets their evidence."""
    kept: list[int] = []
    evidence: dict[int, tuple[str, ...]] = {}
    alike = likeness(personas, encoder) >= ALIKE
    for place, persona in enumerate(personas):
        first = next((other for other in kept if alike[other, place]), None)
        if first is None:
            kept.append(place)
            evidence[place] = persona.evidence
        else:
            evidence[first] += persona.evidence
    return tuple(replace(personas[place], evidence=tuple(dict.fromkeys(evidence[place]))) for place in kept)


def safe_to_quote(sentence: str, names: Collection[str]) -> bool:
    """Return whether a review's sentence may stand in a persona as it is; `names`: the item's `secret_names`."""
    persona = Persona("", "quoted", sentence, "", ())
    return not (contact(persona) or private_names([sentence]) or private(persona, names) or sensitive(persona))
