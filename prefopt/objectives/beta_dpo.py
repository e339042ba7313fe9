from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Completions,
    Needs,
    Objective,
    Pairs,
    Published,
    Range,
    Recipe,
    State,
    Term,
    UsageError,
    authors_code,
    keyed_uniform,
    parameter,
    register,
)


@register("beta_dpo", aliases=("dynamic_beta_dpo",))
@dataclass(frozen=True, kw_only=True)
class BetaDPO(Objective[Pairs]):
    """β-DPO, DPO with a dynamic β and a filter (Wu et al. 2024, arXiv 2407.08639).

    .. math::
        L = mean over the kept pairs of −log σ(β h),   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y),
        β = max(β_min, β0 [1 + a (mean over the kept pairs of M − M0)])

    s is a sum over completion tokens, in nats. M is the reward gap of a pair; M0 and σ are moving averages, with
    momentum m, of the mean and the sample standard deviation of M over all pairs of the step, updated before they are
    used. A fraction ``filter_ratio`` of the step's pairs is dropped: the others are drawn without replacement with
    weights exp(−½ ((M − M0)/σ)²). M, M0, σ and β carry no gradient. A step is all micro-batches and ranks, and the draw
    is keyed by example ids, so neither changes it; it differs from step to step. In evaluation nothing is dropped,
    β is β0, and the averages stay as they are. With a = 0 and no filter it is DPO; at π = π_ref the loss is log 2.

    Paper: a = 0.6, filter ratio 0.2, β0 = 0.1, m = 0.9 (from the authors' code, along with β_min, the sample standard
    deviation, averages that start at 0, and the order of these steps). Whether the paper's M contains β0 could not be
    confirmed: ``gap="log_ratio"`` is M = h, the authors' code, and ``gap="reward"`` is M = β0 h.

    Where implementations differ: the authors' code filters each micro-batch on its own device. A step of one pair
    leaves σ as it was, where a sample standard deviation would be NaN.
    """

    about = About(
        title="β-DPO: Direct Preference Optimization with Dynamic β",
        year=2024,
        arxiv="2407.08639",
        formula="-log σ(β h), β = β0 [1 + a (mean M - M0)], a fraction of outliers dropped",
        use="Pairs of uneven quality, with β following how far apart the pairs of a step are.",
    )
    needs = Needs(batch=Pairs, reference=True, observes="rows", detaches="β and the choice of pairs")
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(
            values={"beta0": 0.1, "a": 0.6, "filter_ratio": 0.2, "momentum": 0.9}, source="the authors' code"
        ),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (authors_code("junkangwu/beta-DPO", "objectives/test_ranked_fixtures.py"),)

    beta0: float = parameter(0.1, "β0, the strength that is varied", above=0, tune=Range(0.01, 0.5))
    a: float = parameter(0.6, "how strongly β follows the mean gap of a step", at_least=0, tune=Range(0.1, 2.0))
    filter_ratio: float = parameter(0.2, "fraction of the pairs of a step that is dropped", at_least=0, below=1)
    momentum: float = parameter(0.9, "m, of the moving averages", at_least=0, below=1)
    beta_min: float = parameter(1e-3, "smallest β", above=0)
    gap: str = parameter("log_ratio", "what M is: h, or β0 h", choices=("log_ratio", "reward"))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β0 · s(y)."""
        return self.beta0 * completions.log_ratio

    def init_state(self) -> dict[str, Tensor]:
        return {
            "mean": torch.zeros((), dtype=torch.float64),
            "std": torch.zeros((), dtype=torch.float64),
            "steps": torch.zeros((), dtype=torch.int64),
        }

    def observe(self, batch: Pairs) -> dict[str, Tensor]:
        observed = {"gap": batch.margin if self.gap == "log_ratio" else self.beta0 * batch.margin}
        if self.filter_ratio > 0:
            observed["ids"] = self._ids(batch)
        return observed

    def prepare(self, state: State, observed: Mapping[str, Tensor], *, frozen: bool = False) -> State:
        gap = observed["gap"].double()
        if frozen:
            beta, scale = gap.new_tensor(self.beta0), gap.new_ones(())
            return {**state, "beta": beta, "scale": scale, "dropped": gap.new_zeros(0, dtype=torch.int64)}
        mean = self._averaged(state["mean"], gap.mean())
        std = self._averaged(state["std"], gap.std()) if len(gap) > 1 else state["std"]
        kept = torch.ones_like(gap, dtype=torch.bool)
        if self.filter_ratio > 0:
            kept = self._draw((gap - mean) / std.clamp(min=1e-12), observed["ids"], state["steps"])
        beta = (self.beta0 * (1 + self.a * (gap[kept].mean() - mean))).clamp(min=self.beta_min)
        return {
            "mean": mean,
            "std": std,
            "steps": state["steps"] + 1,
            "beta": beta,
            # Terms are divided by the number of pairs; the mean is over those that are kept.
            "scale": len(gap) / kept.sum().double(),
            "dropped": observed["ids"][~kept] if self.filter_ratio > 0 else gap.new_zeros(0, dtype=torch.int64),
        }

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        values = -logsigmoid(state["beta"] * batch.margin) * state["scale"]
        return {"preference": Term(torch.where(self._kept(batch, state), values, 0.0))}

    def metrics(self, batch: Pairs, state: State) -> dict[str, Tensor]:
        own = {"beta": state["beta"].reshape(1), "kept": self._kept(batch, state).double()}
        return {**super().metrics(batch, state), **own}

    def _averaged(self, old: Tensor, new: Tensor) -> Tensor:
        return self.momentum * old + (1 - self.momentum) * new

    def _draw(self, z: Float[Tensor, " n"], ids: Int[Tensor, " n"], step: Tensor) -> Bool[Tensor, " n"]:
        """Draw rows without replacement with weights exp(−z²/2): the largest of log-weight + Gumbel noise."""
        size = max(1, int(len(z) * (1 - self.filter_ratio) + 1e-9))
        noise = -torch.log(-torch.log(keyed_uniform(ids, step)))
        # Relative to the largest weight: where σ is all but 0, z² is so large that the noise would be lost beside it.
        rows = (noise - 0.5 * (z**2 - (z**2).min())).topk(size).indices
        return torch.zeros_like(z, dtype=torch.bool).index_fill(0, rows, True)

    def _kept(self, batch: Pairs, state: State) -> Bool[Tensor, " n"]:
        if not state["dropped"].numel():
            return torch.ones(len(batch.chosen), dtype=torch.bool, device=batch.chosen.logps.device)
        return ~torch.isin(self._ids(batch), state["dropped"])

    def _ids(self, batch: Pairs) -> Int[Tensor, " n"]:
        if batch.ids is None:
            raise UsageError("beta_dpo draws pairs by their ids: pass ids, or filter_ratio=0.")
        return batch.ids
