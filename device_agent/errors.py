"""What can stop the agent: a sentence for the person at the board, and an exit code for the shell."""

from __future__ import annotations


def printable(text: str) -> str:
    """Without what neither a message nor a terminal takes: file names and labels may hold any bytes."""
    return text.encode(errors="replace").decode().replace("\0", "?")


class AgentError(Exception):
    exit_code = 1


class UsageError(AgentError):
    """A setting or an argument that cannot be."""

    exit_code = 2


class NotEnrolled(AgentError):
    exit_code = 3


class Refused(AgentError):
    """The coordinator was reached and said no."""

    exit_code = 4


class DataError(AgentError, ValueError):
    """The training data cannot be used."""

    exit_code = 5

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class Unreachable(AgentError):
    exit_code = 6


class HomeError(AgentError):
    """The agent's home cannot be written, or another agent lives there."""

    exit_code = 7


class ModelError(AgentError):
    """The deployed model cannot be used."""

    exit_code = 8


class NoModel(ModelError):
    """None is deployed."""


class SpoolError(HomeError):
    """The spool cannot be used now; that may pass."""
