"""Where served records go: a file that all workers append to and rotate, or a Kafka topic."""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from reranker.config import ServerSettings
from reranker.errors import ConfigurationError
from reranker.served_log import Sink

KAFKA = "kafka:"


def open_sink(settings: ServerSettings) -> Sink:
    """Open what `served_log.to` names. Raises ConfigurationError; brokers are asked at the first write."""
    chosen = settings.served_log
    if not chosen.to.startswith(KAFKA):
        return FileSink(Path(chosen.to), chosen.file_bytes, chosen.files)
    # Here, because a host that only serves does not have kafka-python.
    try:
        from reranker.kafka import KafkaSettings
        from reranker.served_log_kafka import KafkaSink
    except ImportError as error:
        raise ConfigurationError(
            f"served_log.to is {chosen.to}, but {error.name} is not installed: install persona4rec[kafka]"
        ) from error
    brokers = KafkaSettings(bootstrap=settings.kafka_bootstrap) if settings.kafka_bootstrap else KafkaSettings()
    return KafkaSink(brokers, chosen.to.removeprefix(KAFKA))


class FileSink:
    """JSON lines, each written at once to the end of the file (O_APPEND), so that those of several workers do not mix.

    A file of `most_bytes` becomes PATH.1, that one PATH.2, up to PATH.`kept`; one worker renames, under a lock, and the
    others see that their file is no longer at its place.
    """

    def __init__(self, path: Path, most_bytes: int, kept: int) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._kept = kept
        self._torn = False
        try:
            self._lock = Path(f"{path}.lock").open("wb")  # noqa: SIM115 - held until close
            self._file = self._opened()
        except OSError as error:
            raise ConfigurationError(f"served_log.to {path} cannot be written: {error.strerror}") from error

    def write(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._in_place()
            # What is left of a record that the disk had no room for must not spoil the next.
            record = b"\n" * self._torn + line + b"\n"
            self._torn = os.write(self._file, record) < len(record)
            if self._torn:
                raise OSError(f"{self._path} took part of a record: is the disk full?")

    def close(self) -> None:
        os.close(self._file)
        self._lock.close()

    def _in_place(self) -> None:
        """Make sure that the open file is the one at its path, and not too large."""
        if self._full():
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                self._reopen()
                if self._full():
                    self._rotate()
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        elif self._moved():
            self._reopen()

    def _moved(self) -> bool:
        # Asked once: between two looks another worker may move the file away.
        try:
            at_path = self._path.stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(os.fstat(self._file), at_path)

    def _full(self) -> bool:
        return os.fstat(self._file).st_size >= self._most_bytes

    def _rotate(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            older = Path(f"{self._path}.{number}")
            if older.exists():
                older.rename(f"{self._path}.{number + 1}")
        self._path.rename(f"{self._path}.1")
        self._reopen()

    def _reopen(self) -> None:
        # Opened before the other is closed: if it cannot be, what is held is still a file of ours.
        opened = self._opened()
        os.close(self._file)
        self._file = opened
        self._torn = False

    def _opened(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
