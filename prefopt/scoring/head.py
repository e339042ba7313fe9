"""The vocabulary head of a causal language model: which rows it sees, and what the model does with its output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class Seen:
    """What hooks on a head saw of one forward pass.

    Attributes:
        module: the head.
        hidden: the rows asked for, [K, h].
        output: what the head made of the rows that it was given.
        autocast: device type, dtype and state of automatic mixed precision around it.
    """

    module: nn.Module
    hidden: Tensor
    output: Tensor | None
    autocast: tuple[str, torch.dtype, bool]

    def head(self, hidden: Float[Tensor, " c h"]) -> Float[Tensor, " c v"]:
        """The head on other rows, in the precision in which the model called it."""
        device, dtype, enabled = self.autocast
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            return self.module(hidden)


def called_with(
    model: nn.Module, head: nn.Module | None, inputs: Mapping[str, Tensor], index: Tensor, passed: Tensor
) -> tuple[Float[Tensor, " r t v"], Seen | None]:
    """Call a model whose head sees only some of the hidden states, as [1, n, h].

    Args:
        model: called through its own ``forward``.
        head: its vocabulary head.
        inputs: ``input_ids`` and ``attention_mask``, [R, T].
        index: rows of the flattened [R · T] positions to keep.
        passed: rows that go through the head and on through the rest of ``forward``.

    Returns:
        The logits and what was seen; None where the head was not called as a module, so that the logits are those of
        all positions.
    """
    seen: list[Seen] = []

    def before(module: nn.Module, args: tuple) -> tuple:
        hidden, *rest = args
        rows, device = hidden.flatten(0, 1), hidden.device.type
        autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        seen.append(Seen(module, rows.index_select(0, index), None, autocast))
        return (seen[0].hidden if passed is index else rows.index_select(0, passed))[None], *rest

    def after(_: nn.Module, __: tuple, output: Tensor) -> None:
        seen[0].output = output

    handles = [head.register_forward_pre_hook(before), head.register_forward_hook(after)] if head is not None else []
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, seen[0] if seen else None


def after_head(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What models are known to do with the output of their head: scale it, or cap it softly."""
    config = model.config.get_text_config()
    scale, divisor, cap = (
        getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")
    )

    def after(logits: Tensor) -> Tensor:
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return after


def logits_equal(one: Tensor, other: Tensor) -> bool:
    """Whether these are the same numbers, whatever precision a wrapper returned them in."""
    return one.shape == other.shape and torch.equal(one.float(), other.float())


def vocabulary_of(model: nn.Module) -> int:
    """How many logits a position has."""
    return model.config.get_text_config().vocab_size
