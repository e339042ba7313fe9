"""Where the examples of a run come from, and the source that reads them from a dataset."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import TrainerCallback

from prefopt.core.loss import Loss
from prefopt.core.micro_batch import MicroBatch
from prefopt.core.objective import Objective
from prefopt.data import TokenizedDataset
from prefopt.models import Reference
from prefopt.scoring.scorer import Scorer
from prefopt.training.auxiliary import Auxiliary
from prefopt.training.context import TrainingContext
from prefopt.training.loading import step_loader


class Batches(Protocol):
    """The micro-batches of a dataset. Those of an evaluation are the same when they are iterated over twice."""

    dataset: TokenizedDataset

    def __iter__(self) -> Iterator[MicroBatch]: ...

    def __len__(self) -> int: ...


class ExampleSource(ABC):
    """Where examples come from: all that the training loop knows of it.

    A source must have an objective, batches for training and batches for evaluation; the rest has defaults.

    Attributes:
        objective: The loss that is trained in the policy's pass.
        temperature: The temperature at which the loss reads log-probabilities.
        auxiliary: What is trained next to the policy.
    """

    objective: Objective
    temperature: float = 1.0
    auxiliary: Auxiliary
    context: TrainingContext

    def callbacks(self, given: Sequence[TrainerCallback | type]) -> list[TrainerCallback]:
        """Callbacks to add to those that the user has given."""
        return []

    def attach(self, context: TrainingContext) -> None:
        """Take notice of the run, before its first step."""
        self.context = context
        self.auxiliary.attach(context)

    def scorer(self, reference: Reference | None) -> Scorer:
        """What scores micro-batches for the objective."""
        head = self.auxiliary.value_head
        return Scorer(self.objective, reference, temperature=self.temperature, value_head=head)

    @abstractmethod
    def train_batches(self, dataset: TokenizedDataset, batch_size: int) -> Batches:
        """Micro-batches of ``batch_size`` examples for this process, an epoch at a time."""

    @abstractmethod
    def eval_batches(self, dataset: TokenizedDataset, batch_size: int) -> Batches:
        """Micro-batches for evaluation, the same every time."""

    def metrics(self, loss: Loss) -> Mapping[str, Tensor]:
        """The metrics of a loss of ``objective``, under the names by which they are logged."""
        return self.auxiliary.metrics(loss.metrics)

    def observe(self, metrics: Mapping[str, Tensor]) -> None:
        """See the `metrics` of a micro-batch, or a part of one, after the policy's backward pass."""
        return

    def end_of_step(self) -> None:
        """Called after every optimizer step."""
        self.auxiliary.end_of_step()

    def epoch(self, counted: float) -> float:
        """Passes over the data so far, where transformers has counted ``counted``."""
        return counted

    def save(self, folder: Path, *, main: bool) -> None:
        """Write what a run needs to go on, on every process.

        Args:
            folder: The checkpoint.
            main: Whether this process writes what all of them have.
        """
        self.auxiliary.save(folder, main=main)

    def load(self, folder: Path) -> None:
        """Go on where `save` was called."""
        self.auxiliary.load(folder)


class DatasetSource(ExampleSource):
    """Examples of a dataset, in an order that depends on the seed and the epoch, not on the number of processes.

    Args:
        objective: The loss that is trained.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective, self.auxiliary = objective, Auxiliary()

    def train_batches(self, dataset: TokenizedDataset, batch_size: int) -> Batches:
        return self._loader(dataset, batch_size, shuffle=True)

    def eval_batches(self, dataset: TokenizedDataset, batch_size: int) -> Batches:
        return self._loader(dataset, batch_size, shuffle=False)

    def _loader(self, dataset: TokenizedDataset, batch_size: int, *, shuffle: bool) -> Batches:
        needs, seed = self.objective.needs, self.context.data_seed
        return step_loader(dataset, self.context.args, batch_size, needs=needs, seed=seed, shuffle=shuffle)
