"""The errors that prefopt raises on purpose.

Every one is a sentence or two that name the thing, where it is, and the remedy; the command line prints
it as one line and exits with status 2.
"""

import difflib
from collections.abc import Iterable


class PrefoptError(Exception):
    """Base of all errors raised on purpose."""


class UsageError(PrefoptError, ValueError):
    """An argument, a name or a combination of settings that cannot work."""


class DataError(PrefoptError, ValueError):
    """A dataset that cannot be read, understood, or trained on."""


class ModelError(PrefoptError, ValueError):
    """A model, adapter or tokenizer that cannot be loaded or does not fit the run."""


class OutOfMemory(PrefoptError, MemoryError):
    """A run that needs more memory than there is."""


class Diverged(PrefoptError, ArithmeticError):
    """A run whose losses or gradients are no longer finite."""


class Interrupted(PrefoptError):
    """A run that a signal ended, after it was saved.

    Attributes:
        signal: The number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name nearest to ``name``, or None where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return near[0] if near else None
