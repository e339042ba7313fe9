"""What sampling completions would hold, in a model of tensors that only have a shape."""

import torch
from torch import nn
from transformers import DynamicCache

from prefopt.memory.recorder import Recorder
from prefopt.rollouts.kv_cache import keeps_all, widen


def sampled(model: nn.Module, recorder: Recorder, prompts: int, n: int, prompt: int, new: int) -> tuple[int, int, int]:
    """Prompts are read and the last token is drawn, with the cache that the generator keeps.

    Args:
        model: a causal language model, in evaluation mode.
        recorder: counts what is alive meanwhile.
        prompts: how many are sampled from at once.
        n: completions of each.
        prompt: tokens of each.
        new: tokens of each completion.

    Returns:
        Bytes: the peak until the prompts are in the cache, the keys and values at the end, the peak of the last token.
    """

    def forward(rows: int, tokens: int, cache: DynamicCache) -> None:
        before = cache.get_seq_length()
        model(
            input_ids=torch.zeros(rows, tokens, dtype=torch.long),
            attention_mask=torch.ones(rows, before + tokens, dtype=torch.long),
            position_ids=torch.zeros(rows, tokens, dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    cache = DynamicCache(config=model.config)
    if keeps_all(model) and prompt > 1:
        forward(prompts, prompt - 1, cache)
        widen(cache, n, new)
        first, soon = recorder.peak, new - 1
    else:
        forward(prompts * n, prompt, cache)
        first, soon = recorder.peak, new - 2
    # All but the last token at once, of which only the keys and values are looked at.
    if soon > 0:
        forward(prompts * n, soon, cache)
    # A cache has places for all layers of the config, of which only the first are run here.
    states = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    held = sum(one.untyped_storage().nbytes() for one in states if one is not None)
    recorder.restart()
    forward(prompts * n, 1, cache)
    return first, held, recorder.peak
