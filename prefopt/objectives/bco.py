from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Batch,
    Labelled,
    Needs,
    Objective,
    Pairs,
    Published,
    Range,
    Recipe,
    State,
    Term,
    optimum,
    parameter,
    register,
)
from prefopt.core.objective import B

_TITLE = "Binary Classifier Optimization for Large Language Model Alignment"


@dataclass(frozen=True, kw_only=True)
class _Shifted(Objective[B]):
    """Implicit rewards measured from δ, the mean of all rewards seen in training, this step's included."""

    beta: float = parameter(0.01, "strength of the pull towards the reference", above=0, tune=Range(0.001, 0.1))

    def init_state(self) -> dict[str, Tensor]:
        return {"delta": torch.zeros((), dtype=torch.float64), "seen": torch.zeros((), dtype=torch.float64)}

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        return {"reward": self.reward(batch.rows)}

    def prepare(self, state: State, observed: Mapping[str, Tensor], *, frozen: bool = False) -> State:
        if frozen:
            return state
        rewards = observed["reward"].double()
        seen = state["seen"] + rewards.numel()
        return {"delta": state["delta"] + (rewards - state["delta"]).sum() / seen.clamp(min=1), "seen": seen}

    def metrics(self, batch: B, state: State) -> dict[str, Tensor]:
        return {**super().metrics(batch, state), "delta": state["delta"].reshape(1)}


@register("bco")
@dataclass(frozen=True, kw_only=True)
class BCO(_Shifted[Labelled]):
    """Binary Classifier Optimization (Jung et al. 2024, arXiv 2404.04656).

    .. math::
        L = E_desirable[−log σ(r − δ)] + E_undesirable[−log σ(−(r − δ))],
        r = β s(y),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats. The reward shift δ is the running mean of all implicit rewards, those
    of the step included (all micro-batches, all ranks); it carries no gradient, is saved in checkpoints, and stays as
    it is in evaluation. Each class has its own mean. With π = π_ref and δ = 0 the loss is 2 log 2. The loss is
    unchanged when r and δ shift together.

    Paper: β = 0.01, learning rate 5e-7, batch 128 (TRL's paper index). The equation is taken from public
    implementations and its number could not be confirmed. So is the way in which δ is averaged: here every reward
    counts the same, in TRL every batch.

    Where implementations differ: ``average="row"`` is one mean over all rows (TRL's BCO trainer), half this loss when
    the classes are of equal size. TRL up to 0.28 kept δ, TRL 1.16 has none. The paper's optional weights of
    undesirable rows, P(desirable|x)/(1 − P(desirable|x)), need a classifier of prompts and are not part of this loss.
    """

    about = About(
        title=_TITLE,
        year=2024,
        arxiv="2404.04656",
        formula="-log σ(β s - δ) if desirable, -log σ(δ - β s) if not",
        use="Thumbs up and thumbs down on single answers; DPO's bound for data without pairs.",
    )
    needs = Needs(batch=Labelled, reference=True, observes="rows", detaches="the reward shift δ")
    recipe = Recipe(
        full=5e-7,
        batch=128,
        paper=Published(
            rate=5e-7, batch=128, values={"beta": 0.01}, source="appendix C, as TRL's paper index reports it"
        ),
    )
    evidence = (
        optimum("π_ref (p⁺/p⁻)^(1/β)", "verify/test_optima.py::test_bco_with_a_free_shift_is_the_ratio_of_marginals"),
    )

    average: str = parameter("class", "a mean for each class, added, or one over all rows", choices=("class", "row"))

    def terms(self, batch: Labelled, state: State) -> Mapping[str, Term]:
        reward = self.reward(batch.completions) - state["delta"]
        good, bad = ("desirable", "undesirable") if self.average == "class" else ("example", "example")
        return {
            "desirable": Term(-logsigmoid(reward[batch.desirable]), good),
            "undesirable": Term(-logsigmoid(-reward[~batch.desirable]), bad),
        }


@register("bco_pair")
@dataclass(frozen=True, kw_only=True)
class BCOPair(_Shifted[Pairs]):
    """Binary Classifier Optimization on pairs (Jung et al. 2024, arXiv 2404.04656).

    .. math:: L = −log σ(r_w − δ) − log σ(−(r_l − δ)),   r = β s(y),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; the loss is a mean over pairs. δ is the running mean of all implicit
    rewards, chosen and rejected, as in `bco`. Whatever δ is, the loss is at least DPO's, for σ(a)σ(b) ≤ σ(a + b). With
    π = π_ref and δ = 0 it is 2 log 2.

    Paper: β = 0.01. The number of the equation could not be confirmed.

    Where implementations differ: TRL up to 0.28 and LLaMA-Factory keep δ, as an equal-weight mean of batch means,
    which is the same for batches of one size; TRL 1.16 dropped δ.
    """

    about = About(
        title=_TITLE,
        year=2024,
        arxiv="2404.04656",
        formula="-log σ(β s_w - δ) - log σ(δ - β s_l)",
        use="Pairs whose two answers should each be judged good or bad, not only compared.",
    )
    needs = Needs(batch=Pairs, reference=True, observes="rows", detaches="the reward shift δ")
    recipe = Recipe(
        full=5e-7,
        batch=128,
        paper=Published(
            rate=5e-7, batch=128, values={"beta": 0.01}, source="appendix C, as TRL's paper index reports it"
        ),
    )
    evidence = (
        optimum("π_ref (p⁺/p⁻)^(1/β)", "verify/test_optima.py::test_bco_with_a_free_shift_is_the_ratio_of_marginals"),
    )

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        chosen, rejected = self.reward(batch.chosen) - state["delta"], self.reward(batch.rejected) - state["delta"]
        return {"quality": Term(-logsigmoid(chosen) - logsigmoid(-rejected))}
