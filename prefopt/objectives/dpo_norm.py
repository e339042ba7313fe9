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
    Published,
    Range,
    Recipe,
    State,
    Term,
    independent,
    parameter,
    register,
)


@register("dpo_norm", aliases=("sigmoid_norm",))
@dataclass(frozen=True, kw_only=True)
class DPONorm(Objective[Pairs]):
    """Length-normalised DPO (Lambert et al. 2024, Tülu 3, arXiv 2411.15124; also SimPO's appendix I, "DPO w/ LN").

    .. math:: L = −log σ(β [s(y_w)/len_w − s(y_l)/len_l]),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats, len a number of tokens; the loss is a mean over pairs. For responses of
    equal length n it is DPO with β/n. At π = π_ref it is log 2. Unlike DPO's, the margin keeps the tokens that both
    responses share when their lengths differ.

    β multiplies a per-token quantity and is therefore much larger than DPO's; 5 is the value that Tülu 3 is reported to
    use (not confirmed, as is the number of the equation).
    """

    about = About(
        title="Tulu 3: Pushing Frontiers in Open Language Model Post-Training",
        year=2024,
        arxiv="2411.15124",
        formula="-log σ(β(s_w/len_w - s_l/len_l))",
        use="Pairs of different lengths with a reference; DPO's answer to the growth of answers.",
    )
    needs = Needs(batch=Pairs, reference=True, lengths=True)
    recipe = Recipe(
        full=1e-6,
        batch=64,
        paper=Published(values={"beta": 5.0}, source="as reported"),
        reason="The paper's rate and batch could not be confirmed; these are DPO's.",
    )
    evidence = (independent("TRL 1.16", "verify/test_against_trl.py"),)

    beta: float = parameter(
        5.0, "strength of the pull towards the reference, per token", above=0, tune=Range(1.0, 20.0)
    )

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """β · s(y)/len(y)."""
        return self.beta * completions.log_ratio / completions.lengths

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-logsigmoid(self.reward(batch.chosen) - self.reward(batch.rejected)))}
