"""How logs are written: facts as fields, to standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import msgspec
import structlog

Format = Literal["text", "json"]


def configure(log_format: Format) -> None:
    """Send this process's logs, the libraries' too, to standard error as text or JSON lines."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    render: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # the others print all locals
            )
        ]
    )
    # Not by way of the standard library, which takes three times as long: a line a call adds up.
    structlog.configure(
        processors=[*shared, *render],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    adopt("dbos")


def adopt(library: str) -> None:
    """Let a library's warnings and errors go the way of all others, not by handlers of its own."""
    logger = logging.getLogger(library)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def _json(fields: dict[str, Any], **_: Any) -> str:
    return msgspec.json.encode(fields, enc_hook=str).decode()
