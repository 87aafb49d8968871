"""The state of a training on disk: a killed run goes on from its last epoch."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from offline.errors import ConfigurationError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StateFile:
    """One file that is replaced whole, so that a run killed while writing leaves the state before."""

    path: Path

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep a state: tensors, numbers, texts, and lists and dicts of them.

        Raises ConfigurationError if the file cannot be written.
        """
        fresh = self.path.with_suffix(".writing")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(dict(state), fresh)
            os.replace(fresh, self.path)  # noqa: PTH105 - named for what it promises: atomic
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError of a full disk
            raise ConfigurationError(
                f"the state of the training cannot be written to {self.path}: {error}. Choose another path or make room"
            ) from error

    def read(self, key: str) -> dict[str, Any] | None:
        """Return the state that was kept, if it is there, whole, and of this key; a training starts over without."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
        except Exception as error:  # a torn file fails in any layer of the archive's reader
            log.warning("%s cannot be read and is not used, this part starts over: %s", self.path, error)
            return None
        if not isinstance(state, dict) or state.get("key") != key:
            log.warning("%s is of another training and is not used", self.path)
            return None
        return state
