"""Lines of the log with the id of the request that they are about."""

from __future__ import annotations

import json
import logging
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

from kdrt.images.metadata import MetadataWarning
from kdrt.prompt import PromptSyntaxWarning, TruncationWarning

LogFormat = Literal["text", "json"]

_OF_REQUESTS = (MetadataWarning, PromptSyntaxWarning, TruncationWarning)

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered; empty outside of one."""


class _TextFormatter(logging.Formatter):
    """``time level name [request] message key=value …``"""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={value}" for name, value in _facts(record).items())
        about = f"[{request_id.get()}] " if request_id.get() else ""
        line = f"{_time(record)} {record.levelname} {record.name}: {about}{record.getMessage()}"
        return line + facts + self._trace(record)

    def _trace(self, record: logging.LogRecord) -> str:
        return f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            entry["request_id"] = request_id.get()
        entry |= _facts(record)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def start_logging(form: LogFormat, stream: TextIO | None = None) -> None:
    """Write what a server has to say: its requests, and warnings of all that it is made of, but not
    of prompts and of what infotexts cannot say: clients are told of those in their answers.

    Args:
        form: of the lines.
        stream: where to; None is standard error.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    for name, at_least in (
        ("kdrt.serve", logging.INFO),
        ("kdrt", logging.WARNING),
        ("uvicorn", logging.WARNING),
        ("asyncio", logging.WARNING),  # such as that no further connection can be opened
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        # `kdrt -v` has asked for more.
        logger.setLevel(min(at_least, logger.level or at_least))
    for category in _OF_REQUESTS:
        warnings.simplefilter("ignore", category)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _facts(record: logging.LogRecord) -> dict[str, object]:
    """What was given as ``extra={"facts": …}``."""
    facts = getattr(record, "facts", {})
    return dict(facts) if isinstance(facts, dict) else {}
