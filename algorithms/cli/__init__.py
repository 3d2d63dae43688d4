"""The command line: ``agentprm demo | train | eval | ...``; ``agentprm --help`` lists the verbs."""

from algorithms.cli.main import main

__all__ = ["main"]
