"""User histories in Redis, a single server or a Cluster: any number of readers and writers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from redis import Redis, RedisCluster, RedisError
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from reranker.errors import ConfigurationError, HistoryStoreError
from reranker.halves import Half, aspects_half, interaction_half, joined, user_hash
from reranker.histories import server_of
from reranker.histories_sqlite import KEEP_EVENTS
from reranker.records import Event, Update

FORMAT = 1
_FORMAT_KEY = "p4r:histories:format"

# Keys of one user, all in one slot of a Cluster, named by the user's hash so that none holds an id:
#   <tag>:i, <tag>:a   sorted sets of event ids by time: interactions, aspects. Redis orders equal times by the bytes
#                      of the id, which is the order of a history
#   <tag>:h            hash: "i" or "a" + event id -> the half's content
#   <tag>:f            the time up to which the user is erased
_KEYS = ("i", "a", "h", "f")

# KEYS: i, a, h, f. ARGV: keep, then half, event id, time, content for each half.
# Lua compares strings by the locale of the server, so the greater of two contents is found byte by byte.
_MERGE = """
local function greater(a, b)
  for at = 1, math.min(#a, #b) do
    local x, y = string.byte(a, at), string.byte(b, at)
    if x ~= y then return x > y end
  end
  return #a > #b
end
local sets = {i = KEYS[1], a = KEYS[2]}
local fence = tonumber(redis.call('GET', KEYS[4]) or -1)
for at = 2, #ARGV, 4 do
  local half, id, time, content = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3]
  if time > fence then
    local known = tonumber(redis.call('ZSCORE', sets[half], id) or -1)
    if time > known or (time == known and greater(content, redis.call('HGET', KEYS[3], half .. id))) then
      redis.call('ZADD', sets[half], ARGV[at + 2], id)
      redis.call('HSET', KEYS[3], half .. id, content)
    end
  end
end
for half, set in pairs(sets) do
  local surplus = redis.call('ZCARD', set) - tonumber(ARGV[1])
  if surplus > 0 then
    for _, id in ipairs(redis.call('ZRANGE', set, 0, surplus - 1)) do
      redis.call('HDEL', KEYS[3], half .. id)
    end
    redis.call('ZREMRANGEBYRANK', set, 0, surplus - 1)
  end
end
"""

# KEYS: i, a, h, f. ARGV: the time.
_ERASE = """
local fence = tonumber(redis.call('GET', KEYS[4]) or -1)
if tonumber(ARGV[1]) > fence then redis.call('SET', KEYS[4], ARGV[1]) end
for half, set in pairs({i = KEYS[1], a = KEYS[2]}) do
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', set, '-inf', ARGV[1])) do
    redis.call('HDEL', KEYS[3], half .. id)
  end
  redis.call('ZREMRANGEBYSCORE', set, '-inf', ARGV[1])
end
"""

# KEYS: i, a, h. ARGV: limit. The newest interactions, and the newest aspects that have none: the newest events are
# among them, twice `limit` at most. Of each: id, time and content of the interaction, time and content of the aspects.
_READ = """
local found, limit = {}, tonumber(ARGV[1])
local function add(id)
  local halves = redis.call('HMGET', KEYS[3], 'i' .. id, 'a' .. id)
  found[#found + 1] = {
    id, redis.call('ZSCORE', KEYS[1], id), halves[1], redis.call('ZSCORE', KEYS[2], id), halves[2]
  }
end
local newest = redis.call('ZREVRANGE', KEYS[1], 0, limit - 1, 'WITHSCORES')
for at = 1, #newest, 2 do add(newest[at]) end
local oldest = #newest == 2 * limit and tonumber(newest[#newest]) or -1
local aspects = redis.call('ZREVRANGE', KEYS[2], 0, -1, 'WITHSCORES')
for at = 1, #aspects, 2 do
  if tonumber(aspects[at + 1]) < oldest then break end
  if not redis.call('ZSCORE', KEYS[1], aspects[at]) then add(aspects[at]) end
