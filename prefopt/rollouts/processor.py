"""What turns a rollout into training examples must offer, with defaults for what most need not say."""

from typing import ClassVar, Protocol

from torch import Tensor

from prefopt.core.batches import Batch
from prefopt.core.errors import UsageError
from prefopt.data import TokenizedExample
from prefopt.rollouts.kl_controller import KLPenalty
from prefopt.rollouts.rollout import MIXTURE, POLICY, SAMPLERS, Group, Rollout


class RolloutProcessor(Protocol):
    """Turns rollouts into training examples of one kind. Implementations are frozen dataclasses of hyperparameters.

    A class that derives from this one must give ``batch`` and ``__call__``; the rest has defaults. A class that does
    not derive from it gives everything.

    Attributes:
        batch: The container that the examples go into.
        samplers: Who samples: ``"policy"``, ``"reference"``, or the ``"mixture"`` of both. Each gives an equal share
            of the completions of a prompt. One that samples from the mixture also has ``mixture``, the weight of the
            reference in it.
        compares: The least number of completions of a prompt that it can compare; 1 where each is judged alone.
        needs: The per-token values that it reads: ``"old_logps"``, ``"ref_logps"``, ``"values"``.
        kl_penalty: The KL in the reward, whose coefficient the rollout carries as ``kl_coef``; None without one.
    """

    batch: ClassVar[type[Batch]]
    samplers: ClassVar[tuple[str, ...]] = (POLICY,)

    @property
    def compares(self) -> int:
        return 1

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def kl_penalty(self) -> KLPenalty | None:
        return None

    def kl(self, rollout: Rollout) -> Tensor:
        """The KL to the reference at each token, [n, t]: what is logged, and what an adaptive coefficient follows.

        Asked for only where ``needs`` has the reference's log-probs.
        """
        return rollout.tokens("old_logps") - rollout.tokens("ref_logps")

    def keep_group(self, group: Group) -> bool:
        """Whether anything can be learned from a group; others are sampled in its place."""
        return True

    def examples_per_prompt(self, n: int) -> int:
        """The most examples that ``n`` completions of a prompt yield: what `prefopt.plan` reckons with."""
        return n

    def __call__(self, rollout: Rollout) -> list[TokenizedExample]:
        """The examples that a rollout yields."""
        ...


_MEMBERS = ("batch", "samplers", "compares", "needs", "kl_penalty", "kl", "keep_group", "examples_per_prompt")


def check_processor(processor: RolloutProcessor, name: str) -> None:
    """Refuse a third party's processor that lacks something, before anything is sampled.

    Args:
        processor: The rollout processor of an algorithm.
        name: The algorithm's name, for messages.

    Raises:
        UsageError: what is missing, or an unknown sampler.
    """
    kind = type(processor).__name__
    missing = [member for member in _MEMBERS if not hasattr(processor, member)]
    if missing or not callable(processor):
        raise UsageError(
            f"{name}: its rollout processor {kind} has no {', '.join(missing or ['__call__'])}: derive it from "
            "prefopt.rollouts.RolloutProcessor, which has defaults for all but batch and __call__."
        )
    for sampler in processor.samplers:
        if sampler not in SAMPLERS:
            raise UsageError(f"{name}: {kind}.samplers has {sampler!r}, which is not one of {', '.join(SAMPLERS)}.")
    if MIXTURE in processor.samplers and not hasattr(processor, "mixture"):
        raise UsageError(f"{name}: {kind} samples from the mixture, and has no mixture, the weight of the reference.")
