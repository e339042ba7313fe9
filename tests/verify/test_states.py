"""State that runs over a training, against scalar arithmetic of 50 digits: every step's update, on random batches.

A step is seen in micro-batches of any size; steps of evaluation in between change nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from common import lot, mean
from mpmath import fsum, log, mpf, sqrt, workdps

from prefopt import get_objective
from prefopt.core.batches import Batch, Completions, Labelled, Pairs
from prefopt.verify import Seeded, draw
from prefopt.verify.leaves import size, take

STEPS = 6
DIGITS = 50


def ratios(completions: Completions) -> list[mpf]:
    """log π − log π_ref of every row."""
    pairs = zip(completions.logps.tolist(), completions.ref_logps.tolist(), strict=True)
    return [mpf(policy) - mpf(reference) for policy, reference in pairs]


def kto(seen: list[Batch], **_: mpf) -> dict[str, mpf]:
    """Of this step alone: max(0, the mean log-ratio of its mismatched completions)."""
    return {"z0": max(mean(ratios(seen[-1].mismatched)), mpf(0))}


def bco(seen: list[Batch], beta: mpf) -> dict[str, mpf]:
    """Of all steps so far: the mean reward, every completion counted once."""
    rewards = [beta * one for batch in seen for rows in completions(batch) for one in ratios(rows)]
    return {"delta": mean(rewards), "seen": mpf(len(rewards))}


def beta_dpo(
    seen: list[Pairs], *, beta0: mpf, a: mpf, filter_ratio: mpf, momentum: mpf, beta_min: mpf, gap: str
) -> dict[str, mpf | list[int]]:
    """Moving averages that start at 0; of this step, the pairs that are drawn by z, the β of these, and how many."""
    average = deviation = mpf(0)
    for batch in seen:
        margins = [
            chosen - rejected for chosen, rejected in zip(ratios(batch.chosen), ratios(batch.rejected), strict=True)
        ]
        gaps = [m if gap == "log_ratio" else beta0 * m for m in margins]
        average = momentum * average + (1 - momentum) * mean(gaps)
        if len(gaps) > 1:
            spread = sqrt(fsum((m - mean(gaps)) ** 2 for m in gaps) / (len(gaps) - 1))
            deviation = momentum * deviation + (1 - momentum) * spread
    ids = seen[-1].ids.tolist()

    def key(i: int) -> mpf:
        """The logarithm of the weight exp(−z²/2), plus Gumbel noise: the largest are drawn without replacement."""
        uniform = (lot(ids[i], len(seen) - 1) + mpf(1) / 2) / 2**52
        return -(((gaps[i] - average) / max(deviation, mpf("1e-12"))) ** 2) / 2 - log(-log(uniform))

    keep = max(1, int(len(gaps) * (1 - filter_ratio)))
    order = sorted(range(len(gaps)), key=key, reverse=True)
    beta = max(beta0 * (1 + a * (mean(gaps[i] for i in order[:keep]) - average)), beta_min)
    return {
        "mean": average,
        "std": deviation,
        "steps": mpf(len(seen)),
        "beta": beta,
        "scale": mpf(len(gaps)) / keep,
        "dropped": sorted(ids[i] for i in order[keep:]),
    }


def completions(batch: Batch) -> tuple[Completions, ...]:
    return (batch.completions,) if isinstance(batch, Labelled) else (batch.chosen, batch.rejected)


def largest(batch: Batch) -> mpf:
    """What is averaged may cancel; digits are asked for relative to this."""
    rows = [*completions(batch), *([batch.mismatched] if getattr(batch, "mismatched", None) is not None else [])]
    return max(abs(one) for part in rows for one in ratios(part))


@dataclass(frozen=True)
class Case:
    name: str
    settings: Mapping[str, float | str]
    expected: Callable[..., dict[str, mpf | list[int]]]


# Binary fractions: what is kept of 1 to 5 pairs is then not a matter of rounding.
FILTERED = {"beta0": 0.25, "a": 0.5, "filter_ratio": 0.375, "momentum": 0.75, "beta_min": 1e-3}
CASES = {
    "kto": Case("kto", {"beta": 0.3}, kto),
    "bco": Case("bco", {"beta": 0.3}, bco),
    "bco_pair": Case("bco_pair", {"beta": 0.3}, bco),
    "beta_dpo": Case("beta_dpo", {**FILTERED, "gap": "log_ratio"}, beta_dpo),
    "beta_dpo of rewards": Case("beta_dpo", {**FILTERED, "gap": "reward"}, beta_dpo),
}


def micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    chunks = torch.arange(size(batch)).chunk(parts)
    for i, rows in enumerate(chunks):
        part = take(batch, rows)
        if getattr(part, "mismatched", None) is not None:  # they belong to the step, and are spread as they come
            part = replace(part, mismatched=part.mismatched[i :: len(chunks)])
        yield part


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("case", CASES)
def test_the_state_of_every_step(case: str, seed: int) -> None:
    source, wanted = Seeded(seed), CASES[case]
    objective = get_objective(wanted.name, **wanted.settings)
    state, seen = objective.init_state(), []
    for _ in range(STEPS):
        regime = source.choice(("ordinary", "extreme", "reference"))
        batch = draw(source, objective.needs, regime=regime, rows=source.integer(1, 5), longest=6).build()
        evaluation = draw(source, objective.needs, regime="ordinary", rows=3, longest=6).build()
        frozen = objective.prepare(state, objective.observe(evaluation), frozen=True)
        assert all(torch.equal(frozen[key], value) for key, value in state.items() if key in objective.init_state())
        seen.append(batch)
        observed = [objective.observe(part) for part in micro_batches(batch, source.integer(1, 3))]
        state = objective.prepare(state, {key: torch.cat([one[key] for one in observed]) for key in observed[0]})
        with workdps(DIGITS):
            settings = {key: mpf(x) if isinstance(x, float) else x for key, x in wanted.settings.items()}
            check(state, wanted.expected(seen, **settings), max(map(largest, seen)))


def check(state: Mapping[str, torch.Tensor], expected: Mapping[str, mpf | list[int]], scale: mpf) -> None:
    assert set(state) == set(expected)
    for key, value in expected.items():
        if isinstance(value, list):
            assert sorted(state[key].tolist()) == value, key
        else:
            assert abs(mpf(float(state[key])) - value) <= mpf("1e-14") * (scale + abs(value)), key
