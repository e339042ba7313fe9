"""Whether a model may see a prompt once for all of its completions: asked of the model, and checked on its numbers.

Where it may not, rows of very different lengths go through it in several passes (see `passes`).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prefopt.core.console import say
from prefopt.core.micro_batch import PaddedRows
from prefopt.scoring.attention import FlatAttention, adopt
from prefopt.scoring.flat import Flat
from prefopt.scoring.passes import Part, Pass, call_of, parts_of, pass_of

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

SWITCHED_OFF = "it was switched off"

Logps = Callable[[nn.Module, Pass, Int[Tensor, " k"]], Float[Tensor, " k"]]


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
        on: False scores every row by itself, and all in one forward pass, padded to the longest.
    """
    base = _base(model)
    if on:
        _KNOWN.pop(base, None)
    else:
        _KNOWN[base] = _Sharing(off=SWITCHED_OFF)


def why_not_shared(model: nn.Module) -> str:
    """Why a model's completions do not share their prompt; empty where they do."""
    return _sharing(_base(model)).off


def arranged(model: nn.Module, padded: PaddedRows, logps: Logps) -> list[Pass]:
    """The forward passes of the rows of a micro-batch.

    Args:
        model: as in `share_prompts`.
        padded: the rows.
        logps: from a model, a pass and its tokens to log-probs, for the comparison.

    Returns:
        The flat sequence where the model may have it and it is shorter; else padded rows, where the model may not have
        it in several passes if they differ enough in length.
    """
    layout = padded.layout
    every = torch.arange(len(layout.target), device=layout.target.device)
    whole = Pass(padded.inputs, layout.predictor, every)
    base = _base(model)
    sharing = _sharing(base)
    if not len(layout.target):
        return [whole]
    if not sharing.off:
        flat = Flat.of(padded)
        if flat.input_ids.numel() > GAIN * padded.input_ids.numel():
            return [whole]
        longest = int(flat.position_ids.max()) + 1
        if longest > GROWTH * sharing.compared:
            sharing.off = _spread(base) or _difference(_unwrapped(model), padded, flat, logps)
            sharing.compared = longest
            if sharing.off:
                say(
                    f"prompts are not shared between completions of this {base.config.model_type} model: {sharing.off}."
                )
        if not sharing.off:
            return [Pass(flat_arguments(flat), flat.predictor, every)]
    counts = (layout.lengths > 0).nonzero().squeeze(1)
    parts = in_parts(model, padded, counts)
    return [whole] if len(parts) == 1 else [pass_of(part, padded) for part in parts]


def in_parts(model: nn.Module, padded: PaddedRows, rows: Int[Tensor, " r"] | None = None) -> list[Part]:
    """Padded rows, as many at once as is cheapest for a model that sees each by itself.

    Processes that go through the same passes together do not know each other's lengths; there all rows are one part.

    Args:
        model: any transformers model, a peft model of one, or either wrapped for data parallelism.
        padded: the rows.
        rows: which of them; by default all.
    """
    base, every = _base(model), torch.arange(len(padded), device=padded.device)
    switched_off = base in _KNOWN and _KNOWN[base].off == SWITCHED_OFF
    if hasattr(model, "module") or switched_off or _spread(base):
        return [Part(padded.inputs, every)]
    return parts_of(padded, every if rows is None else rows, call_of(base))


def flat_arguments(flat: Flat) -> dict[str, Any]:
    # transformers leaves a mask of four dimensions as it is; `FlatAttention` does not read it.
    nothing = torch.zeros(1, 1, 1, 1, device=flat.input_ids.device)
    return {
        "input_ids": flat.input_ids,
        "position_ids": flat.position_ids,
        "attention_mask": nothing,
        "flat": FlatAttention(flat),
    }


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model without a wrapper for data parallelism.

    Every forward pass of the wrapper waits for the other processes (it sends them its buffers). A comparison is made
    when the rows of one process are long enough, so its passes must be those of the model itself.
    """
    return getattr(model, "module", model)


def _base(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers and adapters."""
    inner = _unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _sharing(base: nn.Module) -> _Sharing:
    if base not in _KNOWN:
        _KNOWN[base] = _Sharing(off=_unable(base))
    return _KNOWN[base]


