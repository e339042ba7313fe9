"""What to change so that a run fits a card: first what leaves the training as it is, then what changes it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from prefopt.memory.planned_run import Run

SHORTEST = 256
"""Tokens below which no shorter rows are suggested."""
WORTH = 0.02
"""Share of the peak that a change must save to be suggested."""
_MICRO, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_PASSES = ("training", "critic", "reference", "observation", "rollout")

Flags = dict[str, Any]


class Plan(Protocol):
    """What advice reads of a plan (`prefopt.memory.estimate.Plan`)."""

    run: Run

    @property
    def moment(self) -> str: ...

    @property
    def total(self) -> int: ...

    def fits(self, gb: float) -> bool: ...

    def within(self, total: float, gb: float) -> bool: ...


class Advice:
    """Ever smaller versions of a plan, made when they are asked for.

    Args:
        plan: what is planned.
        again: makes the plan of a run.
    """

    def __init__(self, plan: Plan, again: Callable[[Run], Plan]) -> None:
        self._plan, self._again = plan, again
        self._made: list[tuple[Plan, Flags]] = [(plan, {})]
        self._more = self._steps()

    def fitting(self, gb: float) -> tuple[bool, Flags]:
        """Whether changes are known after which the run fits a card, and the changes, by the names of flags."""
        before: Plan | None = None
        for made, flags in self._all():
            if made.fits(gb):
                return True, flags if before is None else self._as_large_as_fits(before, made, flags, gb)
            before = made
        return False, self._made[-1][1]

    def _all(self) -> Iterator[tuple[Plan, Flags]]:
        yield from list(self._made)
        for one in self._more:
            self._made.append(one)
            yield one

    def _steps(self) -> Iterator[tuple[Plan, Flags]]:
        best, flags = self._plan, {}
        for change in _CHANGES:
            found = change(best)
            if found is None:
                continue
            run, own = found
            made = self._again(run)
            if made.total < (1 - WORTH) * best.total:
                best, flags = made, flags | own
                yield best, flags

    def _as_large_as_fits(self, before: Plan, after: Plan, flags: Flags, gb: float) -> Flags:
        """The same, with a larger micro-batch where that was the last change: one that fits if memory grows evenly with
        it, and is then found to fit."""
        large, small = before.run.micro_batch, after.run.micro_batch
        if before.run.fields.get("optim") != after.run.fields.get("optim") or large == small:
            return flags
        batch = large * before.run.accumulation
        for size in range(large - 1, small, -1):
            total = after.total + (before.total - after.total) * (size - small) / (large - small)
            own = {_MICRO: size, _ACCUMULATION: batch // size}
            if batch % size == 0 and after.within(total, gb) and self._again(_with(after.run, **own)).fits(gb):
                return flags | own
        return flags


def _with(run: Run, **args: Any) -> Run:
    return replace(run, args={**run.given_fields, **args})


def _checkpointing(plan: Plan) -> tuple[Run, Flags] | None:
    own = {"gradient_checkpointing": True}
    return None if plan.run.checkpointing or plan.moment not in _PASSES else (_with(plan.run, **own), own)


def _smaller_sampling(plan: Plan) -> tuple[Run, Flags] | None:
    """As many sequences at once as one prompt has completions."""
    if plan.moment != "sampling":
        return None
    settings = plan.run.generation_settings
    own = {"batch_size": settings.n}
    return replace(plan.run, generation=replace(settings, **own)), own


def _smaller_micro_batch(plan: Plan) -> tuple[Run, Flags] | None:
    run = plan.run
    if run.micro_batch == 1 or plan.moment not in _PASSES or run.resolved.objective.needs.coupled:
        return None
    own = {_MICRO: 1, _ACCUMULATION: run.micro_batch * run.accumulation}
    return _with(run, **own), own


def _smaller_states(plan: Plan) -> tuple[Run, Flags] | None:
    own = {"optim": "paged_adamw_8bit"}
    if plan.run.device != "cuda" or not plan.run.optimizer.startswith("adamw_torch"):
        return None
    return _with(plan.run, **own), own


def _lora(plan: Plan) -> tuple[Run, Flags] | None:
    run = plan.run
    return None if run.lora_config is not None else (replace(run, adapter="lora"), {"adapter": "lora"})


def _qlora(plan: Plan) -> tuple[Run, Flags] | None:
    run = plan.run
    return None if run.quantized else (replace(run, adapter="qlora"), {"adapter": "qlora"})


def _shorter(plan: Plan) -> tuple[Run, Flags] | None:
    """Half as long rows; online, half as long completions."""
    run = plan.run
    if run.resolved.online:
        settings = run.generation_settings
        own = {"max_new_tokens": settings.max_new_tokens // 2}
        return None if own["max_new_tokens"] < SHORTEST else (replace(run, generation=replace(settings, **own)), own)
    own = {"max_length": min(run.max_length, max(plan.run.segments(1).rows)) // 2}
    if own["max_length"] < SHORTEST:
        return None
    halved = None if run.prompt_length is None else max(1, run.prompt_length // 2)
    return replace(run, data=replace(run.data_settings, **own), prompt_length=halved), own


_AS_IT_IS = _checkpointing, _smaller_sampling, _smaller_micro_batch, _smaller_states
_CHANGES = *_AS_IT_IS, _lora, _qlora, *[_shorter] * 4
