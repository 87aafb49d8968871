"""The server's log on stderr: lines for people, or one JSON object a line for what collects them."""

import json
import logging
from datetime import UTC, datetime
from typing import Literal

TEXT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")


class JsonLines(logging.Formatter):
    """One object a record: time, level, logger, message, and what `extra={"fields": {...}}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def log_to_stderr(form: Literal["text", "json"]) -> None:
    """Have everything this process logs from now on go to stderr in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TEXT)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