def _unable(base: nn.Module) -> str:
    """Why this architecture cannot have a flat sequence, as far as its config tells."""
    kinds = set(getattr(base.config.get_text_config(), "layer_types", None) or ())
    if spread := _spread(base):
        return spread
    if getattr(base.config.get_text_config(), "output_router_logits", False):
        return "its load-balancing loss counts padded rows"
    if base._is_stateful or kinds - {"full_attention", "sliding_attention"}:
        return "not all of its layers are attention"
    # Of the class: on the instance mixed precision may have put a function of any arguments.
    arguments = inspect.signature(type(base).forward).parameters
    if "position_ids" not in arguments or not any(one.kind is one.VAR_KEYWORD for one in arguments.values()):
        return "its forward pass takes no such arguments"
    return "" if adopt(base) else "it does not take its attention from transformers' interface"


def _spread(base: nn.Module) -> str:
    """Whether processes must call this model together; empty where not.

    Each would compare when its own rows are long enough, and wait for the others forever.
    """
    # DTensors of FSDP and tensor parallelism, and weights that DeepSpeed has divided.
    divided = any(hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") for weight in base.parameters())
    wrapped = any(type(module).__name__ == "FullyShardedDataParallel" for module in base.modules())
    return "its weights are spread over processes" if divided or wrapped else ""


@torch.no_grad()
def _difference(model: nn.Module, padded: PaddedRows, flat: Flat, logps: Logps) -> str:
    """How the flat sequence's log-probs differ from those of rows by themselves; empty where they do not.

    Without dropout, on the `ROWS` longest rows of the micro-batch.
    """
    layout = padded.layout
    modules = [module for module in model.modules() if module.training]
    model.eval()
    try:
        arguments = flat_arguments(flat)
        every = torch.arange(len(layout.target), device=layout.target.device)
        together = logps(model, Pass(arguments, flat.predictor, every), layout.target)
        if not arguments["flat"].layers:
            return "its layers were not given the arguments of its forward pass"
        lengths = padded.attention_mask.sum(dim=1) * (layout.lengths > 0)
        longest = lengths.topk(min(ROWS, int((lengths > 0).sum()))).indices
        chosen = torch.isin(layout.row, longest)
        alone = _by_row(model, padded, longest, logps)
        gaps = (together - alone)[chosen]
        if together.dtype in TOLERANCE and not in_half(model):
            worst, limit = gaps.abs().max().item(), TOLERANCE[together.dtype]
        else:
            # With padding after every row: without any, the same kernels may be called as for single rows.
            inputs = {name: nn.functional.pad(one, (0, 1)) for name, one in padded.inputs.items()}
            wider = Pass(inputs, layout.predictor + layout.predictor // padded.width, every)
            noise = (logps(model, wider, layout.target) - alone)[chosen]
            worst, limit = _rms(gaps), NOISE * max(_rms(noise), TOLERANCE[torch.float32])
    finally:
        for module in modules:
            module.training = True
        # Weights in half precision that were made without gradient are not for the passes that come.
        torch.clear_autocast_cache()
    if worst <= limit:
        return ""
    return f"log-probs would differ from those of rows by themselves by {worst:.2g} nats (limit {limit:.2g})"


def _by_row(model: nn.Module, padded: PaddedRows, rows: Tensor, logps: Logps) -> Tensor:
    """Log-probs [K] of some rows, each in a forward pass of its own; 0 elsewhere."""
    layout = padded.layout
    alone = torch.zeros(len(layout.target), device=layout.target.device, dtype=torch.float64)
    for row in rows.tolist():
        own: Bool[Tensor, " k"] = layout.row == row
        ids = padded.input_ids[row : row + 1, : int(padded.attention_mask[row].sum())]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        one = Pass(inputs, layout.predictor[own] - row * padded.width, own.nonzero().squeeze(1))
        alone[own] = logps(model, one, layout.target[own]).double()
    return alone


def in_half(model: nn.Module) -> bool:
    """Whether matrices are multiplied in half precision."""
    device = next(model.parameters()).device.type
    half = torch.bfloat16, torch.float16
    return torch.is_autocast_enabled(device) or any(weight.dtype in half for weight in model.parameters())


def _rms(gaps: Tensor) -> float:
    return gaps.double().square().mean().sqrt().item()
