from collections.abc import Mapping
from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from prefopt.core import (
    About,
    Needs,
    Objective,
    Pairs,
    Published,
    Range,
    Recipe,
    State,
    Term,
    authors_code,
    independent,
    parameter,
    register,
)


@register("nca_pair")
@dataclass(frozen=True, kw_only=True)
class NCAPair(Objective[Pairs]):
    """Noise Contrastive Alignment on pairs (Chen et al. 2024, arXiv 2402.05369).

    .. math:: L = −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l),   r = β s(y),   s(y) = log π(y) − log π_ref(y)

    s is a sum over completion tokens, in nats; the loss is a mean over pairs. It looks at absolute rewards, not at
    their difference: the chosen one is drawn to σ(r_w) = 2/3, r_w = log 2, while r_l falls without end, so the
    likelihood of the chosen response does not collapse. At π = π_ref the loss is 2 log 2; its infimum is
    log(3/2) + ½ log 3.

    Paper: β = 0.01, learning rate 5e-6, batch 32 (as TRL's paper index reports them; the number of the equation could
    not be confirmed).

    Where implementations differ: the authors' function also offers a "biased" form, −log σ(r_w) − log σ(−r_l), which
    is not this loss, and InfoNCA, which is DPO for a hard pair.
    """

    about = About(
        title="Noise Contrastive Alignment of Language Models with Explicit Rewards",
        year=2024,
        arxiv="2402.05369",
        formula="-log σ(β s_w) - ½ log σ(-β s_w) - ½ log σ(-β s_l)",
        use="Pairs, when the likelihood of chosen answers must not fall along with that of rejected ones.",
    )
    needs = Needs(batch=Pairs, reference=True)
    recipe = Recipe(
        full=5e-6,
        paper=Published(
            rate=5e-6, batch=32, values={"beta": 0.01}, source="appendix C, as TRL's paper index reports it"
        ),
    )
    evidence = (
        authors_code("thu-ml/Noise-Contrastive-Alignment", "objectives/test_pairwise_fixtures.py"),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    beta: float = parameter(0.01, "strength of the pull towards the reference", above=0, tune=Range(0.001, 0.1))

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        chosen, rejected = self.reward(batch.chosen), self.reward(batch.rejected)
        return {"preference": Term(-logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected))}
