"""The mathematics and the words that every other room uses; it needs torch and nothing of prefopt's other rooms.

The names below are what a paper's file needs. They are imported on first use, for this package also holds what must be
had without torch.
"""

from typing import TYPE_CHECKING

from prefopt.core.importing import on_first_use

if TYPE_CHECKING:
    from prefopt.core.batches import Batch as Batch
    from prefopt.core.batches import Completions as Completions
    from prefopt.core.batches import Demonstrations as Demonstrations
    from prefopt.core.batches import Labelled as Labelled
    from prefopt.core.batches import Pairs as Pairs
    from prefopt.core.batches import Ranked as Ranked
    from prefopt.core.batches import Rollouts as Rollouts
    from prefopt.core.batches import TokenLogps as TokenLogps
    from prefopt.core.errors import UsageError as UsageError
    from prefopt.core.evidence import Evidence as Evidence
    from prefopt.core.evidence import authors_code as authors_code
    from prefopt.core.evidence import independent as independent
    from prefopt.core.evidence import optimum as optimum
    from prefopt.core.loss import Loss as Loss
    from prefopt.core.loss import State as State
    from prefopt.core.loss import Term as Term
    from prefopt.core.needs import About as About
    from prefopt.core.needs import Needs as Needs
    from prefopt.core.numerics import divergence_terms as divergence_terms
    from prefopt.core.numerics import grouped_log_softmax as grouped_log_softmax
    from prefopt.core.numerics import keyed_uniform as keyed_uniform
    from prefopt.core.numerics import log1mexp as log1mexp
    from prefopt.core.numerics import masked_logsumexp as masked_logsumexp
    from prefopt.core.numerics import sigmoid as sigmoid
    from prefopt.core.objective import Combination as Combination
    from prefopt.core.objective import Objective as Objective
    from prefopt.core.objective import Part as Part
    from prefopt.core.policy_gradient import PolicyGradient as PolicyGradient
    from prefopt.core.policy_gradient import bounded_exp as bounded_exp
    from prefopt.core.policy_gradient import clipped as clipped
    from prefopt.core.recipe import Published as Published
    from prefopt.core.recipe import Range as Range
    from prefopt.core.recipe import Recipe as Recipe
    from prefopt.core.registry import ambiguous as ambiguous
    from prefopt.core.registry import build as build
    from prefopt.core.registry import register as register
    from prefopt.core.registry import register_preset as register_preset
    from prefopt.core.settings import parameter as parameter

_HOME = {
    "About": "prefopt.core.needs",
    "Batch": "prefopt.core.batches",
    "Combination": "prefopt.core.objective",
    "Completions": "prefopt.core.batches",
    "Demonstrations": "prefopt.core.batches",
    "Evidence": "prefopt.core.evidence",
    "Labelled": "prefopt.core.batches",
    "Loss": "prefopt.core.loss",
    "Needs": "prefopt.core.needs",
    "Objective": "prefopt.core.objective",
    "Pairs": "prefopt.core.batches",
    "Part": "prefopt.core.objective",
    "PolicyGradient": "prefopt.core.policy_gradient",
    "Published": "prefopt.core.recipe",
    "Range": "prefopt.core.recipe",
    "Ranked": "prefopt.core.batches",
    "Recipe": "prefopt.core.recipe",
    "Rollouts": "prefopt.core.batches",
    "State": "prefopt.core.loss",
    "Term": "prefopt.core.loss",
    "TokenLogps": "prefopt.core.batches",
    "UsageError": "prefopt.core.errors",
    "ambiguous": "prefopt.core.registry",
    "authors_code": "prefopt.core.evidence",
    "bounded_exp": "prefopt.core.policy_gradient",
    "build": "prefopt.core.registry",
    "clipped": "prefopt.core.policy_gradient",
    "divergence_terms": "prefopt.core.numerics",
    "grouped_log_softmax": "prefopt.core.numerics",
    "independent": "prefopt.core.evidence",
    "keyed_uniform": "prefopt.core.numerics",
    "log1mexp": "prefopt.core.numerics",
    "masked_logsumexp": "prefopt.core.numerics",
    "optimum": "prefopt.core.evidence",
    "parameter": "prefopt.core.settings",
    "register": "prefopt.core.registry",
    "register_preset": "prefopt.core.registry",
    "sigmoid": "prefopt.core.numerics",
}

__all__ = [
    "About",
    "Batch",
    "Combination",
    "Completions",
    "Demonstrations",
    "Evidence",
    "Labelled",
    "Loss",
    "Needs",
    "Objective",
    "Pairs",
    "Part",
    "PolicyGradient",
    "Published",
    "Range",
    "Ranked",
    "Recipe",
    "Rollouts",
    "State",
    "Term",
    "TokenLogps",
    "UsageError",
    "ambiguous",
    "authors_code",
    "bounded_exp",
    "build",
    "clipped",
    "divergence_terms",
    "grouped_log_softmax",
    "independent",
    "keyed_uniform",
    "log1mexp",
    "masked_logsumexp",
    "optimum",
    "parameter",
    "register",
    "register_preset",
    "sigmoid",
]

__getattr__ = on_first_use(__name__, _HOME)
