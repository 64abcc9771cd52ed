"""What is logged, and how: one line an event, on standard error.

Prompts, answers and secrets are never logged.
"""

from typing import Any

_LOGGERS = ("gateway", "uvicorn", "uvicorn.error")


def logging_config(level: str, *, tells_process: bool = False) -> dict[str, Any]:
    """For ``logging.config.dictConfig``: everything from this level on."""
    source = "%(name)s[%(process)d]" if tells_process else "%(name)s"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {"format": f"%(asctime)s %(levelname)s {source}: %(message)s"}
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
            for name in _LOGGERS
        },
    }
