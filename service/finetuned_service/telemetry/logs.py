"""Structured logs on standard error: one event name and its facts a line, never a prompt or a token."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import FilteringBoundLogger, Processor


def configure(log_format: str, level: str) -> None:
    """Set up logging of this process; libraries' own records take the same way."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        # Plain tracebacks: the pretty ones print local variables, and with them prompts.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer]
        if log_format == "json"
        else [*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([structlog.processors.format_exc_info] if log_format == "json" else []),
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    grpc_core = logging.getLogger("grpc._cython.cygrpc")
    grpc_core.filters = [_gone_peers_are_no_errors]


def _gone_peers_are_no_errors(record: logging.LogRecord) -> bool:
    """Grpc tells an ERROR with its traceback when a caller hangs up in the very moment in which it is sent something; lines
    of other kinds stay as they are (https://github.com/grpc/grpc/pull/32551).
    """
    if record.getMessage().startswith("ExecuteBatchError raised in core"):
        record.levelno, record.levelname, record.exc_info = logging.INFO, "INFO", None
    return True


def logger(room: str) -> FilteringBoundLogger:
    """The logger of one room of the house."""
    bound: FilteringBoundLogger = structlog.get_logger(room=room)
    return bound
