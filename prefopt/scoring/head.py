"""The vocabulary head of a causal language model: which rows it sees, and what the model does with its output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    model: nn.Module, head: nn.Module | None, inputs: Mapping[str, Any], index: Tensor, passed: Tensor
) -> tuple[Float[Tensor, " r t v"], Seen | None]:
    """Call a model whose head sees only some of the hidden states, as [1, n, h].

    Args:
        model: called through its own ``forward``.
        head: its vocabulary head.
        inputs: arguments of its ``forward``, with ``input_ids`` [R, T].
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


@dataclass(frozen=True)
class AfterHead:
    """What models are known to do with the output of their head: scale it, or cap it softly.

    Attributes:
        scale: the output is multiplied by it.
        divisor: then divided by it.
        cap: c of c · tanh(x / c).
    """

    scale: float | None = None
    divisor: float | None = None
    cap: float | None = None

    def __call__(self, logits: Float[Tensor, " *n v"]) -> Float[Tensor, " *n v"]:
        """Operation by operation as models do it, so that the numbers are the same to the last bit."""
        if self.scale is not None:
            logits = logits * self.scale
        if self.divisor is not None:
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    @property
    def factor(self) -> float:
        """All that the output is multiplied by before the cap."""
        return (1.0 if self.scale is None else self.scale) / (1.0 if self.divisor is None else self.divisor)


def after_head(model: nn.Module) -> AfterHead:
    """What a model's config says that it does with the output of its head."""
    config = model.config.get_text_config()
    names = "logit_scale", "logits_scaling", "final_logit_softcapping"
    return AfterHead(*(getattr(config, name, None) for name in names))


class LinearHead(NamedTuple):
    """A vocabulary head that is a matrix and no more.

    Attributes:
        weight: its weight.
        bias: its bias, if it has one.
        dtype: of its products, as the model makes them.
        after: what the model does with them.
    """

    weight: Float[Tensor, " v h"]
    bias: Float[Tensor, " v"] | None
    dtype: torch.dtype
    after: AfterHead


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is a matrix and no more: no adapter, quantisation, sharding or hook."""
    # accelerate's hooks replace `forward` on the instance; quantized and sharded weights are subclasses of Tensor.
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    hooks = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    parameters = [one for one in (module.weight, module.bias) if one is not None]
    return not any(hooks) and all(type(one) in (Tensor, nn.Parameter) for one in parameters)


def linear_head(seen: Seen, after: AfterHead) -> LinearHead | None:
    """The head as a matrix; None where its module is more than that."""
    if not is_linear(seen.module):
        return None
    weight, bias = seen.module.weight, seen.module.bias
    _, dtype, enabled = seen.autocast
    # Mixed precision leaves float64 alone.
    return LinearHead(weight, bias, dtype if enabled and weight.dtype != torch.float64 else weight.dtype, after)


def logits_equal(one: Tensor, other: Tensor) -> bool:
    """Whether these are the same numbers, whatever precision a wrapper returned them in."""
    return one.shape == other.shape and torch.equal(one.float(), other.float())


def vocabulary_of(model: nn.Module) -> int:
    """How many logits a position has."""
    return model.config.get_text_config().vocab_size
