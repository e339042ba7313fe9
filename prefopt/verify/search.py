"""Run a check over many batches: fixed corners first, then Hypothesis, which shrinks what fails."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import hypothesis
import torch
from hypothesis import strategies as st

from prefopt.core.batches import Batch
from prefopt.core.needs import Needs
from prefopt.core.objective import Objective
from prefopt.verify.cases import REGIMES, Draw, Seeded, Source, draw
from prefopt.verify.hyperparameters import draw_objective, settings_of
from prefopt.verify.leaves import describe
from prefopt.verify.results import PASSED, Finding, Outcome

T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """An objective with certain hyperparameters, and a batch to try it on."""

    objective: Objective
    drawn: Draw

    def batch(self, dtype: torch.dtype = torch.float64, **options: Any) -> Batch:
        return self.drawn.build(dtype=dtype, **options)

    def __str__(self) -> str:
        settings = settings_of(self.objective)
        return (f"{settings}\n" if settings else "") + describe(self.batch())


Check = Callable[[Trial], Outcome]


def trial(
    source: Source, cls: type[Objective], fixed: Mapping[str, Any], *, defaults: bool = False, **options: Any
) -> Trial:
    """Draw hyperparameters (unless ``defaults``), then a batch that holds what this objective needs."""
    objective = cls(**fixed) if defaults else draw_objective(source, cls, fixed)
    return Trial(objective, draw(source, objective.needs, **options))


def corners(cls: type[Objective], fixed: Mapping[str, Any], *, several: int = 4, **options: Any) -> Iterable[Trial]:
    """Fixed trials: every regime, with one example at the defaults and with ``several`` off them."""
    regime, rows = options.pop("regime", None), options.pop("rows", None)
    for seed, one in enumerate([regime] if regime else REGIMES):
        for varied, many in ((False, 1), (True, several)):
            source = Seeded(2 * seed + varied)
            yield trial(source, cls, fixed, defaults=not varied, regime=one, rows=rows or many, **options)


def strategy(make: Callable[[Source], Any]) -> Any:
    """A Hypothesis strategy of whatever ``make`` builds from a source of choices."""

    class Drawn:
        def __init__(self, draw_from: Callable) -> None:
            self._draw = draw_from

        def integer(self, low: int, high: int) -> int:
            return self._draw(st.integers(low, high))

        def number(self, low: float, high: float) -> float:
            return self._draw(st.floats(low, high, allow_nan=False, allow_infinity=False))

        def choice(self, options: Any) -> Any:
            return self._draw(st.sampled_from(options))

    @st.composite
    def made(draw_from: Callable) -> Any:
        return make(Drawn(draw_from))

    return made()


def batches(needs: Needs, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A Hypothesis strategy of batches that hold what ``needs`` names; options as in `draw` and `Build`."""
    build = {key: options.pop(key) for key in ("padding", "fill", "from_tokens", "keep_tokens") if key in options}
    return strategy(lambda source: draw(source, needs, **options).build(dtype=dtype, **build))


def sample(make: Callable[[Source], T], examples: int, *, random: bool = False) -> list[T]:
    """What Hypothesis draws, for checks that are all to be tried on the same."""
    found: list[T] = []

    @_settings(examples, random, (hypothesis.Phase.generate,))
    @hypothesis.given(strategy(make))
    def run(one: T) -> None:
        found.append(one)

    run()
    return found


def search(
    name: str,
    check: Check,
    make: Callable[[Source], Trial],
    fixed: Iterable[Trial] = (),
    *,
    examples: int = 50,
    random: bool = False,
    shrink: bool = True,
) -> Finding:
    """Try ``check`` on fixed trials, then on ``examples`` drawn ones, and shrink what fails.

    Args:
        name: of the check.
        check: what must pass.
        make: draws a trial.
        fixed: trials to try first.
        examples: how many to draw; with 0 only the fixed ones are tried and nothing is shrunk.
        random: draw others at every run.
        shrink: look for the smallest input that fails, once one was found.
    """
    seen = _Seen(check)
    first = next((one for one in fixed if not seen(one).passed), None)
    # What fails on a fixed trial is searched again only to shrink it.
    again = examples and (first is None or shrink)
    shrunk = _explore(seen, make, examples, random, shrink) if again else None
    failed = shrunk or (None if first is None else (first, check(first)))
    if failed is None:
        return Finding(name, True, seen.worst.error, seen.tried)
    trial_, outcome = failed
    return Finding(name, False, seen.worst.error, seen.tried, outcome.detail, str(trial_))


class _Seen:
    """A check that remembers how often it ran and its worst outcome."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self.tried, self.worst = 0, PASSED

    def __call__(self, one: Trial) -> Outcome:
        outcome = self._check(one)
        self.tried += 1
        self.worst = self.worst.worse(outcome)
        return outcome


def _explore(
    seen: Callable[[Trial], Outcome], make: Callable[[Source], Trial], examples: int, random: bool, shrink: bool
) -> tuple[Trial, Outcome] | None:
    failed: list[tuple[Trial, Outcome]] = []

    @_settings(examples, random, (hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])))
    @hypothesis.given(strategy(make))
    def run(one: Trial) -> None:
        outcome = seen(one)
        if not outcome.passed:
            failed[:] = [(one, outcome)]
            raise _Failed

    try:
        run()
    except (_Failed, hypothesis.errors.Flaky):
        # The last failing run is the smallest one.
        return failed[0]
    return None


def _settings(examples: int, random: bool, phases: tuple) -> Callable:
    return hypothesis.settings(
        max_examples=examples,
        derandomize=not random,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=phases,
        report_multiple_bugs=False,
    )


class _Failed(Exception):
    pass
