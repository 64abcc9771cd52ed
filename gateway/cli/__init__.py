"""The command line: one module a command; what is heavy is imported when it runs."""

from gateway.cli.root import main

__all__ = ["main"]
