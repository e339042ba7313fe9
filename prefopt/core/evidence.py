"""What speaks for a loss being the paper's besides its transcription, and where that is checked.

A reference that was written from the same page as the code proves that the two agree, not that either is the paper's
loss. Three things do: a closed-form optimum or an identity that a wrong loss would miss, numbers computed by the
authors' own code, and an independent implementation. An identity that holds at one end of a parameter only, or an
inequality, does not count. An objective with none of the three is called transcribed.
"""

from dataclasses import dataclass

from prefopt.core.errors import UsageError

OPTIMUM, AUTHORS, INDEPENDENT = "optimum or identity", "authors' code", "independent implementation"
CLASSES = (OPTIMUM, AUTHORS, INDEPENDENT)
"""Strongest first."""


@dataclass(frozen=True)
class Evidence:
    """One piece of evidence.

    Attributes:
        kind: One of `CLASSES`.
        what: The optimum or identity, or the code that computes the same numbers.
        test: The test that checks it, below ``tests/`` of the project that declares it.
    """

    kind: str
    what: str
    test: str

    def __post_init__(self) -> None:
        if self.kind not in CLASSES:
            raise UsageError(f"evidence of kind {self.kind!r}: choose {', '.join(map(repr, CLASSES))}.")


def optimum(what: str, test: str) -> Evidence:
    """A closed-form minimiser, an exact gradient, or an identity that a wrong loss would miss."""
    return Evidence(OPTIMUM, what, test)


def authors_code(what: str, test: str) -> Evidence:
    """Numbers computed by the code that the authors published, named by its repository."""
    return Evidence(AUTHORS, what, test)


def independent(what: str, test: str) -> Evidence:
    """Numbers computed by an implementation of others."""
    return Evidence(INDEPENDENT, what, test)


def verdict(evidence: tuple[Evidence, ...]) -> str:
    """``"certified"``, or ``"transcribed"`` where nothing but a reference speaks for a loss."""
    return "certified" if evidence else "transcribed"
