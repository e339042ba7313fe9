"""State that runs over a training, against exact arithmetic: every step's update in fractions, on random batches.

A step is seen in micro-batches of any size; steps of evaluation in between change nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from prefopt import get_objective
from prefopt.batches import Batch, Completions, Labelled
from prefopt.verify import Seeded, draw
from prefopt.verify.leaves import size, take

STEPS = 6


def exact(completions: Completions) -> list[Fraction]:
    """log π − log π_ref of every row."""
    pairs = zip(completions.logps.tolist(), completions.ref_logps.tolist(), strict=True)
    return [Fraction(policy) - Fraction(reference) for policy, reference in pairs]


def kto(seen: list[Batch], **_: float) -> dict[str, Fraction]:
    """Of this step alone: max(0, the mean log-ratio of its mismatched completions)."""
    ratios = exact(seen[-1].mismatched)
    return {"z0": max(sum(ratios, Fraction(0)) / len(ratios), Fraction(0))}


def bco(seen: list[Batch], beta: float) -> dict[str, Fraction]:
    """Of all steps so far: the mean reward, every completion counted once."""
    rewards = [Fraction(beta) * one for batch in seen for rows in completions(batch) for one in exact(rows)]
    return {"delta": sum(rewards, Fraction(0)) / len(rewards), "seen": Fraction(len(rewards))}


def completions(batch: Batch) -> tuple[Completions, ...]:
    return (batch.completions,) if isinstance(batch, Labelled) else (batch.chosen, batch.rejected)


def largest(batch: Batch) -> Fraction:
    """What is averaged may cancel; digits are asked for relative to this."""
    rows = [*completions(batch), *([batch.mismatched] if getattr(batch, "mismatched", None) is not None else [])]
    return max(abs(one) for part in rows for one in exact(part))


REFERENCES = {"kto": kto, "bco": bco, "bco_pair": bco}


def micro_batches(batch: Batch, parts: int) -> Iterator[Batch]:
    chunks = torch.arange(size(batch)).chunk(parts)
    for i, rows in enumerate(chunks):
        part = take(batch, rows)
        if getattr(part, "mismatched", None) is not None:  # they belong to the step, and are spread as they come
            part = replace(part, mismatched=part.mismatched[i :: len(chunks)])
        yield part


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", REFERENCES)
def test_the_state_of_every_step(name: str, seed: int) -> None:
    source = Seeded(seed)
    objective = get_objective(name, beta=0.3)
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
        expected = REFERENCES[name](seen, beta=0.3)
        assert set(state) == set(expected)
        for key, value in expected.items():
            assert abs(Fraction(float(state[key])) - value) <= Fraction(1e-14) * max(map(largest, seen)), key
