"""The property-test kit: is this loss that loss, and does this objective keep to the contract?

Example:
    >>> from prefopt.verify import verify
    >>> def loss(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta): ...
    >>> print(verify(loss, as_="dpo"))

`batches` gives Hypothesis strategies of batches of any kind, `search` runs a check over them and shrinks what fails,
`CONTRACT` holds the checks that every objective must pass, and `optimum` finds where a loss drives a policy.
"""

from prefopt.verify.cases import Seeded, draw, draws
from prefopt.verify.command import main_verify
from prefopt.verify.contract import CONTRACT
from prefopt.verify.mathematics import Reference
from prefopt.verify.optimum import World, minimise, optimum
from prefopt.verify.report import Report
from prefopt.verify.results import Finding, Outcome
from prefopt.verify.search import Trial, batches, search, strategy
from prefopt.verify.verifier import verify

__all__ = [
    "CONTRACT",
    "Finding",
    "Outcome",
    "Reference",
    "Report",
    "Seeded",
    "Trial",
    "World",
    "batches",
    "draw",
    "draws",
    "main_verify",
    "minimise",
    "optimum",
    "search",
    "strategy",
    "verify",
]
