"""Keys and values of prompts, read once for all samples of each, with room for the tokens that will be sampled."""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def with_cache(model: nn.Module, inputs: dict[str, Tensor], n: int, room: int) -> dict[str, Any]:
    """The inputs of ``generate`` for n samples of each prompt, with all but its last token in the cache.

    Args:
        model: The model that reads the prompts.
        inputs: The prompts, padded on the left.
        n: The number of samples of each.
        room: The most tokens that will be sampled.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    repeated = {"input_ids": ids.repeat_interleave(n, dim=0), "attention_mask": mask.repeat_interleave(n, dim=0)}
    if ids.shape[1] < 2 or not keeps_all(model):
        return repeated
    # Rows padded on the left so far that nothing of them is seen here get positions 0, which nothing attends to.
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Nothing is drawn at these positions; logits of all of them would take more memory than the cache.
    fewest = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(base).forward).parameters else {}
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
        **fewest,
    )
    widen(cache, n, room)
    return {**repeated, "past_key_values": cache}


def keeps_all(model: nn.Module) -> bool:
    """Whether the model keeps keys and values of every position, nothing else (no recurrent state, no window)."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    return set(kinds) <= {"full_attention"} and getattr(config, "sliding_window", None) is None


def widen(cache: DynamicCache, n: int, room: int) -> None:
    """Repeat every row n times, and make room for tokens to come.

    One layer after the other, so that only one is there twice.
    """
    for number, layer in enumerate(cache.layers):
        if layer.is_initialized:
            cache.layers[number] = PreallocatedLayer(layer.keys, layer.values, n, room)


class PreallocatedLayer(DynamicLayer):
    """Keys and values of a layer, with memory for those to come: each is written once, where transformers' own layer
    copies all that came before for every token.

    Args:
        keys: The keys of the tokens so far, [R, heads, T, d].
        values: Their values.
        n: The number of times that each row is repeated.
        room: The most tokens that may follow.
    """

    def __init__(self, keys: Tensor, values: Tensor, n: int, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._whole = [_widened(each, n, room) for each in (keys, values)]
        self.keys, self.values = (whole[:, :, : keys.shape[2]] for whole in self._whole)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in the next ones; all so far."""
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        for whole, new in zip(self._whole, (key_states, value_states), strict=True):
            whole[:, :, start:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows."""
        self._whole = [whole[indices] for whole in self._whole]
        self.keys, self.values = (whole[:, :, : self.keys.shape[2]] for whole in self._whole)


def _widened(states: Tensor, n: int, room: int) -> Tensor:
    rows, heads, tokens, size = states.shape
    whole = states.new_zeros(rows * n, heads, tokens + room, size)
    # Views of one storage: every sample of a prompt is written from the prompt's own keys, without a repeated copy.
    whole.unflatten(0, (rows, n))[..., :tokens, :] = states[:, None]
    return whole
