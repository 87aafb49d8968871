"""What people write on the command line, made into what the packages take."""

import csv
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsError

from reranker.config import TABLES, ServerSettings
from reranker.errors import ConfigurationError

# A serving host has no implicit.
if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from candidate_gen.implicit_models import Model

# Of a benchmark's request: what a first stage usually hands on.
CANDIDATES = 100

Pair = tuple[str, str]


def settings(given: Mapping[str, Any]) -> ServerSettings:
    """Return the server's settings from flags, environment, the file of --config and defaults, in that order.

    Raises ConfigurationError naming all that is wrong.
    """
    config = given.get("config") or os.environ.get("PERSONA4REC_CONFIG")
    if config and not Path(config).is_file():
        raise ConfigurationError(f"--config {config} is not a file")
    try:
        return ServerSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError("; ".join(map(_wrong_setting, error.errors()))) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(f"--config {config} cannot be read: {error}") from error
    except SettingsError as error:
        raise ConfigurationError(f"an environment variable PERSONA4REC_... cannot be used: {error}") from error


def _wrong_setting(wrong: "ErrorDetails") -> str:
    """Say what is wrong with one setting and where it is set."""
    path = [str(part) for part in wrong["loc"]]
    if wrong["type"] == "extra_forbidden":
        return f"there is no setting {'.'.join(path)}: deploy/reranker.example.toml shows those there are"
    kind = TABLES.get(path[0], ServerSettings)
    # What is wrong with a table as a whole is said of the variables of all its settings.
    name = "..." if path[-1] in TABLES else path[-1].upper()
    field = kind.model_fields.get(path[-1])
    secret = field is not None and field.annotation is SecretStr
    value = "" if secret or isinstance(wrong["input"], dict) else f" is {wrong['input']!r}"
    told = wrong["msg"].removeprefix("Value error, ")
    return (
        f"setting {'.'.join(path)}{value}: {told}. It is a flag of `persona4rec serve`, a line of its --config "
        f"file, or the environment variable {kind.model_config['env_prefix']}{name}"
    )


S = TypeVar("S", bound=BaseSettings)


def from_flags(kind: type[S], given: Mapping[str, Any]) -> S:
    """Return settings of a kind from flags, environment and defaults, in that order. Values are not quoted: secrets."""
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(map(str, wrong["loc"]))
        prefix = str(kind.model_config.get("env_prefix", ""))
        raise ConfigurationError(
            f"setting {name}: {wrong['msg']}. It is a flag, or the environment variable "
            f"{prefix}{name.upper().removeprefix(prefix)}"
        ) from error
    except SettingsError as error:
        raise ConfigurationError(f"an environment variable PERSONA4REC_... cannot be used: {error}") from error


def model(name: str) -> "Model":
    from candidate_gen.implicit_models import Model

    if name not in get_args(Model):
        raise ConfigurationError(f"there is no candidate model {name!r}: choose {' or '.join(get_args(Model))}")
    return cast("Model", name)


def require_place(flag: str, path: Path | None) -> None:
    """Raise ConfigurationError if no file can be written at `path`: better before the work of minutes than after it."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir():
        raise ConfigurationError(f"{flag} {path} cannot be written: it is a directory")
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigurationError(f"{flag} {path} cannot be written: {folder} is no directory that takes files")


def cut_offs(text: str) -> list[int]:
    """Parse "5,10,20"."""
    return _numbers("--k", text)


def sizes(text: str) -> list[int]:
    """Parse the catalogue sizes of a benchmark; each must hold a request's candidates."""
    found = _numbers("--items", text)
    if found[0] < CANDIDATES:
        raise ConfigurationError(
            f"--items is {text!r}: a request has {CANDIDATES} candidates, so give {CANDIDATES} at least"
        )
    return found


def _numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise ConfigurationError(
            f"{flag} is {text!r}: write whole numbers with commas between them, like 5,10,20"
        ) from error
    if numbers[0] < 1:
        raise ConfigurationError(f"{flag} is {text!r}: each is 1 at least")
    return numbers


def candidates(text: str, user_id: str) -> list[tuple[str, float | None]]:
    """Parse item ids with commas between them, or read a CSV file of item_id[,score]; rows of others are left out."""
    path = Path(text)
    # Not path.is_file(): a list of ids is soon too long for a file's name, which raises there.
    if not os.path.isfile(text):  # noqa: PTH113
        if path.suffix == ".csv":
            raise ConfigurationError(f"--candidates {text} is not a file")
        return [(item_id.strip(), None) for item_id in text.split(",")]
    rows = [row for row in _rows(path, ("item_id",)) if row.get("user_id", user_id) == user_id]
    if not rows:
        raise ConfigurationError(f"--candidates {text} holds no candidates of user {user_id}")
    return [(row["item_id"], _score(row.get("score"), path)) for row in rows]


def pairs(path: Path) -> list[Pair]:
    """Read the held-out pairs of a CSV file with user_id,item_id."""
    found = [(row["user_id"], row["item_id"]) for row in _rows(path, ("user_id", "item_id"))]
    if not found:
        raise ConfigurationError(f"--test {path} holds no pairs: it needs lines of user_id,item_id below its header")
    return found


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise ConfigurationError(
                    f"{path} has no column {missing[0]}; its first line must be {','.join(columns)}"
                )
            for row in reader:
                if not all(row[column] for column in columns):
                    raise ConfigurationError(
                        f"{path}, line {reader.line_num}: {' and '.join(columns)} must not be empty"
                    )
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _score(text: str | None, path: Path) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise ConfigurationError(f"{path}: score {text!r} is not a number") from error
