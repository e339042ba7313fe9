"""Batches on which the policy has all but reached the target of a distance between the two.

The value is then a square of something small, and of numbers that are subtracted from each other nothing may be lost.
What goes into the subtractions is exact in float32, so that all digits can be asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prefopt import get_objective
from prefopt.core.batches import Batch, Pairs, Ranked
from prefopt.verify.cases import Draw, Response
from prefopt.verify.evaluation import loss_of, state_of
from prefopt.verify.mathematics import Reference
from prefopt.verify.search import Trial

CLOSE = 3e-6
"""Of the value, in float32: the rounding of β, and that of a few functions."""
MOVED = (2.0**-17, 2.0**-7, 0.25, 2.0, -2.0, 10.0)
"""By how many nats a response is off its target."""


def near_optimum(name: str) -> list[Trial]:
    """Trials of one objective; none where nothing is to be reached."""
    makers = {"exo": _lists, "reward_aware_rpo": _pairs}
    return list(makers[name]()) if name in makers else []


def keeps_its_digits(mathematics: Reference, one: Trial) -> bool:
    """Whether the value in float32 is that of the mathematics."""
    batch = one.batch(torch.float32)
    state = state_of(one.objective, batch)
    exact = float(mathematics.value(one.objective, batch, state))
    return abs(float(loss_of(one.objective)(batch, state)) - exact) <= CLOSE * abs(exact)


def _responses(logps: Sequence[float]) -> tuple[Response, ...]:
    return tuple(Response(1, (True,), {"logps": (logp,), "ref_logps": (-1.0,)}) for logp in logps)


def _trial(kind: type[Batch], name: str, responses: dict[str, Any], columns: dict[str, Any], **settings: Any) -> Trial:
    return Trial(get_objective(name, **settings), Draw(kind, responses, columns, tokens=False))


def _lists() -> Iterator[Trial]:
    """Two groups whose first two responses are alike but for what is moved, and whose third holds little or nothing."""
    for moved in MOVED:
        for light in ([], [-100.0]):
            logps, scores = [-1.0, -1.0 - moved, *light], [0.75, 0.75, *(0.0 for _ in light)]
            group = [g for g in range(2) for _ in logps]
            columns = {"group": group, "ids": [1, 2], "scores": scores * 2}
            yield _trial(Ranked, "exo", {"completions": _responses(logps * 2)}, columns)


def _pairs() -> Iterator[Trial]:
    """Margins that are those of the scores but for what is moved."""
    for moved in MOVED:
        for gap in (0.0, 2.0, -16.0):
            for distance in ("backward_kl", "forward_kl"):
                responses = {"chosen": _responses([-1.0 - moved]), "rejected": _responses([-1.0 - gap])}
                columns = {"ids": [1], "chosen_score": [0.5 * gap], "rejected_score": [0.0]}
                yield _trial(Pairs, "reward_aware_rpo", responses, columns, beta=0.5, distance=distance)
