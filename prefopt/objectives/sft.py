from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prefopt.core import (
    About,
    Completions,
    Demonstrations,
    Needs,
    Objective,
    Recipe,
    State,
    Term,
    independent,
    optimum,
    parameter,
    register,
)


@register("sft", aliases=("nll",))
@dataclass(frozen=True, kw_only=True)
class SFT(Objective[Demonstrations]):
    """Supervised fine-tuning: negative log-likelihood of demonstrations.

    .. math:: L = −log π(y)

    in nats, over completion tokens only. Three averages are in use and differ when lengths do: ``"token"``
    Σ −log π(y) / Σ len(y) over the whole step (the default of most libraries), ``"sequence"`` the mean over examples
    of −log π(y)/len(y), ``"sum"`` the mean over examples of −log π(y). The minimiser is the distribution of the data.
    On pairs it imitates the chosen completion.
    """

    about = About(
        title="Supervised fine-tuning (maximum likelihood)",
        year=2022,
        arxiv="2203.02155",
        formula="-log π(y)",
        use="Demonstrations of good answers; the start of most pipelines.",
    )
    needs = Needs(batch=Demonstrations, lengths=True)
    recipe = Recipe(full=2e-5, reason="No paper is followed; 2e-5 is a common rate for fine-tuning on demonstrations.")
    evidence = (
        optimum(
            "the distribution of the data, at its entropy",
            "verify/test_optima.py::test_sft_is_the_distribution_of_the_data",
        ),
        independent("TRL 1.16", "verify/test_against_trl.py"),
    )

    average: str = parameter("token", "what the loss is averaged over", choices=("token", "sequence", "sum"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average == "sum":
            # The class declares what the averages over tokens need: without lengths they would divide by nothing.
            object.__setattr__(self, "needs", Needs(batch=Demonstrations))

    def reward(self, completions: Completions) -> Float[Tensor, " n"]:
        """log π(y), the only score that a likelihood gives."""
        return completions.logps

    def terms(self, batch: Demonstrations, state: State) -> Mapping[str, Term]:
        values = -(batch.completions.mean if self.average == "sequence" else batch.completions.logps)
        return {"nll": Term(values, per="token" if self.average == "token" else "example")}
