"""Log as lines of JSON, in which no input occurs."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

NAMES = ("mmemb_r1.serving", "uvicorn.error")
# Messages of other errors may quote what a client sent
_TELLING = (RuntimeError, MemoryError)


class JsonFormatter(logging.Formatter):
    """Write a record as one line; its `facts`, a dict, become fields."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = described(record.exc_info[1])
            line["trace"] = places(record.exc_info[2])
        return json.dumps(line, ensure_ascii=True, default=str)


def described(error: BaseException) -> str:
    """Name an error and what caused it; by their messages, too, where these can't quote an input."""
    told = type(error).__name__
    if isinstance(error, _TELLING):
        told += f": {error}"
    return told if error.__cause__ is None else f"{told}, caused by {described(error.__cause__)}"


def places(trace: TracebackType | None) -> list[str]:
    """List where an error came by: files, lines and functions."""
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace)]


def log_to(stream: TextIO, level: str = "INFO") -> None:
    """Send the server's logs to a stream, in place of what was set up for them before."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
