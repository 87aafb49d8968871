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
    """Return an address as it may be shown: a URL may hold a password."""
    parts = urlsplit(address)
    return address if "://" not in address else f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"


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