end
return found
"""


class RedisHistoryStore:
    """A HistoryStore at redis://[user:password@]host:port/db, rediss:// over TLS, redis+cluster:// for a Cluster.

    Each merge of a user is one script, so it is atomic; each read is one script, so it is one round trip. As durable
    as the server is set to be: with `appendonly yes` and the default `appendfsync everysec` the host's loss of power
    costs up to a second of events whose offsets are committed. Set `maxmemory-policy noeviction`.

    `timeout` is the seconds that a call may take; in a Cluster twice that.

    Reading needs no right to write: a replica will do, or a server that is full.
    """

    def __init__(self, url: str, keep: int = KEEP_EVENTS, timeout: float = 1.0) -> None:
        self.address = _address(url)
        self._url = url
        self._keep = keep
        self._timeout = timeout

    def close(self) -> None:
        # Looked up in the instance, since asking for the property would connect.
        if client := self.__dict__.pop("_client", None):
            client.close()

    def read(self, user_id: str, limit: int) -> tuple[Event, ...] | None:
        limit = min(limit, self._keep)
        with self._doing("read"):
            rows = self._client.eval(_READ, 3, *_keys(user_id)[:3], limit)
        events = sorted(map(_event, rows), key=lambda event: event.recency, reverse=True)
        return tuple(events[:limit]) if events else None

    def count(self, user_id: str) -> int:
        with self._doing("read"):
            fields = self._client.hkeys(_keys(user_id)[2])
        return min(len({field[1:] for field in fields}), self._keep)

    def merge(self, updates: Mapping[str, Sequence[Update]]) -> None:
        with self._pipeline() as pipeline:
            for user_id, of_user in updates.items():
                pipeline.execute_command("EVAL", _MERGE, len(_KEYS), *_keys(user_id), self._keep, *_arguments(of_user))

    def erase(self, fences: Mapping[str, int]) -> None:
        with self._pipeline() as pipeline:
            for user_id, until in fences.items():
                pipeline.execute_command("EVAL", _ERASE, len(_KEYS), *_keys(user_id), until)

    def erased_until(self, user_id: str) -> int | None:
        with self._doing("read"):
            found = self._client.get(_keys(user_id)[3])
        return None if found is None else int(found)

    @cached_property
    def _client(self) -> Any:
        """The connection, made at first use, so that a server can start while Redis is away."""
        client = _connect(self._url, self._timeout)
        found = client.get(_FORMAT_KEY)
        if found is not None and int(found) != FORMAT:
            raise HistoryStoreError(
                f"Redis at {self.address} holds histories of format {int(found)}, this version reads format {FORMAT}: "
                "use the version that wrote it, or another server or database"
            )
        return client

    @contextmanager
    def _pipeline(self) -> Iterator[Any]:
        with self._doing("write"):
            pipeline = self._client.pipeline(transaction=False)
            # With every batch: the database may have been emptied meanwhile.
            pipeline.set(_FORMAT_KEY, FORMAT, nx=True)
            yield pipeline
            # EVAL and not EVALSHA, which a Cluster's pipelines refuse and a restarted server has forgotten.
            pipeline.execute()

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RedisError, RedisClusterException, OSError) as error:
            raise HistoryStoreError(
                f"cannot {what} the histories in Redis at {self.address}: {type(error).__name__}"
            ) from error


def _connect(url: str, timeout: float) -> Any:
    # Once more at once, for a connection that the server closed while it lay idle; not after a time-out, which would
    # become two. Patience is the caller's. A Cluster's client asks once more after a time-out, too: it cannot tell a
    # node that is slow from one that another has replaced; left to itself it asks ten times more.
    given: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 1, (RedisConnectionError,)),
    }
    if url.startswith("redis+cluster://"):
        return RedisCluster.from_url(url.replace("redis+cluster://", "redis://", 1), **given)
    return Redis.from_url(url, **given)


def _address(url: str) -> str:
    """Return host, or host:port, of the URL, which may hold a password and must not be shown."""
    server = server_of(url)
    if server is None or url.partition("://")[0] not in {"redis", "rediss", "redis+cluster"}:
        raise ConfigurationError(
            "histories is not of the form redis://HOST:PORT/DB, rediss://... or redis+cluster://...; in a password, "
            "/ is written %2F, ? %3F, # %23 and @ %40"
        )
    return server


def _keys(user_id: str) -> tuple[str, ...]:
    # 128 bits of the hash: two users of a billion share it with a probability of 1e-21.
    return tuple(f"p4r:{{{user_hash(user_id)[:32]}}}:{key}" for key in _KEYS)


def _arguments(updates: Sequence[Update]) -> Iterator[str | int | bytes]:
    to_halves: tuple[tuple[str, Callable[[Update], Half | None]], ...] = (("i", interaction_half), ("a", aspects_half))
    for update in updates:
        for name, to_half in to_halves:
            if half := to_half(update):
                yield from (name, update.event_id, half.event_time, half.content)


def _event(row: Sequence[bytes | None]) -> Event:
    event_id, interaction_time, interaction, aspects_time, aspects = row
    return joined((event_id or b"").decode(), _number(interaction_time), interaction, _number(aspects_time), aspects)


def _number(told: bytes | None) -> int | None:
    return None if told is None else int(told)
