"""Directories that are written all or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new directory that takes the place of `path` when the block ends well, and leaves no trace when not.

    It is made beside `path`, hence on its disk. Raises OSError.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        yield fresh
        _put_in_place(fresh, target, stale=Path(scratch) / "old")


def _put_in_place(fresh: Path, target: Path, stale: Path) -> None:
    # A rename cannot replace a directory that has files, so the old one steps aside first.
    try:
        if target.exists():
            target.rename(stale)
        fresh.rename(target)
    except BaseException:
        if stale.exists() and not target.exists():
            stale.rename(target)
        raise
