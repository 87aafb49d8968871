"""The kill switch: while a file is there, every answer is the first stage's order.

A file rather than a signal, since it can be seen (`ls`), set before a server starts, mounted into a container, and
holds for workers that are started later; a signal reaches the processes of one moment and leaves no trace.
"""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

NAME = "switched-off"
"""Of the file in the index directory, where no other path is set."""


class Switch:
    """Whether reranking is switched off, as of the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hidden = False
        self.off = False
        self.look()

    def look(self) -> None:
        """Look for the file. Where that cannot be told, the switch stays as it is."""
        try:
            off = self._path.exists()
        except OSError as error:
            # Once: it is looked for several times a second.
            if not self._hidden:
                log.warning("the switch stays %s: %s", "off" if self.off else "on", error)
            self._hidden = True
            return
        self._hidden = False
        if off != self.off:
            log.warning("reranking is switched %s by %s", "off" if off else "on again", self._path)
        self.off = off


def switch_off(path: Path) -> None:
    """Have every server that looks at this path answer in the first stage's order.

    Raises OSError, also where there is no such directory: then no server looks there.
    """
    path.touch()


def switch_on(path: Path) -> None:
    """Have them rerank again. Raises OSError."""
    path.unlink(missing_ok=True)
