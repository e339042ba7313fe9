"""The kill rate of the certificates: ``python tests/verify/mutation.py [NAME ...]`` from the repository's root.

Each mutant of each objective is run through values and gradients on fixed batches, compared with the scalar reference,
then through the contract, finiteness, and in float32 through batches near the optimum and such as the suite draws. A
mutant is killed by any of them; the loss itself, compiled as its mutants are, must survive all of them, or kills would
say nothing. Survivors that are argued to be the same loss stand in `EQUIVALENT`; any other is a hole in the checks.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from equivalent import EQUIVALENT
from mutate import Mutant, mutants, unchanged
from near_optimum import keeps_its_digits, near_optimum
from references import reference

from prefopt import objectives
from prefopt.core.batches import Batch, Ranked
from prefopt.core.loss import State
from prefopt.core.objective import Objective
from prefopt.core.policy_gradient import PolicyGradient
from prefopt.core.registry import REGISTRY
from prefopt.verify.cases import REGIMES, Draw, Response, Seeded
from prefopt.verify.contract import CONTRACT, finite
from prefopt.verify.evaluation import evaluate, loss_of, state_of
from prefopt.verify.leaves import leaves
from prefopt.verify.mathematics import JUMP, STEP, Reference, Slopes, check_gradient, check_value
from prefopt.verify.search import Trial, sample, trial

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Expected:
    """What the reference says of one trial: the value, and the gradient of each entry between two bounds."""

    one: Trial
    value: float
    gradient: dict[tuple[str, tuple[int, ...]], tuple[float, float]]


def expectations(name: str) -> list[Expected]:
    entry, found = REGISTRY[name], []
    for seed in range(96 if "kl_ratio" in {field.name for field in fields(entry.cls)} else 32):
        one = trial(Seeded(seed), entry.cls, entry.fixed, regime=REGIMES[seed % 4], rows=1 + seed % 3, longest=6)
        batch, mathematics = one.batch(), reference(entry.cls.name)
        state = state_of(one.objective, batch)
        if not mathematics.compares(one.objective, batch, state):
            continue
        value = float(mathematics.value(one.objective, batch, state))
        gradient = {
            (path, index): (float(min(left, right)), float(max(left, right)))
            for path, index, left, right in mathematics.derivatives(one.objective, batch, state)
        }
        found.append(Expected(one, value, gradient))
    return found


def stillborn(mutant: Mutant, expected: list[Expected]) -> bool:
    """Whether the mutant cannot run at all, which no check can take credit for."""
    try:
        agrees(expected[0], rebuilt(expected[0].one.objective, mutant))
    except Exception:
        return True
    return False


def killed(mutant: Mutant, expected: list[Expected]) -> bool:
    """Whether some check tells the mutant from the objective. One that raises on some input is told."""
    try:
        return told(mutant, expected)
    except Exception:
        return True


def told(mutant: Mutant, expected: list[Expected]) -> bool:
    return any(not agrees(one, rebuilt(one.one.objective, mutant)) for one in expected) or breaks(mutant, expected)


def rebuilt(objective: Objective, mutant: Mutant) -> Objective:
    return mutant.cls(**{field.name: getattr(objective, field.name) for field in fields(objective)})


def agrees(expected: Expected, objective: Objective) -> bool:
    batch = expected.one.batch()
    # The state is a fact of the trial; a mutant of `prepare` is not what is tried here.
    result = evaluate(loss_of(objective), batch, state_of(expected.one.objective, batch))
    if not close(float(result.value), expected.value, expected.value):
        return False
    for (path, index), (low, high) in expected.gradient.items():
        found = float(result.gradient[path][index])
        if max(abs(low), abs(high)) * float(STEP) > JUMP * abs(expected.value):
            continue
        if not (low <= found <= high or close(found, low, high) or close(found, high, low)):
            return False
    return True


def close(found: float, exact: float, scale: float) -> bool:
    return math.isfinite(found) and abs(found - exact) <= TOLERANCE * (abs(exact) + abs(scale)) + 1e-14


def breaks(mutant: Mutant, expected: list[Expected]) -> bool:
    for one in expected[:4]:
        mutated = replace(one.one, objective=rebuilt(one.one.objective, mutant))
        if any(not check(mutated).passed for name, check in CONTRACT.items() if name != "padding"):
            return True
    name = expected[0].one.objective.name
    for seed in range(12):
        one = trial(Seeded(seed), REGISTRY[name].cls, {}, regime=("extreme", "certain")[seed % 2], rows=4, longest=6)
        if not finite(replace(one, objective=rebuilt(one.objective, mutant)), torch.float32).passed:
            return True
    if any(
        not keeps_its_digits(remembered(name), replace(one, objective=rebuilt(one.objective, mutant)))
        for one in near_optimum(name)
    ):
        return True
    # Last, because it is slow: all digits, on batches such as those of the suite.
    return any(
        not check(remembered(name), replace(one, objective=rebuilt(one.objective, mutant)), dtype).passed
        for check, dtype in (
            (check_value, torch.float32),
            (check_gradient, torch.float32),
            (check_gradient, torch.float64),
        )
        for one in drawn(name)
    )


@lru_cache(maxsize=1)
def drawn(name: str) -> list[Trial]:
    cls = REGISTRY[name].cls
    found = sample(lambda source: trial(source, cls, {}, longest=6), 400)
    if issubclass(cls, PolicyGradient):  # its KL has branches for the sake of digits, which few settings reach
        settings = {"beta": 0.5, "kl": "k3", "kl_ratio": True}
        found += [trial(Seeded(seed), cls, settings, regime="extreme", rows=1, longest=6) for seed in range(300)]
    needs = cls.needs
    if needs.batch is Ranked and "scores" in needs.labels and not (needs.tokens or needs.rewards):
        found.append(Trial(cls(), NEARLY_EQUAL))
    if name == "exo":
        found.append(Trial(cls(beta=0.03, beta_reward=0.03), HARD_TARGET))
    return found


NEARLY_EQUAL = Draw(
    Ranked,
    {"completions": tuple(Response(1, (True,), {"logps": (-logp,), "ref_logps": (-1e-8,)}) for logp in (1e-5, 3e-5))},
    {"group": [0, 0], "ids": [1], "scores": [0.0, 0.0]},
    tokens=False,
)
"""Equal scores and all but equal log-probs near 0: the slope in a score is what two numbers near log 2 leave."""

HARD_TARGET = Draw(
    Ranked,
    {
        "completions": tuple(
            Response(1, (True,), {"logps": (logp,), "ref_logps": (ref_logp,)})
            for logp, ref_logp in ((0.0, -8.0), (0.0, 0.0), (-1e4, 0.0))
        )
    },
    {"group": [0, 0, 0], "ids": [1], "scores": [0.0, 0.0, 1.5]},
    tokens=False,
)
"""The target is all on a response without mass: what is small is the slope in the log-probs of the two others."""


class Remembered(Reference):
    """A reference that is asked by one mutant after the other about the same batches."""

    def value(self, objective: Objective, batch: Batch, state: State) -> Any:
        return self.slopes(objective, batch, state).value

    def slopes(self, objective: Objective, batch: Batch, state: State) -> Slopes:
        known = self.__dict__.setdefault("known", {})
        inputs = {path: value.tolist() for path, value in leaves(batch).items()}
        # As text, in which NaN equals NaN.
        settings = {field.name: getattr(objective, field.name) for field in fields(objective)}
        given = {name: value.tolist() for name, value in state.items()}
        key = repr((settings, given, batch.rows.logps.dtype, inputs, vars(batch)))
        if key not in known:
            known[key] = super().slopes(objective, batch, state)
        return known[key]


@lru_cache(maxsize=1)
def remembered(name: str) -> Remembered:
    return Remembered(reference(name).module)


def survivors(name: str) -> Iterator[tuple[str, str | None]]:
    """Every mutant by its text, with None if it was killed.

    Raises:
        AssertionError: the checks tell the loss from itself.
    """
    expected, cls = expectations(name), REGISTRY[name].cls
    assert not killed(unchanged(cls), expected), f"the checks fail {name} itself: what they kill says nothing"
    for mutant in mutants(cls):
        if stillborn(mutant, expected):
            continue
        if str(mutant) in EQUIVALENT.get(name, {}):
            yield str(mutant), str(mutant)
        else:
            yield str(mutant), None if killed(mutant, expected) else str(mutant)


def main(names: list[str]) -> int:
    total = dead = argued = 0
    objectives.load()
    for name in names or [name for name in objectives.names() if not REGISTRY[name].fixed]:
        results = list(survivors(name))
        alive = [text for text, survivor in results if survivor]
        known = [text for text in alive if text in EQUIVALENT.get(name, {})]
        total, dead, argued = total + len(results), dead + len(results) - len(alive), argued + len(known)
        print(f"{name}: {len(results) - len(alive)} of {len(results)} killed, {len(known)} argued to be equivalent")
        for text in alive:
            print(f"    {'=' if text in known else '!'} {text}")
    rate = dead / max(total - argued, 1)
    print(f"{dead} of {total} mutants killed, {argued} argued to be equivalent: {100 * rate:.1f} % of the rest")
    return 0 if rate >= 0.99 else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
