"""Logs: one event a line on stderr, for people or as JSON.

stdout belongs to what a command answers. Tracebacks never show local variables:
they are where document values are.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from crossfade.settings import LogSettings
from crossfade.tracing import log_ids


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Not what gRPC says, with a traceback, of each caller that hung up while it was answered."""
    return not str(record.msg).startswith("ExecuteBatchError raised in core")


def _with_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The ids of the call in whose course something is logged, where there are traces."""
    return {**event, **log_ids()}


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Sets up structlog and the standard library's logging (of the libraries) alike."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_trace,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper("iso"),
    ]
    if settings.format == "json":
        # The plain formatter: structlog's dictionaries of tracebacks hold the locals.
        render: list[Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        render = [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    handler.addFilter(_is_of_interest)
    logging.root.handlers = [handler]
    # The libraries' own remarks are only of interest when something is wrong.
    logging.root.setLevel(max(level, logging.WARNING))
