from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Completions,
    Needs,
    Objective,
    Pairs,
    Range,
    Recipe,
    State,
    Term,
    independent,
    optimum,
    parameter,
    register,
)


@register("rdpo_length", aliases=("r_dpo", "length_dpo"))
@dataclass(frozen=True, kw_only=True)
class RDPOLength(Objective[Pairs]):
    """Length-regularised DPO, R-DPO (Park et al. 2024, arXiv 2403.19159).

    .. math:: L = −log σ(β h + α (len_w − len_l)),   h = s(y_w) − s(y_l),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats, len a number of tokens; the loss is a mean over pairs. The sign is plus:
    a winner that is longer already explains the preference, and its pair pulls less. Under Bradley–Terry preferences
    the minimiser is π ∝ π_ref · exp((r − α·len)/β). At π = π_ref the loss is −log σ(α (len_w − len_l)), log 2 only for
    equal lengths. α = 0 is DPO.

    α = 0.1 is the default of SamPO's code; the paper's value and the number of its equation could not be confirmed,
    and the authors released no code. The short name rDPO is also used for robust DPO and is refused.
    """

    about = About(
        title="Disentangling Length from Quality in Direct Preference Optimization",
        year=2024,
        arxiv="2403.19159",
        formula="-log σ(β h + α(len_w - len_l))",
        use="Pairs whose chosen answers are longer on average, when answers should not grow.",
    )
    needs = Needs(batch=Pairs, reference=True, lengths=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (
        optimum("π_ref exp((r − α len)/β)", "verify/test_optima.py::test_tilts_the_reference"),
        independent("LuJunru/SamPO", "objectives/test_pairwise_fixtures.py"),
    )

    beta: float = parameter(0.1, "strength of the pull towards the reference", above=0, tune=Range(0.01, 0.5))
    alpha: float = parameter(0.1, "α, reward taken off per token", at_least=0, tune=Range(0.01, 1.0))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β · s(y) + α · len(y), the reward that the preferences are explained by."""
        ratio = completions.log_ratio
        # In the dtype of the log-ratio: a number times integers would be float32, whatever the rest is.
        return self.beta * ratio + self.alpha * completions.lengths.to(ratio.dtype)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        h = batch.margin
        longer = (batch.chosen.lengths - batch.rejected.lengths).to(h.dtype)
        return {"preference": Term(-logsigmoid(self.beta * h + self.alpha * longer))}
