"""The command line: ``agentprm demo | train | eval | play | games``."""

from algorithms.cli.main import main

__all__ = ["main"]
