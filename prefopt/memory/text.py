"""A plan for the terminal."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from prefopt.memory.estimate import CARDS, GB, Plan

_WHAT = {
    "reference": "the reference scores a micro-batch",
    "reference cache": "the reference scores all rows, before the first step",
    "observation": "what the objective observes of a step is scored",
    "training": "forward and backward of a micro-batch, with gradients",
    "critic": "forward and backward of the critic, with gradients",
    "optimizer step": "gradients, and what a step takes",
    "sampling": "completions are sampled, with their keys and values",
    "rollout": "sampled completions are scored",
    "reward": "a reward model scores completions",
}


def printed(plan: Plan) -> RenderableType:
    """What a run needs."""
    run = plan.run
    adapter = "all weights" if run.lora_config is None else ("qlora" if run.quantized else "lora")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    table.add_row("there throughout")
    for name, size in plan.parts.items():
        if size:
            table.add_row(f"  {name}", _gib(size), run.optimizer if name == "optimizer" else "")
    table.add_row("on top, one at a time")
    for name, size in plan.moments.items():
        table.add_row(f"  {name}", _gib(size), _detail(plan, name))
    table.add_row("at the most", _gib(plan.total), _WHAT[plan.moment])
    return Group(
        f"{run.resolved.name}, {adapter}: {run.micro_batch} examples at once ({plan.tokens:,} tokens), "
        f"{run.accumulation} times for a step",
        *(f"  ({note})" for note in plan.notes),
        table,
    )


def total(plan: Plan) -> str:
    """The most that a run needs at any time."""
    return _gib(plan.total)


def _detail(plan: Plan, name: str) -> str:
    if name == "training":
        return (
            f"{_WHAT[name]} {plan.gradients_of_policy / GB:.2f}; activations kept for the backward pass "
            f"{plan.kept / GB:.2f}"
        )
    return f"{_WHAT[name]} {plan.cache / GB:.2f}" if name == "sampling" else _WHAT[name]


def _gib(size: int) -> str:
    return f"{size / GB:.2f} GiB"


def flags(changes: Mapping[str, Any]) -> str:
    """Changes as one writes them on the command line."""
    return " ".join(f"--{name.replace('_', '-')} {text_of(value)}" for name, value in changes.items())


def text_of(value: Any) -> str:
    """A value as one writes it on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def cards(plan: Plan, write: Callable[[Mapping[str, Any]], str] = flags) -> Iterator[str]:
    """Which cards it fits, the largest first, and what to change for the others.

    Lines and no table: each takes seconds, and is printed as soon as it is known.

    Args:
        plan: of the run.
        write: puts changes into words.
    """
    for size in sorted(CARDS, reverse=True):
        advice = plan.advice(size)
        if advice is None:
            yield f"{size:3} GB: no, and nothing that is known here would make it fit"
        elif advice:
            yield f"{size:3} GB: with {write(advice)}"
        else:
            yield f"{size:3} GB: fits"
