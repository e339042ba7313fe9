"""What a check answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What one check found on one batch. It passed if the error is at most the tolerance (NaN is never)."""

    error: float
    tolerance: float = 0.0
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def worse(self, other: "Outcome") -> "Outcome":
        """The one of the two that is further from passing."""
        return self if self._rank() >= other._rank() else other

    def _rank(self) -> float:
        if self.error != self.error:
            return float("inf")
        return self.error / self.tolerance if self.tolerance else (float("inf") if self.error > 0 else 0.0)


PASSED = Outcome(0.0)


def holds(condition: bool, detail: str) -> Outcome:
    """An outcome of a check that has no error to measure."""
    return PASSED if condition else Outcome(1.0, 0.0, detail)


@dataclass(frozen=True)
class Finding:
    """What one check found over all batches that it tried.

    Attributes:
        check: its name.
        passed: whether it held on all of them.
        worst: the largest error, relative to the scale that the check states.
        tried: how many batches.
        detail: what failed, where it did.
        counterexample: the smallest input on which it failed, as text.
    """

    check: str
    passed: bool
    worst: float = 0.0
    tried: int = 0
    detail: str = ""
    counterexample: str = ""

    def __bool__(self) -> bool:
        return self.passed

    def require(self) -> None:
        """Raise an AssertionError that shows the counterexample, if the check failed."""
        if not self.passed:
            where = f"\non this input:\n{self.counterexample}" if self.counterexample else ""
            raise AssertionError(f"{self.check}: {self.detail or 'failed'} (error {self.worst:.3g}){where}")
