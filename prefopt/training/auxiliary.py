"""What is trained next to the policy."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prefopt.core.micro_batch import MicroBatch
from prefopt.core.objective import Objective
from prefopt.training.context import TrainingContext
from prefopt.training.preparation import StepContext
from prefopt.training.splitting import MicroBatchSplitter


class Auxiliary:
    """A model that is trained next to the policy. This base is none; `CriticTrainer` is PPO's critic.

    The trainer calls `attach` once, `extend_optimizer` when it has an optimizer, `after_backward` for every
    micro-batch and `end_of_step` for every optimizer step.

    Attributes:
        models: The models with weights of their own, which score as the policy does.
        value_head: A head on the policy's own hidden states that is read in the policy's pass.
    """

    models: tuple[nn.Module, ...] = ()
    value_head: nn.Module | None = None

    def joined(self, objective: Objective) -> Objective:
        """The loss of the policy's pass: that of the policy, with this one's where both share the pass."""
        return objective

    def metrics(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Metrics of the joined loss, under the names that they have when the losses are apart."""
        return dict(found)

    def attach(self, context: TrainingContext) -> None:
        """Take notice of the run, before its first step."""

    def extend_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Add weights to the policy's optimizer."""

    def after_backward(self, batch: MicroBatch, step: StepContext, splitter: MicroBatchSplitter) -> None:
        """Forward and backward pass on a micro-batch, after the policy's.

        Args:
            batch: The micro-batch.
            step: What is known of the whole step.
            splitter: Divides micro-batches that do not fit into memory.
        """

    def clipped_with_policy(self) -> list[nn.Parameter]:
        """The weights whose gradients count in the policy's norm."""
        return []

    def clipped_apart(self) -> list[nn.Parameter]:
        """The weights whose gradients have a norm of their own."""
        return []

    def end_of_step(self) -> None:
        """Called after every optimizer step."""

    def save(self, folder: Path, *, main: bool) -> None:
        """Write what a run needs to go on, on every process.

        Args:
            folder: The checkpoint.
            main: Whether this process writes what all of them have.
        """

    def load(self, folder: Path) -> None:
        """Go on where `save` was called."""
