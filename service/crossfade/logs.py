"""Logs: one event a line on stderr, for people or as JSON.

stdout belongs to what a command answers. Tracebacks never show local variables:
they are where document values are.
"""

import logging
import sys
import traceback
from types import TracebackType
from typing import Any, TextIO, TypeAlias

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from crossfade import redaction
from crossfade.errors import CrossfadeError
from crossfade.settings import LogSettings
from crossfade.tracing import log_ids

MAX_CHAIN = 8


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Not what gRPC says, with a traceback, of each caller that hung up while it was answered."""
    return not str(record.msg).startswith("ExecuteBatchError raised in core")


def _with_trace(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The ids of the call in whose course something is logged, where there are traces."""
    return {**event, **log_ids()}


def _without_objects(record: logging.LogRecord) -> bool:
    """Asyncio adds, on lines of their own, the task or the future with what it failed with."""
    if record.name == "asyncio":
        record.msg, record.args = record.getMessage().partition("\n")[0], None
    return True


def _hide_secret_ids(_: Any, __: str, event: EventDict) -> EventDict:
    hide = redaction.present().text
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = hide(value)
        elif isinstance(value, list | tuple):
            event[name] = [hide(item) if isinstance(item, str) else item for item in value]
    return event


ErrorInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]


def _traceback(exc_info: ErrorInfo) -> str:
    """Where an error was raised, and what it is; of errors that are not our own, not what they
    say: a driver's may quote a document's value. The one that was first comes first."""
    told: list[str] = []
    error: BaseException | None = exc_info[1]
    while error is not None and len(told) < MAX_CHAIN:
        said = ""
        if isinstance(error, CrossfadeError):
            said = f": {redaction.present().text(str(error))}"
        lines = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
        told.append(f"Traceback (most recent call last):\n{lines}{type(error).__name__}{said}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(reversed(told))


def _print_traceback(out: TextIO, exc_info: ErrorInfo) -> None:
    print(f"\n{_traceback(exc_info)}", file=out)


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Sets up structlog and the standard library's logging (of the libraries) alike."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_trace,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper("iso"),
        _hide_secret_ids,
    ]
    if settings.format == "json":
        # The plain formatter: structlog's dictionaries of tracebacks hold the locals.
        render: list[Processor] = [
            structlog.processors.ExceptionRenderer(_traceback),
            structlog.processors.JSONRenderer(),
        ]
    else:
        render = [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                exception_formatter=_print_traceback,
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
    handler.addFilter(_without_objects)
    logging.root.handlers = [handler]
    # The libraries' own remarks are only of interest when something is wrong.
    logging.root.setLevel(max(level, logging.WARNING))
