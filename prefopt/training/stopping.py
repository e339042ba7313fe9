"""Stopping a run from outside: the first signal saves a checkpoint and ends it, the second ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.core.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Ends a run after the step in which a signal came, with a checkpoint. All processes end at the same step.

    Attributes:
        signal: The number of the signal; 0 before there is one.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._accelerator: Accelerator | None = None

    def attach(self, accelerator: Accelerator) -> None:
        """Know the processes that train."""
        self._accelerator = accelerator

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to `SIGNALS` within a ``with`` block. Only the main thread of a program can."""
        before = {one: signal.signal(one, self._take) for one in SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            # Not an exception: a thread or a collective operation may be waiting, and must not be waited for.
            os._exit(128 + number)
        self.signal = number
        say(
            f"{signal.Signals(number).name}: the run ends after this step, with a checkpoint; a second one ends it now."
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        stop = bool(self.signal)
        if self._accelerator is not None and self._accelerator.num_processes > 1:
            # A launcher passes a signal on to all processes, but not at the same step.
            here = torch.tensor([float(self.signal)], device=self._accelerator.device)
            self.signal = int(self._accelerator.gather(here).max())
            stop = bool(self.signal)
        if stop:
            control.should_save = control.should_training_stop = True
        return control
