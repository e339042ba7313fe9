"""What a source of examples, and what is trained next to the policy, may use of the run around them."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import TrainingArguments

from prefopt.training.metrics import Means


@dataclass
class TrainingContext:
    """A run, once its arguments and processes are known.

    Attributes:
        policy: The model that is trained, without the wrappers of parallel training.
        args: The training arguments.
        accelerator: The processes that train.
        metrics: Takes values to log, one per row.
        optimizer: The policy's optimizer; None until transformers makes it.
    """

    policy: nn.Module
    args: TrainingArguments
    accelerator: Accelerator
    metrics: Means
    optimizer: torch.optim.Optimizer | None = None

    @property
    def data_seed(self) -> int:
        """The seed of the order of the data, and of what is sampled."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def gather(self, own: list) -> list:
        """The lists of all processes, one after the other."""
        return own if self.args.world_size == 1 else gather_object(own)
