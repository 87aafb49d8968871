"""A domain: what its items and people are called, which aspects its reviews speak of, what its prompts add.

Four come with the package, in `prompts/<domain>/domain.toml`; a file of the same form is the user's own. The prompts
are in `prompts/generic/`; a domain of the package may have its own of the same name beside its `domain.toml`.
"""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from offline.errors import ConfigurationError
from offline.rejects import reason_of

DOMAINS = ("books", "restaurants", "movies", "generic")
"""Those of the package."""

GENERIC = "generic"

MOST_SLOTS = 12
"""Of a domain: each is an own answer of a model, and beyond a dozen they begin to overlap."""

_PROMPTS = files("offline") / "prompts"

Words = Annotated[str, Field(min_length=1, max_length=400)]
Slot = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Domain(BaseModel):
    """What the prompts know of a domain."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: Slot
    item: Words
    """What one item is called: "book"."""
    person: Words
    """Who engages with it: "reader"."""
    slots: Annotated[dict[Slot, Words], Field(min_length=1, max_length=MOST_SLOTS)]
    """The aspects of a review (eq. 2), and what each is, in words for the model."""
    notes: dict[str, str] = {}
    """Sentences that the domain adds to a prompt, by the prompt's name: summary, aspects, personas, alignment."""

    def prompt(self, name: str, **words: str) -> str:
        """Return a prompt of this domain: `$item`, `$person`, `$note` and further `words` filled in."""
        template = Template(_template(self.name, name))
        return template.substitute(item=self.item, person=self.person, note=self.notes.get(name, ""), **words)


def load_domain(name_or_file: str) -> Domain:
    """Return the domain of a name of the package, or of a TOML file.

    Raises ConfigurationError if there is no such domain, or its file is not of the form of the package's.
    """
    if name_or_file in DOMAINS:
        return _parsed((_PROMPTS / name_or_file / "domain.toml").read_text("utf-8"), name_or_file)
    path = Path(name_or_file)
    if not path.is_file():
        raise ConfigurationError(
            f"--domain {name_or_file} is neither one of {', '.join(DOMAINS)} nor a file; a file of your own has "
            "name, item, person and a table [slots] of a description each"
        )
    try:
        return _parsed(path.read_text("utf-8"), name_or_file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--domain {path} cannot be read: {error}") from error


def _parsed(text: str, source: str) -> Domain:
    try:
        return Domain.model_validate(_with_words(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"--domain {source} is not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(f"--domain {source}: {reason_of(error)}") from error


def _with_words(found: Mapping[str, object]) -> Mapping[str, object]:
    """Let a domain without names for item and person take the generic ones."""
    return {"item": "item", "person": "person"} | dict(found)


def _template(domain: str, name: str) -> str:
    own = _PROMPTS / domain / f"{name}.txt"
    found: Traversable = own if domain in DOMAINS and own.is_file() else _PROMPTS / GENERIC / f"{name}.txt"
    return found.read_text("utf-8")
