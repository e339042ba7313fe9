"""One forward pass of a causal language model, of which only the completion positions reach the vocabulary head.

Where their logits would be too many, the hidden states are kept instead and go through the head in chunks, once more in
the backward pass.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prefopt.scoring.head import after_head, called_with, logits_equal, vocabulary_of
from prefopt.scoring.layout import Layout

CHUNK = 2**25
"""Logits that are held at once, in numbers: 128 MiB in float32."""

# Heads whose models do something else with their output, so that only their own forward can.
_OTHERS: WeakSet[nn.Module] = WeakSet()


class Rows(NamedTuple):
    """What the logits of the completion positions are made from.

    Attributes:
        values: the logits themselves, or the hidden states before the head.
        to_logits: from some of these rows to their logits, in float32 or the model's dtype if that is wider.
        size: how many rows to take at once.
    """

    values: Float[Tensor, " k d"]
    to_logits: Callable[[Float[Tensor, " c d"]], Float[Tensor, " c v"]]
    size: int

    def whole(self) -> "Rows":
        """The same with the logits made now, for a head that will not stay as it is."""
        return Rows(self.to_logits(self.values), _widen, self.size)


def score(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    layout: Layout,
    *,
    statistics: frozenset[str] = frozenset(),
    reference: Rows | None = None,
) -> dict[str, Float[Tensor, " k"]]:
    """Log-probabilities of the completion tokens of a padded micro-batch.

    Args:
        model: a transformers causal LM, a peft model of one, or either wrapped for data parallelism. It is called
            through its own ``forward``, so that wrappers, adapters, softcaps and logit scales do what they do.
        batch: ``input_ids`` and ``attention_mask``, [R, T], padded on the right.
        layout: the completion tokens of that batch.
        statistics: further per-token values: ``"log_sum_p2"``, log Σ_v π(v)², without gradient; ``"kl"``,
            KL(π_ref ‖ π) over the vocabulary, with gradient.
        reference: from `rows_of` at the same positions; needed for ``"kl"``.

    Returns:
        ``logps``: log π(token), [K] in nats, in float32 or the model's dtype if that is wider; and the statistics.
    """
    rows = rows_of(model, batch, layout)

    def measure(values: Tensor, target: Tensor, reference_values: Tensor | None) -> dict[str, Tensor]:
        reference_logits = None if reference is None else reference.to_logits(reference_values)
        return _measure(rows.to_logits(values), target, statistics, reference_logits)

    parts = []
    for start in range(0, max(len(layout.target), 1), rows.size):
        part = slice(start, start + rows.size)
        given = rows.values[part], layout.target[part], None if reference is None else reference.values[part]
        again = torch.is_grad_enabled() and len(layout.target) > rows.size
        parts.append(checkpoint(measure, *given, use_reentrant=False) if again else measure(*given))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def rows_of(model: nn.Module, batch: Mapping[str, Tensor], layout: Layout) -> Rows:
    """The completion positions of a batch after one forward pass: their logits, or, of many, their hidden states."""
    inner = getattr(model, "module", model)
    head = inner.get_output_embeddings()
    size = max(1, CHUNK // vocabulary_of(inner))
    index, inputs = layout.predictor, {key: batch[key] for key in ("input_ids", "attention_mask")}
    if len(index) > size and head not in _OTHERS:
        # The model's own forward goes on with one row: what it does after its head must be what is done here.
        logits, seen = called_with(model, head, inputs, index, index[:1])
        if seen is None:
            return Rows(_select(logits, index), _widen, size)
        after = after_head(inner)
        if logits_equal(after(seen.output), logits):
            return Rows(seen.hidden, lambda hidden: _widen(after(seen.head(hidden))), size)
        _OTHERS.add(head)
    logits, seen = called_with(model, head, inputs, index, index)
    return Rows(_widen(_select(logits, index) if seen is None else logits.flatten(0, 1)), _widen, size)


def _measure(
    logits: Float[Tensor, " c v"], target: Tensor, statistics: frozenset[str], reference_logits: Tensor | None
) -> dict[str, Float[Tensor, " c"]]:
    normaliser = logits.logsumexp(dim=-1)
    values = {"logps": logits.gather(-1, target[:, None]).squeeze(-1) - normaliser}
    if "log_sum_p2" in statistics:
        with torch.no_grad():
            values["log_sum_p2"] = (2 * logits).logsumexp(dim=-1) - 2 * normaliser
    if "kl" in statistics:
        ref_logps = reference_logits.log_softmax(dim=-1)
        values["kl"] = (ref_logps.exp() * (ref_logps - logits)).sum(dim=-1) + normaliser
    return values


def _select(logits: Float[Tensor, " r t v"], index: Tensor) -> Float[Tensor, " k v"]:
    return logits.flatten(0, 1)[index]


def _widen(logits: Float[Tensor, " c v"]) -> Float[Tensor, " c v"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
