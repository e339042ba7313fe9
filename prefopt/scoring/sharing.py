"""Whether a model may see a prompt once for all of its completions: asked of the model, and checked on its numbers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prefopt.console import say
from prefopt.scoring.attention import FlatAttention, adopt
from prefopt.scoring.flat import Flat
from prefopt.scoring.layout import Layout

ROWS = 8
"""How many rows of a micro-batch are compared with forward passes of their own."""
GROWTH = 1.25
"""A row this many times as long as the longest one compared so far is compared again."""
GAIN = 0.95
"""A flat sequence is used where it has fewer than this share of the padded micro-batch's positions."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Nats by which a log-prob may differ, where that is no matter of half precision."""
NOISE = 4.0
"""In half precision: how many times the difference between padded and single rows, root mean square."""

Logps = Callable[[nn.Module, Mapping[str, Any], Int[Tensor, " k"], Int[Tensor, " k"]], Float[Tensor, " k"]]


@dataclass
class _Sharing:
    """What is known about one model.

    Attributes:
        off: why prompts are not shared; empty where they are.
        compared: tokens of the longest row that was compared.
    """

    off: str = ""
    compared: int = 0


_KNOWN: WeakKeyDictionary[nn.Module, _Sharing] = WeakKeyDictionary()


def share_prompts(model: nn.Module, on: bool = True) -> None:
    """Let a model's completions share their prompt, which is the default where the model allows it, or keep it off.

    Args:
        model: a causal language model, a peft model of one, or either wrapped for data parallelism.
        on: False scores every row by itself, padded to the longest.
    """
    base = _base(model)
    if on:
        _KNOWN.pop(base, None)
    else:
        _KNOWN[base] = _Sharing(off="it was switched off")


def why_not_shared(model: nn.Module) -> str:
    """Why a model's completions do not share their prompt; empty where they do."""
    return _sharing(_base(model)).off


def arranged(
    model: nn.Module, batch: Mapping[str, Tensor], layout: Layout, logps: Logps
) -> tuple[Mapping[str, Any], Int[Tensor, " k"]]:
    """The arguments of a model's ``forward`` for a micro-batch, and where in it the completion tokens are predicted.

    Args:
        model: as in `share_prompts`.
        batch: ``input_ids`` and ``attention_mask``, [R, T], padded on the right.
        layout: the completion tokens of that batch.
        logps: from a model, arguments, such places and tokens to log-probs, for the comparison.

    Returns:
        The flat sequence where the model may have it and it is shorter, else the padded micro-batch as it is.
    """
    padded = {key: batch[key] for key in ("input_ids", "attention_mask")}, layout.predictor
    base = _base(model)
    sharing = _sharing(base)
    if sharing.off or not len(layout.target):
        return padded
    flat = Flat.of(batch, layout)
    if flat.input_ids.numel() > GAIN * batch["input_ids"].numel():
        return padded
    longest = int(flat.position_ids.max()) + 1
    if longest > GROWTH * sharing.compared:
        sharing.off = _difference(model, batch, layout, flat, logps)
        sharing.compared = longest
        if sharing.off:
            say(f"prompts are not shared between completions of this {base.config.model_type} model: {sharing.off}.")
            return padded
    return flat_arguments(flat), flat.predictor


def flat_arguments(flat: Flat) -> dict[str, Any]:
    # transformers leaves a mask of four dimensions as it is; `FlatAttention` does not read it.
    nothing = torch.zeros(1, 1, 1, 1, device=flat.input_ids.device)
    return {
        "input_ids": flat.input_ids,
        "position_ids": flat.position_ids,
        "attention_mask": nothing,
        "flat": FlatAttention(flat),
    }


def _base(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers and adapters."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _sharing(base: nn.Module) -> _Sharing:
    if base not in _KNOWN:
        _KNOWN[base] = _Sharing(off=_unable(base))
    return _KNOWN[base]


def _unable(base: nn.Module) -> str:
    """Why this architecture cannot have a flat sequence, as far as its config tells."""
    kinds = set(getattr(base.config.get_text_config(), "layer_types", None) or ())
    if any(hasattr(weight, "device_mesh") for weight in base.parameters()) or "FullyShardedDataParallel" in {
        type(module).__name__ for module in base.modules()
    }:
        # Each process would compare when its own rows are long enough, and wait for the others forever.
        return "its weights are spread over processes"
    if base._is_stateful or kinds - {"full_attention", "sliding_attention"}:
        return "not all of its layers are attention"
    # Of the class: on the instance mixed precision may have put a function of any arguments.
    arguments = inspect.signature(type(base).forward).parameters
    if "position_ids" not in arguments or not any(one.kind is one.VAR_KEYWORD for one in arguments.values()):
        return "its forward pass takes no such arguments"
    return "" if adopt(base) else "it does not take its attention from transformers' interface"


@torch.no_grad()
def _difference(model: nn.Module, batch: Mapping[str, Tensor], layout: Layout, flat: Flat, logps: Logps) -> str:
    """How the flat sequence's log-probs differ from those of rows by themselves; empty where they do not.

    Without dropout, on the `ROWS` longest rows of the micro-batch.
    """
    modules = [module for module in model.modules() if module.training]
    model.eval()
    try:
        arguments = flat_arguments(flat)
        together = logps(model, arguments, flat.predictor, layout.target)
        if not arguments["flat"].layers:
            return "its layers were not given the arguments of its forward pass"
        lengths = batch["attention_mask"].sum(dim=1) * (layout.lengths > 0)
        longest = lengths.topk(min(ROWS, int((lengths > 0).sum()))).indices
        chosen = torch.isin(layout.row, longest)
        alone = _by_row(model, batch, layout, longest, logps)
        gaps = (together - alone)[chosen]
        if together.dtype in TOLERANCE and not _is_half(model):
            worst, limit = gaps.abs().max().item(), TOLERANCE[together.dtype]
        else:
            padded = {key: batch[key] for key in ("input_ids", "attention_mask")}
            noise = (logps(model, padded, layout.predictor, layout.target) - alone)[chosen]
            worst, limit = _rms(gaps), NOISE * max(_rms(noise), TOLERANCE[torch.float32])
    finally:
        for module in modules:
            module.training = True
    if worst <= limit:
        return ""
    return f"log-probs would differ from those of rows by themselves by {worst:.2g} nats (limit {limit:.2g})"


def _by_row(model: nn.Module, batch: Mapping[str, Tensor], layout: Layout, rows: Tensor, logps: Logps) -> Tensor:
    """Log-probs [K] of some rows, each in a forward pass of its own; 0 elsewhere."""
    alone = torch.zeros(len(layout.target), device=layout.target.device, dtype=torch.float64)
    width = batch["input_ids"].shape[1]
    for row in rows.tolist():
        own: Bool[Tensor, " k"] = layout.row == row
        ids = batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        alone[own] = logps(model, inputs, layout.predictor[own] - row * width, layout.target[own]).double()
    return alone


def _is_half(model: nn.Module) -> bool:
    """Whether matrices are multiplied in half precision."""
    device = next(model.parameters()).device.type
    half = torch.bfloat16, torch.float16
    return torch.is_autocast_enabled(device) or any(weight.dtype in half for weight in model.parameters())


def _rms(gaps: Tensor) -> float:
    return gaps.double().square().mean().sqrt().item()
