"""A watch for reward hacking: the reward that is trained on goes up while something else goes wrong."""

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainerCallback, TrainerControl, TrainerState

from prefopt.core.console import say
from prefopt.core.settings import Settings, parameter

LENGTH, REPETITION, KL = "completions/length", "completions/repetition", "kl"


@dataclass(kw_only=True, eq=False)
class Watch(Settings, TrainerCallback):
    """Warns, once for each reason, and can stop the run.

    A proxy is a reward model, or any function that stands for what is meant. Over-optimized, it keeps rising while the
    completions get worse (Gao et al. 2022, arXiv 2210.10760). The last ``window`` logged values are compared with the
    first ``window``; while the reward is above its beginning, each of these is a reason:

    - completions have become longer or shorter by a factor of ``length``;
    - the share of their token trigrams that repeat has risen by more than ``repetition``;
    - the accuracy on held-out pairs has fallen by more than ``accuracy`` below its best: that of ``held_out``, by the
      policy's log-ratio to the reference, or any evaluation metric that ends in ``accuracies``.

    The KL to the reference above ``kl_budget`` is a reason whatever the reward does.

    Attributes:
        reasons: The warnings so far, by kind.
    """

    name: ClassVar[str] = "watch"
    kl_budget: float | None = parameter(None, "largest KL in nats per completion; no limit by default", above=0)
    length: float = parameter(1.5, "factor by which completions may become longer or shorter", above=1)
    repetition: float = parameter(0.1, "rise of the share of repeated trigrams that is accepted", at_least=0, at_most=1)
    accuracy: float = parameter(0.05, "fall of a held-out accuracy that is accepted", at_least=0, at_most=1)
    window: int = parameter(5, "logged values that are averaged", at_least=1)
    held_out: Any = parameter(
        None, "preference pairs that nothing is trained on: a path, a hub id, a dataset or a list of dicts"
    )
    every: int = parameter(20, "optimizer steps between two looks at the held-out pairs", at_least=1)
    stop: bool = parameter(False, "end of the training at the first warning")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._accuracy: Callable[[], float] | None = None
        self.reasons: dict[str, str] = {}
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, deque[float]] = {}
        self._best: dict[str, float] = {}

    def attach(self, accuracy: Callable[[Any], Callable[[], float]]) -> None:
        """Called by the trainer: from held-out pairs to what measures the policy's accuracy on them."""
        if self.held_out is not None:
            self._accuracy = accuracy(self.held_out)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the held-out pairs now and then."""
        if self._accuracy is not None and state.global_step % self.every == 0:
            self._see_accuracy("held-out accuracy", self._accuracy(), state, control)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Look at what a training step logged."""
        for name in ("reward", LENGTH, REPETITION, KL):
            if name in (logs or {}):
                first = self._first.setdefault(name, [])
                if len(first) < self.window:
                    first.append(logs[name])
                self._last.setdefault(name, deque(maxlen=self.window)).append(logs[name])
        self._judge(state, control)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Look at held-out accuracies."""
        for name, value in (metrics or {}).items():
            if name.endswith("accuracies"):
                self._see_accuracy(name, value, state, control)

    def _see_accuracy(self, name: str, value: float, state: TrainerState, control: TrainerControl) -> None:
        best = self._best[name] = max(self._best.get(name, value), value)
        if self._rising() and value < best - self.accuracy:
            self._warn(name, f"{name} has fallen from {best:.3f} to {value:.3f} while the reward rose", state, control)

    def _judge(self, state: TrainerState, control: TrainerControl) -> None:
        if self.kl_budget is not None and KL in self._last and self._now(KL) > self.kl_budget:
            text = f"the KL to the reference is {self._now(KL):.1f} nats per completion, over its budget"
            self._warn(KL, f"{text} of {self.kl_budget:g}", state, control)
        if not self._rising():
            return
        if LENGTH in self._last:
            before, now = self._then(LENGTH), self._now(LENGTH)
            if now > self.length * before or now < before / self.length:
                text = f"completions went from {before:.0f} to {now:.0f} tokens while the reward rose"
                self._warn(LENGTH, text, state, control)
        if REPETITION in self._last and self._now(REPETITION) > self._then(REPETITION) + self.repetition:
            before, now = self._then(REPETITION), self._now(REPETITION)
            text = f"repeated trigrams went from {100 * before:.0f} to {100 * now:.0f} % while the reward rose"
            self._warn(REPETITION, text, state, control)

    def _rising(self) -> bool:
        """Whether the reward of the last steps is above that of the first ones."""
        return len(self._first.get("reward", ())) == self.window and self._now("reward") > self._then("reward")

    def _then(self, name: str) -> float:
        return statistics.fmean(self._first[name])

    def _now(self, name: str) -> float:
        return statistics.fmean(self._last[name])

    def _warn(self, kind: str, text: str, state: TrainerState, control: TrainerControl) -> None:
        if kind in self.reasons:
            return
        self.reasons[kind] = text
        remedy = "stopping here" if self.stop else "look at samples; a stronger KL, or a better reward, may be needed"
        if state.is_world_process_zero:
            say(f"watch, step {state.global_step}: {text}: {remedy}.")
        if self.stop:
            control.should_training_stop = True
