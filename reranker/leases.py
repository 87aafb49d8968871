"""Who may write the index: a lease in Milvus, so that two publishers of any two hosts do not write at once.

Milvus cannot compare and set, so nobody overwrites another's row: who wants a lease writes a claim of its own into the
collection `publishers` and *then* reads all claims, strongly (Dekker's flags). Of two, the one that reads last sees
both, so never do both find themselves alone; who does not, withdraws and tries again a little later.

What it rests on: the clocks of publishing hosts agree within SKEW_SECONDS, and a publisher that is suspended for longer
than LEASE_SECONDS does not wake up between asking whether it still has the lease and the write that follows. Where that
is broken, items stay whole (a row never changes and a manifest is one row), but a manifest may be stored whose
generation readers have already passed; servers then find it with the next publish of the item, or a rebuild.
"""

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname
from typing import Any
from uuid import uuid4

from pymilvus import DataType

from reranker.errors import IndexBusyError, IndexUnavailableError
from reranker.milvus import NO_VECTOR, Milvus

WRITING = "writing"
"""Holds whoever writes to the version in use, or switches to another."""
REBUILDING = "rebuilding"
"""Holds whoever makes another version, or goes back to one."""

PUBLISHERS = "publishers"
# A publisher that dies is in the way for so long at most, if nobody can tell that it is dead. Six renewals: a Milvus
# that is away for half of that costs nobody the lease.
LEASE_SECONDS = 30.0
RENEW_SECONDS = 5.0
# Hosts that keep their time by NTP differ by milliseconds; this is what one without it may have drifted in days.
SKEW_SECONDS = 5.0
# Those who withdrew from each other try again after a random part of this; a claim and its reading take 10 to 300 ms.
RETRY_SECONDS = 1.0
# Tries before a lease counts as held: by then one of several that began together has found itself alone.
TRIES = 3

_CLAIM: dict[str, dict[str, Any]] = {
    "what": {"datatype": DataType.VARCHAR, "max_length": 16},
    "holder": {"datatype": DataType.VARCHAR, "max_length": 512},
    "place": {"datatype": DataType.VARCHAR, "max_length": 128},
    "pid": {"datatype": DataType.INT64},
    "expires": {"datatype": DataType.INT64},
}
_CLAIM_FIELDS = ["claim", *_CLAIM]


@dataclass(frozen=True, slots=True)
class Process:
    """Which process holds a lease."""

    place: str
    """Where its number means something: the boot of a machine and a process namespace of it; empty if unknown."""
    pid: int

    def is_dead(self, here: "Process") -> bool:
        """Return whether the process has certainly ended, as `here` can tell; it cannot of another machine."""
        if not self.place or self.place != here.place:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def this_process() -> Process:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return Process(f"{boot}/{Path('/proc/self/ns/pid').readlink()}", os.getpid())
    except OSError:
        return Process("", os.getpid())


class Lease:
    """A claim of this process, renewed by a thread of its own until it is released."""

    def __init__(self, milvus: Milvus, what: str) -> None:
        self._milvus = milvus
        self._what = what
        self._claim = uuid4().hex
        self._process = this_process()
        self._until = 0.0
        self._over = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name=f"lease-{what}", daemon=True)

    def check(self) -> None:
        """To be called before each write: raise IndexBusyError if, not renewed in time, another may have it by now."""
        if time.monotonic() > self._until:
            raise IndexBusyError(
                f"the lease ({self._what}) of the index in Milvus at {self._milvus.uri} was lost: it could not be "
                f"renewed for {LEASE_SECONDS:.0f} s. What was written so far is whole; publish again"
            )

    def take(self, wait_seconds: float) -> None:
        """Claim until alone. Raises IndexBusyError, naming the holder, if another holds it for longer than that."""
        self._milvus.ensure_collection(PUBLISHERS, "claim", _CLAIM)
        deadline, tries = time.monotonic() + wait_seconds, 0
        while others := self._claimed_beside():
            tries += 1
            if tries >= TRIES and time.monotonic() >= deadline:
                raise IndexBusyError(
                    f"the index in Milvus at {self._milvus.uri} is in use for {self._what} by {others[0]['holder']}: "
                    f"wait for it. If it is dead, its lease ends within {LEASE_SECONDS + SKEW_SECONDS:.0f} s"
                )
            time.sleep(random.uniform(0.1, 1) * RETRY_SECONDS)  # noqa: S311 - to fall out of step
        self._renewing.start()

    def release(self) -> None:
        """Give it up. If Milvus does not answer, it ends by itself."""
        self._over.set()
        if self._renewing.ident is not None:
            self._renewing.join()
        self._withdraw()

    def _claimed_beside(self) -> list[dict[str, Any]]:
        """Write the claim and return those that stand beside it; withdrawn, if there are any."""
        self._write()
        claims = self._milvus.query(PUBLISHERS, f'what == "{self._what}"', _CLAIM_FIELDS)
        gone = [claim for claim in claims if self._is_over(claim)]
        self._milvus.delete(PUBLISHERS, "claim", [claim["claim"] for claim in gone])
        others = [claim for claim in claims if claim not in gone and claim["claim"] != self._claim]
        if others:
            self._withdraw()
        return others

    def _write(self) -> None:
        began = time.monotonic()
        claim = {
            "claim": self._claim,
            "what": self._what,
            "holder": f"process {self._process.pid} on {gethostname()}"[:500],
            "place": self._process.place[:128],
            "pid": self._process.pid,
            "expires": round((time.time() + LEASE_SECONDS) * 1000),
            "vector": list(NO_VECTOR),
        }
        self._milvus.upsert(PUBLISHERS, [claim])
        self._until = began + LEASE_SECONDS

    def _withdraw(self) -> None:
        with suppress(IndexUnavailableError):
            self._milvus.delete(PUBLISHERS, "claim", [self._claim])

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS) and time.monotonic() < self._until:
            # Tried again at the next turn, until it is too late.
            with suppress(IndexUnavailableError):
                self._write()

    def _is_over(self, claim: dict[str, Any]) -> bool:
        if claim["expires"] / 1000 + SKEW_SECONDS < time.time():
            return True
        return Process(claim["place"], claim["pid"]).is_dead(self._process)


@contextmanager
def leased(milvus: Milvus, what: str, wait_seconds: float = 0.0) -> Iterator[Lease]:
    """Hold a lease until the block ends. Raises IndexBusyError, naming the holder, if another has it for that long."""
    lease = Lease(milvus, what)
    try:
        lease.take(wait_seconds)
        yield lease
    finally:
        lease.release()
