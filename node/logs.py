"""What the serving node writes to stderr: one line an event, key=value. No payload, no text that a peer wrote (I17)."""

import logging
import sys
import traceback
from pathlib import Path

import structlog


def configure() -> None:
    """Sends events of level info and up to stderr, and silences libraries that would log raw error texts."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    for library in ("apscheduler", "grpc", "asyncio"):
        logging.getLogger(library).addHandler(logging.NullHandler())
        logging.getLogger(library).propagate = False


def place(error: BaseException) -> str:
    """Where `error` was raised, as `file.py:line`: all of a traceback that cannot carry a payload."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
