"""The floating inputs of a batch as named leaves: taken out, differentiated, perturbed and put back."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from prefopt.core.batches import Batch, Completions, Ranked, Rollouts, TokenLogps
from prefopt.core.labels import LABELS, Axis


def leaves(batch: Batch) -> dict[str, Tensor]:
    """Every floating input of a batch by its path, such as ``"chosen.ref_logps"`` or ``"chosen.tokens.kl"``.

    Where completions carry per-token values these are the inputs, and their sums are not.
    """
    return dict(_walk(batch, ""))


def _walk(container: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(container, Completions) and container.tokens is not None:
        yield from _walk(container.tokens, f"{prefix}tokens.")
        if container.rewards is not None:
            yield f"{prefix}rewards", container.rewards
        return
    for field in fields(container):
        value = getattr(container, field.name)
        if isinstance(value, Tensor) and value.is_floating_point():
            yield prefix + field.name, value
        elif isinstance(value, (Completions, TokenLogps)):
            yield from _walk(value, f"{prefix}{field.name}.")


def with_leaves(batch: Batch, values: Mapping[str, Tensor]) -> Batch:
    """The batch with some of its leaves replaced; sums over tokens are taken anew."""
    return _put(batch, "", values)


def _put(container: Any, prefix: str, values: Mapping[str, Tensor]) -> Any:
    if isinstance(container, Completions) and container.tokens is not None:
        if any(path.startswith(prefix) for path in values):
            summed = Completions.from_tokens(_put(container.tokens, f"{prefix}tokens.", values))
            return replace(summed, rewards=values.get(f"{prefix}rewards", container.rewards))
        return container
    changes = {}
    for field in fields(container):
        path, value = prefix + field.name, getattr(container, field.name)
        if path in values:
            changes[field.name] = values[path]
        elif isinstance(value, (Completions, TokenLogps)):
            changes[field.name] = _put(value, f"{path}.", values)
    return replace(container, **changes)


def mask_of(batch: Batch, path: str) -> Tensor:
    """Which entries of a leaf count: the token mask for per-token values, everything otherwise."""
    *parents, _ = path.split(".")
    owner: Any = batch
    for name in parents:
        owner = getattr(owner, name)
    if isinstance(owner, TokenLogps):
        return owner.mask
    if isinstance(owner, Rollouts):
        return owner.tokens.mask
    return torch.ones_like(leaves(batch)[path], dtype=torch.bool)


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its leaves rounded to another dtype."""
    return with_leaves(batch, {path: value.to(dtype) for path, value in leaves(batch).items()})


def take(batch: Batch, rows: Tensor) -> Batch:
    """Some examples of a batch, in the given order. ``mismatched`` completions, which belong to none, stay."""
    if isinstance(batch, Ranked):
        return _take_groups(batch, rows)
    changes = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name != "mismatched" and isinstance(value, (Tensor, Completions)):
            changes[field.name] = value[rows]
    return replace(batch, **changes)


def _take_groups(batch: Ranked, groups: Tensor) -> Ranked:
    members = [(batch.group == g).nonzero().flatten() for g in groups]
    rows = torch.cat(members)
    places = {Axis.EXAMPLE: groups, Axis.COMPLETION: rows}
    labels = {name: getattr(batch, name) for name in batch.label_fields()}
    labels = {name: values if values is None else values[places[LABELS[name].axis]] for name, values in labels.items()}
    labels["group"] = torch.repeat_interleave(torch.tensor([len(part) for part in members]))
    return replace(batch, completions=batch.completions[rows], **labels)


def size(batch: Batch) -> int:
    """How many examples a batch holds."""
    return batch.counts()["example"]


def describe(batch: Batch) -> str:
    """All inputs of a batch on a few lines, as they would be typed."""
    lines = []
    for path, value in sorted(_all_tensors(batch, "")):
        lines.append(f"{path} = {_numbers(value.tolist())}")
    return "\n".join(lines)


def _all_tensors(container: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    summed = isinstance(container, Completions) and container.tokens is not None
    for field in fields(container):
        value = getattr(container, field.name)
        if isinstance(value, Tensor) and not (summed and value.is_floating_point()):
            yield prefix + field.name, value
        elif isinstance(value, (Completions, TokenLogps)):
            yield from _all_tensors(value, f"{prefix}{field.name}.")


def _numbers(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_numbers(item) for item in value) + "]"
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e6 else repr(value)
    return str(value)
