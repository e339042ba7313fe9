"""One forward pass of a causal language model, of which only the completion positions reach the vocabulary head.

Where their logits would be too many, the hidden states are kept instead. They go through the head in tiles where it is
a plain linear map (see `tiles`), and through its module in chunks of rows, once more in the backward pass, where not.
"""

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prefopt.core.errors import ModelError, UsageError
from prefopt.core.micro_batch import PaddedRows
from prefopt.scoring import tiles
from prefopt.scoring.head import (
    LinearHead,
    after_head,
    called_with,
    is_linear,
    linear_head,
    logits_equal,
    vocabulary_of,
)
from prefopt.scoring.passes import Pass, in_order
from prefopt.scoring.sharing import arranged

CHUNK = 2**25
"""Logits that are held at once, in numbers, where the head is more than a matrix: 128 MiB in float32."""

STATISTICS = frozenset({"entropy", "kl", "log_sum_p2"})

# Heads whose models do something else with their output, so that only their own forward can.
_OTHERS: WeakSet[nn.Module] = WeakSet()


class Rows(NamedTuple):
    """What the logits of the completion positions are made from.

    Attributes:
        values: the logits themselves, or the hidden states before the head.
        to_logits: from some of these rows to their logits, in float32 or the model's dtype if that is wider.
        size: how many rows to take at once where ``to_logits`` is called.
        hidden: the hidden states before the head; None where the head was not called as a module.
        head: the head as a matrix, where ``values`` are hidden states and it is no more than that.
    """

    values: Float[Tensor, " k d"]
    to_logits: Callable[[Float[Tensor, " c d"]], Float[Tensor, " c v"]]
    size: int
    hidden: Float[Tensor, " k h"] | None = None
    head: LinearHead | None = None

    def whole(self) -> "Rows":
        """The same with the logits made now, for a head that will not stay as it is."""
        return Rows(self.to_logits(self.values), _widen, self.size, self.hidden)


def score(
    model: nn.Module,
    padded: PaddedRows,
    *,
    statistics: frozenset[str] = frozenset(),
    reference: Rows | None = None,
    temperature: float = 1.0,
    value_head: nn.Module | None = None,
) -> dict[str, Float[Tensor, " k"]]:
    """Log-probabilities of the completion tokens of padded rows.

    Args:
        model: a transformers causal LM, a peft model of one, or either wrapped for data parallelism. It is called
            through its own ``forward``, so that wrappers, adapters, softcaps and logit scales do what they do.
        padded: the rows.
        statistics: further per-token values: ``"entropy"``, −Σ_v π(v) log π(v), and ``"log_sum_p2"``, log Σ_v π(v)²,
            without gradient; ``"kl"``, KL(π_ref ‖ π) over the vocabulary, with gradient.
        reference: from `rows_of` at the same positions; needed for ``"kl"``.
        temperature: all logits are divided by it: log-probabilities are those of sampling at this temperature.
        value_head: a critic on the model's own hidden states, from [K, h] to [K, 1], whatever their precision.

    Returns:
        ``logps``: log π(token), [K] in nats, in float32 or the model's dtype if that is wider; the statistics; and,
        with a ``value_head``, ``values``, what it says before each token.
    """
    rows = rows_of(model, padded)
    values = values_of(rows, padded.layout.target, statistics=statistics, reference=reference, temperature=temperature)
    if value_head is not None:
        values["values"] = _valued(rows.hidden, value_head)
    return values


