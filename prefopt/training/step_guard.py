"""Steps whose loss or gradient is not finite: they change no weight, and a run of them ends with a diagnosis."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prefopt.core.console import say
from prefopt.core.errors import Diverged
from prefopt.core.micro_batch import MicroBatch
from prefopt.data import TokenizedDataset

MOST_IN_A_ROW = 5
"""Skipped steps in a row after which a run stops."""
ROWS_FILE = "skipped_rows.jsonl"


class StepGuard:
    """Watches the losses and gradients of every optimizer step, and takes back a step that is not finite.

    All processes skip a step together. The overflows by which a float16 scaler finds its scale are not counted: the
    scaler skips those steps itself.

    Args:
        accelerator: The processes that train.
        output_dir: The folder for the rows of skipped steps, in `ROWS_FILE`.

    Attributes:
        skipped: Whether the last step was skipped.
        total: Steps that were skipped so far.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str | Path) -> None:
        self.accelerator, self.folder = accelerator, Path(output_dir)
        self.skipped = False
        self.total = self._in_a_row = 0
        self._losses: list[Tensor] = []
        self._norm: Tensor | float | None = None
        self._batches: list[MicroBatch] = []

    def begin(self, batches: list[MicroBatch]) -> None:
        """Take notice of the micro-batches of the step that begins."""
        self._losses, self._norm, self._batches = [], None, batches

    def see_loss(self, loss: Tensor) -> None:
        """Take notice of a micro-batch's share of the loss."""
        self._losses.append(loss.detach())

    def see_norm(self, norm: Tensor | float) -> None:
        """Take notice of the norm of all gradients, where something else has computed it."""
        self._norm = norm

    def check(self, weights: list[nn.Parameter], step: int, dataset: TokenizedDataset | None) -> None:
        """Before the optimizer's step: let it change nothing where a loss or a gradient is not finite.

        Args:
            weights: All weights that the optimizer changes.
            step: The number of steps so far.
            dataset: The training data, to write out the rows of a skipped step.

        Raises:
            Diverged: `MOST_IN_A_ROW` steps in a row were not finite.
        """
        finite = all(bool(torch.isfinite(loss).all()) for loss in self._losses)
        bad_loss = not finite
        if finite and self.accelerator.scaler is None:
            finite = self._gradients_are_finite(weights)
        if self.accelerator.num_processes > 1:
            here = torch.tensor([float(finite)], device=self.accelerator.device)
            finite = bool(self.accelerator.gather(here).min())
        self.skipped = not finite
        if finite:
            self._in_a_row = 0
            return
        # An optimizer passes over weights without a gradient: neither they nor its own state change.
        for weight in weights:
            weight.grad = None
        self.total += 1
        self._in_a_row += 1
        what = "loss" if bad_loss else "gradient"
        path = self._write_rows(step, what, dataset)
        say(f"step {step + 1}: the {what} is not finite, so the step changes nothing. Its rows are in {path}.")
        if self._in_a_row >= MOST_IN_A_ROW:
            raise Diverged(self._diagnosis(weights, step, path))

    def end(self, steps: int) -> None:
        """After the last of so many steps.

        Raises:
            Diverged: None of them changed anything.
        """
        if steps and self.total >= steps:
            raise Diverged(
                f"none of the {steps} steps had a finite loss and gradient, so nothing was learned. The rows are in "
                f"{self.folder / ROWS_FILE}: look at them, and at the model's own weights."
            )

    def _gradients_are_finite(self, weights: list[nn.Parameter]) -> bool:
        norm = self._norm
        if norm is None:
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = nn.utils.get_total_norm(gradients) if gradients else 0.0
        return bool(torch.isfinite(torch.as_tensor(norm)).all())

    def _write_rows(self, step: int, what: str, dataset: TokenizedDataset | None) -> Path:
        """Add the rows of the step's micro-batches to a file, one JSON object per example."""
        suffix = f"-{self.accelerator.process_index}" if self.accelerator.num_processes > 1 else ""
        path = self.folder / ROWS_FILE.replace(".", f"{suffix}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {example.id: example for example in dataset.examples} if dataset is not None else {}
        with path.open("a") as file:
            for batch in self._batches:
                for number in batch.labels["ids"].tolist():
                    source = getattr(known.get(number), "source", None)
                    row = {name: value for name, value in vars(source).items() if name != "columns"} if source else {}
                    line = {"step": step + 1, "not_finite": what, "example": number, **row}
                    file.write(json.dumps(line, default=str, ensure_ascii=True) + "\n")
        return path

    def _diagnosis(self, weights: list[nn.Parameter], step: int, path: Path) -> str:
        broken = any(not bool(torch.isfinite(weight).all()) for weight in weights)
        cause = (
            "The weights themselves are not finite: the model was loaded so, or an earlier run saved it so."
            if broken
            else "The weights are finite, so the inputs or the arithmetic are the cause: lower the learning rate, set "
            "max_grad_norm, train in bfloat16 or float32 rather than float16, and look at those rows."
        )
        return (
            f"{MOST_IN_A_ROW} steps in a row, up to {step + 1}, had a loss or gradient that is not finite, so the "
            f"run stops. Nothing of them was learned or saved. {cause} The rows are in {path}."
        )
