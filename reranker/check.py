"""What a server with these settings would serve, and what would keep it from it. Changes nothing.

It takes no port and no lock, so that it may be asked beside a server that runs: a port that another process has shows
only when one starts.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reranker.config import ServerSettings
from reranker.errors import ConfigurationError, IndexUnavailableError, Persona4RecError
from reranker.histories import open_histories, shown_address
from reranker.histories_sqlite_formats import FORMAT, found_format
from reranker.personas_milvus import MilvusPersonaStore
from reranker.served_log_sinks import KAFKA, open_sink
from reranker.snapshot import open_snapshot, read_snapshot
from reranker.tls import read_certificates
from reranker.tokens import read_tokens
from reranker.tracing import open_tracing
from reranker.worker import load_generator

_SECRETIVE_URL = re.compile(r"\b[a-z+]+://\S*[@?]\S*", re.IGNORECASE)
"""What may hold a password: a URL with a user part or a query."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    told: str
    problem: bool


def findings(settings: ServerSettings) -> Iterator[Finding]:
    """Look at everything that a server needs, whatever is wrong with the others."""
    looks: dict[str, Callable[[ServerSettings], str]] = {
        "index": _index,
        "milvus": _milvus,
        "histories": _histories,
        "generator": _generator,
        "certificates": _certificates,
        "tokens": _tokens,
        "switch": _switch,
        "served log": _served_log,
        "traces": _traces,
    }
    for what, look in looks.items():
        try:
            yield Finding(what, _shown(look(settings)), problem=False)
        except Persona4RecError as error:
            yield Finding(what, _shown(str(error)), problem=True)


def shown_settings(settings: ServerSettings) -> dict[str, str]:
    """Return every setting as it may be shown, tables as table.setting: no secret, no password of an address."""
    return {name: _setting(value) for name, value in _flat(settings.model_dump(mode="json"))}


def _flat(table: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        # An empty table is a setting of its own: no kinds of events have weights.
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{within}{name}.")
        else:
            yield within + name, value


def _setting(value: Any) -> str:
    if value is None:
        return "not set"
    text = str(value)
    # As a whole: a password may have spaces.
    return shown_address(text) if "://" in text and ("@" in text or "?" in text) else text


def _shown(told: str) -> str:
    return _SECRETIVE_URL.sub(lambda url: shown_address(url[0]), told)


def _index(settings: ServerSettings) -> str:
    snapshot = read_snapshot(settings.index)
    if snapshot is None:
        return f"none in {settings.index} yet: it is read from Milvus"
    index = open_snapshot(settings.index, snapshot)
    return (
        f"{index.version} in {settings.index}: generation {index.generation}, {index.item_count:,} items, "
        f"{index.persona_count:,} personas, embedding space {index.space}"
    )


def _milvus(settings: ServerSettings) -> str:
    with closing(MilvusPersonaStore(settings.milvus_uri, settings.milvus_token.get_secret_value())) as store:
        version = store.version()
    if version is None:
        raise IndexUnavailableError(f"Milvus at {settings.milvus_uri} holds no index: run `persona4rec publish` first")
    return f"{settings.milvus_uri} answers and has {version}"


def _histories(settings: ServerSettings) -> str:
    told = shown_address(settings.histories)
    if "://" in settings.histories:
        with closing(open_histories(settings.histories)) as store:
            # Nobody's: the least that can be asked.
            store.count("")
        return f"{told} answers"
    path = Path(settings.histories)
    if not path.exists():
        return f"{told} is not there yet and will be made"
    older = found_format(path) < FORMAT
    return f"{told} can be read" + (f", and will be brought to format {FORMAT} when it is served" if older else "")


def _generator(settings: ServerSettings) -> str:
    generator = load_generator(settings)
    return f"{generator.name} of {settings.generator}" if generator else "none: Recommend is not served"


def _certificates(settings: ServerSettings) -> str:
    if settings.tls.certificate is None:
        return "none: plain text"
    expiries = read_certificates(settings.tls).expiries
    told = (
        f"{file} valid until {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC" for file, end in expiries.items()
    )
    return ", ".join(told)


def _tokens(settings: ServerSettings) -> str:
    if settings.token_file is None:
        return "none: whoever reaches the port may call"
    return f"{len(read_tokens(settings.token_file))} in {settings.token_file}"


def _switch(settings: ServerSettings) -> str:
    state = "off: the first stage's order is answered" if settings.switch_path.exists() else "on"
    return f"{state} ({settings.switch_path})"


def _served_log(settings: ServerSettings) -> str:
    chosen = settings.served_log
    if not chosen.to:
        return "none"
    if chosen.to.startswith(KAFKA):
        with closing(open_sink(settings)):
            return f"{chosen.share:.2%} of answers to the topic {chosen.to.removeprefix(KAFKA)}, users {chosen.users}"
    if not Path(chosen.to).absolute().parent.is_dir():
        raise ConfigurationError(f"served_log.to is {chosen.to}, but there is no directory {Path(chosen.to).parent}")
    return f"{chosen.share:.2%} of answers to {chosen.to}, users {chosen.users}"


def _traces(settings: ServerSettings) -> str:
    tracing = open_tracing(settings.tracing)
    if tracing is None:
        return "none"
    tracing.close()
    return f"to {settings.tracing.endpoint}, {settings.tracing.share:.2%} of requests that come without a trace"
