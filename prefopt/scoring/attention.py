"""Attention over a flat sequence, in which every completion sees its own prompt and itself.

It is an attention function of transformers' own interface. A model that uses it behaves as before, until ``flat=`` is
among the arguments of its ``forward``: transformers hands that on to every layer, also when a checkpointed layer is
computed again in the backward pass.
"""

import inspect
import sys
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefopt.scoring.flat import Flat

PREFIX = "prefopt_"
# Older torch has the kernel without windows, or without grouped heads.
_COMPLETE = "window_size" in inspect.signature(varlen_attn).parameters
_GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters
BASES = ("sdpa", "eager")
"""Implementations that it can stand in for."""


def adopt(model: PreTrainedModel) -> bool:
    """Let a model attend with this function where it is given a flat sequence; whether it can."""
    config = model.config.get_text_config()
    own = config._attn_implementation
    if own.startswith(PREFIX):
        return True
    if own not in BASES or not model._can_set_attn_implementation():
        return False
    if own == "eager" and any(_eager(module) is None for module in _attentions(model)):
        return False
    _register(own)
    model.set_attn_implementation(PREFIX + own)
    return config._attn_implementation == PREFIX + own


def _register(base: str) -> None:
    """Make the function known under a name of its own for each implementation that it stands in for."""
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        AttentionInterface.register(name, _attention(base))


def _attention(base: str) -> Any:
    def attention(
        module: nn.Module,
        query: Float[Tensor, " b hq q d"],
        key: Float[Tensor, " b hk s d"],
        value: Float[Tensor, " b hk s dv"],
        attention_mask: Tensor | None,
        *args: Any,
        flat: "FlatAttention | None" = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if flat is None:
            usual = _eager(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
            return usual(module, query, key, value, attention_mask, *args, **kwargs)
        return flat.attend(module, query, key, value, **kwargs), None

    return attention


def _eager(module: nn.Module) -> Any:
    """The plain attention that stands beside an attention module."""
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _attentions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "head_dim")]


class FlatAttention:
    """A flat sequence on its way through a model, and how many layers have attended to it.

    Args:
        flat: the sequence.
    """

    def __init__(self, flat: Flat) -> None:
        self.flat = flat
        self.layers = 0

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> Float[Tensor, " 1 s h d"]:
        """Attention of every bucket, back in the order of the sequence."""
        self.layers += 1
        # Rotary embeddings leave queries and keys in float32 under mixed precision, beside values in half.
        query, key, value = (_under_autocast(states) for states in (query, key, value))
        if softcap is None and s_aux is None and dropout == 0 and _has_kernel(query, value):
            return self.by_kernel(query, key, value, scaling, sliding_window)
        return self.by_bucket(query, key, value, scaling, sliding_window, dropout=dropout, softcap=softcap, s_aux=s_aux)

    def by_bucket(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
        *,
        dropout: float,
        softcap: float | None,
        s_aux: Tensor | None,
    ) -> Float[Tensor, " 1 s h d"]:
        """A call for all spans of like lengths."""
        heads = query.shape[1]
        query, key, value = (_by_position(states) for states in (query, key, value))
        outputs = []
        for number, bucket in enumerate(self.flat.buckets):
            q = _gather(query, bucket.queries)
            k, v = (_repeated(_gather(states, bucket.keys), heads) for states in (key, value))
            causal = bucket.is_causal(window)
            if softcap is None and s_aux is None:
                mask = None if causal else self.flat.mask(number, window, q.dtype)
                out = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=causal
                )
            else:
                mask = self.flat.mask(number, window, q.dtype)
                out = _explicit(q, k, v, mask, dropout=dropout, scaling=scaling, softcap=softcap, sinks=s_aux)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        rows = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return _take(rows, self.flat.back)[None]

    def by_kernel(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Float[Tensor, " 1 s h d"]:
        """One call for all spans; queries stand at the end of the keys that they may see."""
        ragged, heads = self.flat.ragged, query.shape[1]
        if not _GROUPED:
            key, value = (_repeated(states, heads) for states in (key, value))
        query, key, value = (_by_position(states) for states in (query, key, value))
        grouped = {"enable_gqa": True} if key.shape[1] != heads else {}
        out = varlen_attn(
            query.contiguous(),
            _take(key, ragged.keys),
            _take(value, ragged.keys),
            ragged.query_ends,
            ragged.key_ends,
            ragged.longest_query,
            ragged.longest_key,
            scale=scaling,
            # That many keys to the left of a query's own place, and none to the right.
            window_size=(-1 if window is None else window - 1, 0),
            **grouped,
        )
        return out[None]


def _has_kernel(query: Tensor, value: Tensor) -> bool:
    """Whether torch has flash attention for sequences of different lengths here."""
    if not (query.is_cuda and _COMPLETE and torch.cuda.get_device_capability(query.device) >= (8, 0)):
        return False
    half = query.dtype in (torch.bfloat16, torch.float16)
    return half and query.shape[-1] == value.shape[-1] <= 256 and query.shape[-1] % 8 == 0


def _under_autocast(states: Tensor) -> Tensor:
    device = states.device.type
    if states.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return states
    return states.to(torch.get_autocast_dtype(device))


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention step by step, with softly capped scores, or with a score for attending to nothing."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        nothing = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, nothing], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=wide).to(q.dtype)[..., : k.shape[2]]
    return F.dropout(weights, p=dropout, training=dropout > 0) @ v


def _by_position(states: Float[Tensor, " 1 h s d"]) -> Float[Tensor, " s h d"]:
    return states[0].transpose(0, 1)


def _gather(states: Float[Tensor, " s h d"], index: Tensor) -> Float[Tensor, " n h l d"]:
    return _take(states, index).transpose(1, 2)


def _take(states: Float[Tensor, " s h d"], index: Tensor) -> Tensor:
    """Rows by index; an embedding, whose gradient is added up in one parallel pass."""
    return F.embedding(index, states.flatten(1)).unflatten(-1, states.shape[1:])


def _repeated(states: Float[Tensor, " n hk l d"], heads: int) -> Float[Tensor, " n hq l d"]:
    times = heads // states.shape[1]
    return states if times == 1 else states.repeat_interleave(times, dim=1)