def values_of(
    rows: Rows,
    target: Int[Tensor, " k"],
    *,
    statistics: frozenset[str] = frozenset(),
    reference: Rows | None = None,
    temperature: float = 1.0,
) -> dict[str, Float[Tensor, " k"]]:
    """Log-probabilities and statistics of tokens, from what their logits are made from.

    Args:
        rows: from `rows_of`.
        target: the tokens.
        statistics: as in `score`, and so are ``reference`` and ``temperature``.

    Raises:
        UsageError: a statistic has no such name, or there is no reference for ``"kl"``.
    """
    if unknown := statistics - STATISTICS:
        raise UsageError(f"no statistic is called {min(unknown)!r}: {', '.join(sorted(STATISTICS))} are.")
    if "kl" in statistics and reference is None:
        raise UsageError("the statistic 'kl' needs the rows of a reference.")
    heads = [rows] if reference is None else [rows, reference]
    if all(one.head is not None for one in heads):
        through = [tiles.Through(one.values, one.head) for one in heads]
        other = through[1] if reference is not None else None
        return tiles.tile_values(through[0], target, statistics=statistics, reference=other, temperature=temperature)

    def measure(values: Tensor, target: Tensor, reference_values: Tensor | None) -> dict[str, Tensor]:
        logits = [rows.to_logits(values)] + ([] if reference is None else [reference.to_logits(reference_values)])
        return _measure(target, statistics, *(logits if temperature == 1 else [one / temperature for one in logits]))

    parts = []
    for start in range(0, max(len(target), 1), rows.size):
        part = slice(start, start + rows.size)
        given = rows.values[part], target[part], None if reference is None else reference.values[part]
        again = torch.is_grad_enabled() and len(target) > rows.size
        parts.append(checkpoint(measure, *given, use_reentrant=False) if again else measure(*given))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def score_values(model: nn.Module, padded: PaddedRows, value_head: nn.Module) -> Float[Tensor, " k"]:
    """What a critic says before each completion token, V(x, y_<t), from the hidden states of a language model.

    Args:
        model: as in `score`; all but one of its positions stay out of the vocabulary head.
        padded: the rows.
        value_head: from hidden states [K, h] to values [K, 1], whatever their precision.
    """
    passes = arranged(model, padded, _logps)
    head = getattr(model, "module", model).get_output_embeddings()
    values = []
    for inputs, index, _ in passes:
        _, seen = called_with(model, head, inputs, index, index[:1])
        values.append(_valued(None if seen is None else seen.hidden, value_head))
    return in_order(values, [one.tokens for one in passes])


def _valued(hidden: Tensor | None, value_head: nn.Module) -> Float[Tensor, " k"]:
    if hidden is None:
        raise ModelError("this model does not call its vocabulary head as a module, so a critic cannot sit beside it.")
    return value_head(hidden).squeeze(-1)


def rows_of(model: nn.Module, padded: PaddedRows) -> Rows:
    """The completion positions of padded rows after the forward passes: their logits, or, of many, their hidden states.

    Rows that begin with the same prompt share it where the model allows it, and where it does not, rows of very
    different lengths are not padded to one length (see `sharing`).
    """
    passes = arranged(model, padded, _logps)
    parts = [_rows(model, one, len(padded.layout.target)) for one in passes]
    if len(parts) == 1:
        return parts[0]
    tokens = [one.tokens for one in passes]
    if all(part.values is part.hidden for part in parts):
        hidden = in_order([part.values for part in parts], tokens)
        return parts[0]._replace(values=hidden, hidden=hidden)
    # A head that turns out to be unlike others in a later pass has been taken for one of them in an earlier pass.
    parts = [part.whole() if part.values is part.hidden else part for part in parts]
    hidden = None if parts[0].hidden is None else in_order([part.hidden for part in parts], tokens)
    return parts[0]._replace(values=in_order([part.values for part in parts], tokens), hidden=hidden)


def _logps(model: nn.Module, one: Pass, target: Tensor) -> Float[Tensor, " k"]:
    return values_of(_rows(model, one, len(target)), target)["logps"]


def _rows(model: nn.Module, one: Pass, count: int) -> Rows:
    """Of the positions that a forward pass predicts from, where the micro-batch has ``count`` of them."""
    inputs, index, _ = one
    inner = getattr(model, "module", model)
    head = inner.get_output_embeddings()
    vocabulary = vocabulary_of(inner)
    size, most = max(1, CHUNK // vocabulary), tiles.TILE if is_linear(head) else CHUNK
    if count > max(1, most // vocabulary) and head not in _OTHERS:
        # The model's own forward goes on with one row: what it does after its head must be what is done here.
        logits, seen = called_with(model, head, inputs, index, index[:1])
        if seen is None:
            return Rows(_select(logits, index), _widen, size)
        after = after_head(inner)
        if logits_equal(after(seen.output), logits):
            head = linear_head(seen, after)
            return Rows(seen.hidden, lambda hidden: _widen(after(seen.head(hidden))), size, seen.hidden, head)
        _OTHERS.add(head)
    logits, seen = called_with(model, head, inputs, index, index)
    if seen is None:
        return Rows(_widen(_select(logits, index)), _widen, size)
    return Rows(_widen(logits.flatten(0, 1)), _widen, size, seen.hidden)


def _measure(
    target: Tensor, statistics: frozenset[str], logits: Float[Tensor, " c v"], reference_logits: Tensor | None = None
) -> dict[str, Float[Tensor, " c"]]:
    normaliser = logits.logsumexp(dim=-1)
    values = {"logps": logits.gather(-1, target[:, None]).squeeze(-1) - normaliser}
    if "entropy" in statistics:
        with torch.no_grad():
            logps = logits.log_softmax(dim=-1)
            values["entropy"] = -(logps.exp() * logps).sum(dim=-1)
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
