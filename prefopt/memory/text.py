"""A plan as lines for the terminal."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

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


def lines(plan: Plan) -> Iterator[str]:
    """What a run needs."""
    run = plan.run
    adapter = "all weights" if run.lora_config is None else ("qlora" if run.quantized else "lora")
    yield (
        f"{run.resolved.name}, {adapter}: {run.micro_batch} examples at once ({plan.tokens:,} tokens), "
        f"{run.accumulation} times for a step"
    )
    for note in plan.notes:
        yield f"  ({note})"
    yield "there throughout"
    for name, size in plan.parts.items():
        if size:
            yield _line(name, size, run.optimizer if name == "optimizer" else "")
    yield "beside it, one at a time"
    for name, size in plan.moments.items():
        yield _line(name, size, _detail(plan, name))
    yield f"{'at the most':18}{plan.total / GB:8.2f} GiB  {_WHAT[plan.moment]}"


def total(plan: Plan) -> str:
    """The most that a run needs at any time."""
    return f"{plan.total / GB:.2f} GiB"


def _detail(plan: Plan, name: str) -> str:
    if name == "training":
        return (
            f"{_WHAT[name]} {plan.gradients_of_policy / GB:.2f}; activations kept for the backward pass "
            f"{plan.kept / GB:.2f}"
        )
    return f"{_WHAT[name]} {plan.cache / GB:.2f}" if name == "sampling" else _WHAT[name]


def _line(name: str, size: int, what: str) -> str:
    return f"  {name:16}{size / GB:8.2f} GiB  {what}".rstrip()


def flags(changes: Mapping[str, Any]) -> str:
    """Changes as one writes them on the command line."""
    return " ".join(f"--{name.replace('_', '-')} {text_of(value)}" for name, value in changes.items())


def text_of(value: Any) -> str:
    """A value as one writes it on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def cards(plan: Plan, write: Callable[[Mapping[str, Any]], str] = flags) -> Iterator[str]:
    """Which cards it fits, the largest first, and what to change for the others; each line as soon as it is known.

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
