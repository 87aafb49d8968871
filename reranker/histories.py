"""Which history store an address means."""

from pathlib import Path
from urllib.parse import urlsplit

from reranker.errors import ConfigurationError
from reranker.histories_sqlite import SqliteHistoryStore
from reranker.records import HistoryStore

# A read that takes longer is of no use to a page that is being built; on one machine it takes 0.1 ms.
READ_SECONDS = 0.25
# A merge of 2,000 events takes about 50 ms; a writer has time, and a server that forks to save may pause for a second.
WRITE_SECONDS = 10.0


def shown_address(address: str) -> str:
    """Return an address as it may be shown: of a URL no more than scheme, host, port and a database's number."""
    scheme, mark, _ = address.partition("://")
    if not mark:
        return address
    server = server_of(address)
    if server is None:
        return f"{scheme}://***"
    path = urlsplit(address).path
    return f"{scheme}://{server}{path if path[1:].isdigit() else ''}"


def server_of(url: str) -> str | None:
    """Return host, or host:port, of a URL; None where it has none.

    Nor has one whose password is not escaped: what then stands in the place of host and port is a part of it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or "@" in parts.path + parts.query + parts.fragment:
        return None
    return host if port is None else f"{host}:{port}"


def open_histories(address: str, timeout: float = READ_SECONDS) -> HistoryStore:
    """Open the store at a redis://, rediss:// or redis+cluster:// URL, or the SQLite file at a path.

    `timeout` is the seconds that a call to Redis may take. Raises HistoryStoreError, and ConfigurationError if the
    address means no store.
    """
    if "://" not in address:
        return SqliteHistoryStore(Path(address))
    try:
        from reranker.histories_redis import RedisHistoryStore
    except ImportError as error:
        raise ConfigurationError("histories is a Redis URL, but redis is not installed: persona4rec[redis]") from error
    return RedisHistoryStore(address, timeout=timeout)
