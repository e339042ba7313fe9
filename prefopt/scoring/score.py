"""One forward pass of a causal language model, of which only the completion positions reach the vocabulary head."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.scoring.layout import Layout


def score(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    layout: Layout,
    *,
    statistics: frozenset[str] = frozenset(),
    reference_logits: Float[Tensor, " k v"] | None = None,
) -> dict[str, Float[Tensor, " k"]]:
    """Log-probabilities of the completion tokens of a padded micro-batch.

    Args:
        model: a transformers causal LM, a peft model of one, or either wrapped for data parallelism. It is called
            through its own ``forward``, so that wrappers, adapters, softcaps and logit scales do what they do.
        batch: ``input_ids`` and ``attention_mask``, [R, T], padded on the right.
        layout: the completion tokens of that batch.
        statistics: further per-token values: ``"log_sum_p2"``, log Σ_v π(v)², without gradient; ``"kl"``,
            KL(π_ref ‖ π) over the vocabulary, with gradient.
        reference_logits: from `logits_of` at the same positions; needed for ``"kl"``.

    Returns:
        ``logps``: log π(token), [K] in nats, in float32 or the model's dtype if that is wider; and the statistics.
    """
    logits = logits_of(model, batch, layout)
    normaliser = logits.logsumexp(dim=-1)
    values = {"logps": logits.gather(-1, layout.target[:, None]).squeeze(-1) - normaliser}
    if "log_sum_p2" in statistics:
        with torch.no_grad():
            values["log_sum_p2"] = (2 * logits).logsumexp(dim=-1) - 2 * normaliser
    if "kl" in statistics:
        ref_logps = reference_logits.log_softmax(dim=-1)
        values["kl"] = (ref_logps.exp() * (ref_logps - logits)).sum(dim=-1) + normaliser
    return values


def logits_of(model: nn.Module, batch: Mapping[str, Tensor], layout: Layout) -> Float[Tensor, " k v"]:
    """The logits that predict the completion tokens, in float32 or the model's dtype if that is wider."""
    with _only_rows(model, layout.predictor):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    if logits.shape[:2] == batch["input_ids"].shape:
        # The head was not called as a module, so nothing was selected before it.
        logits = logits.flatten(0, 1)[layout.predictor]
    else:
        logits = logits.squeeze(0)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@contextmanager
def _only_rows(model: nn.Module, index: Tensor) -> Iterator[None]:
    """While active, the vocabulary head sees the hidden states of the given positions only, as [1, K, h]."""
    head = getattr(model, "module", model).get_output_embeddings()

    def select(_: nn.Module, args: tuple) -> tuple:
        hidden, *rest = args
        return hidden.flatten(0, 1).index_select(0, index)[None], *rest

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
