"""How often what was sampled is learned from."""

from dataclasses import dataclass
from typing import ClassVar

from prefopt.core.settings import Settings, parameter


@dataclass(frozen=True, kw_only=True)
class UpdateSchedule(Settings):
    """How often what was sampled is learned from.

    A rollout holds the prompts of ``minibatches`` optimizer steps and is gone through ``passes`` times.
    """

    name: ClassVar[str] = "schedule"
    passes: int = parameter(
        1, "times that each rollout is gone through; with 1 pass of 1 minibatch no ratio is ever clipped", at_least=1
    )
    minibatches: int = parameter(1, "optimizer steps in a pass; a rollout holds the prompts of so many", at_least=1)
    target_kl: float = parameter(
        0.0, "leave a rollout as soon as KL(π_old ‖ π) at a token exceeds this; 0 is off", at_least=0
    )
    renew_reference: bool = parameter(False, "make the policy its own reference before every rollout (rounds)")
    restart: bool = parameter(False, "learn from every rollout beginning with the weights of the start (rounds)")
