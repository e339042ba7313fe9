"""Call anyone's function of log-probabilities on prefopt's batches, by the names of its parameters.

A parameter is understood by the words in its name, in any order, joined by underscores:

============  =====================================================================================================
side          ``chosen``, ``w``, ``win``, ``winner``, ``preferred``, ``pos`` or ``rejected``, ``l``, ``lose``,
              ``loser``, ``dispreferred``, ``neg``; none for losses of one completion
model         ``ref``, ``reference``; otherwise the policy
what          ``length``, ``lengths``, ``len``; ``mask``; ``score``, ``scores``, ``reward``, ``rewards``; otherwise
              log-probabilities, or what a reward model gives for the losses that train one
the rest      a label that the objective reads, such as ``preference``, ``desirable`` or ``labels`` (true for
              desirable), by its name in `prefopt.core.labels`; ``z0`` or ``kl``, ``delta``; one parameter named
              ``batch`` or ``pairs`` gets the container itself
============  =====================================================================================================

With any ``mask`` among its parameters the function gets per-token values [n, t], otherwise sums [n]. Hyperparameters
are passed by name (``beta`` also for IPO's τ); a parameter that is not understood keeps its default. The function
returns a scalar, one value per row (a mean is taken), a tuple whose first item is one of these, or a dict with
``"loss"``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.core.batches import Batch, Completions, Pairs
from prefopt.core.errors import UsageError
from prefopt.core.labels import Label, labels_of
from prefopt.core.loss import Loss, State
from prefopt.core.needs import Needs
from prefopt.core.objective import Objective

CHOSEN = {"chosen", "w", "win", "winner", "preferred", "pos", "positive", "yw"}
REJECTED = {"rejected", "l", "lose", "loser", "dispreferred", "neg", "negative", "yl"}
REFERENCE = {"ref", "reference"}
LENGTH = {"length", "lengths", "len", "lens"}
SCORE = {"score", "scores", "reward", "rewards"}
LOGPS = {"logps", "logp", "logprobs", "logprob", "lp", "log", "policy", "pi", *REFERENCE}
CONTAINERS = {"batch", "pairs", "labelled", "demonstrations", "ranked"}
HYPERPARAMETERS = {
    "beta": ("tau",),
    "tau": ("beta",),
    "epsilon": ("label_smoothing",),
    "eps": ("label_smoothing",),
    "lambda_": ("lam",),
    "lmbda": ("lam",),
}
STATE = {"kl": "z0", "running_mean": "delta"}

Getter = Callable[[Batch, State], Any]


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A foreign function as a loss of prefopt's batches.

    Attributes:
        function: what is called.
        getters: where each of its parameters comes from.
        hyperparameters: its parameters that are hyperparameters of the objective, by the objective's name for them.
        tokens: whether it takes per-token values with masks.
        takes_state: whether it takes what is known of the whole step (KTO's z0), instead of working that out itself.
    """

    function: Callable[..., Any]
    getters: Mapping[str, Getter]
    hyperparameters: Mapping[str, str]
    tokens: bool
    takes_state: bool

    def __call__(self, objective: Objective, batch: Batch, state: State) -> Tensor:
        arguments = {name: get(batch, state) for name, get in self.getters.items()}
        arguments |= {name: getattr(objective, field) for name, field in self.hyperparameters.items()}
        return as_scalar(self.function(**arguments))


def as_scalar(result: Any) -> Tensor:
    """The loss in what a function returned."""
    if isinstance(result, Loss):
        return result.mean()
    if isinstance(result, Mapping):
        return as_scalar(result["loss"])
    if isinstance(result, (tuple, list)):
        return as_scalar(result[0])
    if not isinstance(result, Tensor):
        raise TypeError(f"a loss is a tensor, or a tuple or dict with one; this is {result!r}")
    return result.mean() if result.ndim else result


def adapt(function: Callable[..., Any], objective: Objective) -> Adapted:
    """Work out from its signature how to call a function on the batches of ``objective``.

    Raises:
        UsageError: a parameter without a default is not understood, or asks for what the objective's batches lack.
    """
    parameters = inspect.signature(function).parameters
    tokens = any("mask" in _words(name) for name in parameters)
    getters: dict[str, Getter] = {}
    hyperparameters: dict[str, str] = {}
    fields = [field.name for field in dataclasses.fields(objective)]
    state = _state_names(objective)
    for name, parameter in parameters.items():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        field = next((one for one in (name, *HYPERPARAMETERS.get(name, ())) if one in fields), None)
        getter = None if field else _getter(name, objective, tokens, state)
        if field:
            hyperparameters[name] = field
        elif getter:
            getters[name] = getter
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(
                f"cannot tell what the parameter {name!r} of {_name(function)} should get; rename it as "
                "prefopt.verify.adapters describes, give it a default, or wrap the function."
            )
    takes_state = any(STATE.get(name, name) in state for name in getters)
    return Adapted(function, getters, hyperparameters, tokens, takes_state)


def _words(name: str) -> set[str]:
    return set(name.lower().split("_"))


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))


def _state_names(objective: Objective) -> set[str]:
    return {"z0"} if "mismatched" in objective.needs.observes else set(objective.init_state())


def _getter(name: str, objective: Objective, tokens: bool, state: set[str]) -> Getter | None:
    words, needs = _words(name), objective.needs
    if name in CONTAINERS:
        return lambda batch, _: batch
    if STATE.get(name, name) in state:
        return lambda _, values: values[STATE.get(name, name)]
    label = next((one.name for one in labels_of(needs.batch.kind) if _reads(needs, one) and _means(words, one)), None)
    if label is not None:
        return lambda batch, _: getattr(batch, label)
    side = "chosen" if words & CHOSEN else "rejected" if words & REJECTED else None
    if (side is None) == issubclass(needs.batch, Pairs):
        return None
    if words & SCORE and f"{side}_score" in needs.labels:
        return lambda batch, _: getattr(batch, f"{side}_score")
    what = "lengths" if words & LENGTH else "mask" if "mask" in words else None
    if what is None and needs.rewards and words & (LOGPS | CHOSEN | REJECTED | SCORE):
        what = "rewards"
    if what is None and not words & (LOGPS | CHOSEN | REJECTED):
        return None
    what = what or ("ref_logps" if words & REFERENCE else "logps")
    if what == "ref_logps" and not needs.reference:
        return None
    return lambda batch, _: _column(getattr(batch, side or "completions"), what, tokens)


def _reads(needs: Needs, label: Label) -> bool:
    return label.name in (*needs.labels, *needs.optional) or needs.batch.label_fields().get(label.name, False)


def _means(words: set[str], label: Label) -> bool:
    """Whether the words of a parameter's name say this label."""
    return words >= set(label.name.split("_")) or bool(words & set(label.words))


def _column(completions: Completions, what: str, tokens: bool) -> Tensor:
    if what == "mask" or (tokens and what not in ("lengths", "rewards")):
        return getattr(completions.tokens, what)
    return getattr(completions, what)


def without_mask(batch: Batch) -> Batch:
    """The batch as a function sees it that forgets the mask: every position counts, what is in the padding too."""

    def forget(rows: Completions) -> Completions:
        return Completions.from_tokens(dataclasses.replace(rows.tokens, mask=torch.ones_like(rows.tokens.mask)))

    return map_completions(batch, forget)


def map_completions(batch: Batch, change: Callable[[Completions], Completions]) -> Batch:
    """The batch with every set of completions changed."""
    changes = {
        field.name: change(getattr(batch, field.name))
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), Completions)
    }
    return dataclasses.replace(batch, **changes)
