"""The log: one line for each thing that an operator may want to know, with the migration that it is about.

Three formats: text for people, JSON a line each, and text with the priorities that systemd's journal reads.
Source: sd-daemon(3).
"""

import enum
import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

LOG: Final = logging.getLogger("vmstate-proxy")

_MIGRATION: Final = "migration"
_LEVELS: Final = ("debug", "info", "warning", "error")
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]
"""Takes lines, by level."""


class LogFormat(enum.StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"
    JOURNAL = "journal"


LEVELS: Final = _LEVELS
"""From the most to the least that is said."""


def about(log: logging.Logger, migration: str) -> "logging.LoggerAdapter[logging.Logger]":
    """Return a log whose lines are about one migration, by its id."""
    return logging.LoggerAdapter(log, {_MIGRATION: migration})


def message_of(record: logging.LogRecord) -> str:
    """Return a line's text, which begins with the migration that it is about."""
    migration = getattr(record, _MIGRATION, None)
    text = record.getMessage()
    return text if migration is None else f"migration {migration}: {text}"


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"vmstate-proxy: {message_of(record)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields: dict[str, Any] = {"time": when, "level": record.levelname.lower()}
        migration = getattr(record, _MIGRATION, None)
        if migration is not None:
            fields[_MIGRATION] = migration
        return json.dumps({**fields, "message": record.getMessage()})


class _Journal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES[record.levelno]}>{message_of(record)}"


_FORMATTERS: Final = {LogFormat.TEXT: _Text, LogFormat.JSON: _Json, LogFormat.JOURNAL: _Journal}


def set_up_log(level: str = "info", form: LogFormat = LogFormat.TEXT) -> None:
    """Have lines of a level, or a higher one, written to standard error at once; nobody need read them."""
    logging.raiseExceptions = False  # migrations go on when nobody reads it
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[form]())
    LOG.handlers[:] = [handler]
    LOG.propagate = False
    LOG.setLevel(level.upper())
