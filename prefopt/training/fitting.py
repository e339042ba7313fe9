"""Whether the model and the tokenizers of a run fit it: what is refused, what is mended, and what is said of it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from prefopt.algorithms import Algorithm
from prefopt.core.console import say
from prefopt.core.errors import ModelError, UsageError
from prefopt.models import is_adapter_model, load_tokenizer
from prefopt.models.checks import balancing_line, check_trains, train_in_float32
from prefopt.models.generation import finish_generation_config
from prefopt.training.spec import RunSpec


def name_of(model: Any) -> str:
    """The name of a model in messages."""
    return str(model) if isinstance(model, (str, Path)) else type(model).__name__


def tokenizer_of(spec: RunSpec) -> PreTrainedTokenizerBase:
    """The tokenizer that was given, as an object or by its path, or the model's own."""
    given = spec.processing_class
    if isinstance(given, PreTrainedTokenizerBase):
        if given.pad_token_id is None and given.eos_token_id is not None:
            # Masks decide what is padding; the user's own object stays as it is.
            given = copy.deepcopy(given)
            given.pad_token = given.eos_token
        return given
    if given is not None and not isinstance(given, (str, Path)):
        raise UsageError(f"processing_class must be a tokenizer or the path of one, not {type(given).__name__}.")
    return load_tokenizer(spec.model if given is None else given, trust_remote_code=spec.trust_remote_code)


def fit_model(policy: nn.Module, algorithm: Algorithm, args: TrainingArguments, stop_ids: Sequence[int]) -> None:
    """Refuse a model that would not learn, mend what can be mended, and say so."""
    check_trains(policy)
    base = policy.get_base_model() if is_adapter_model(policy) else policy
    lines = [train_in_float32(policy, mixed=args.bf16 or args.fp16)]
    if not algorithm.objective.needs.rewards:
        lines += finish_generation_config(base, stop_ids)
    lines.append(balancing_line(base.config, added=not algorithm.objective.needs.rewards))
    if is_adapter_model(policy) and not policy.peft_config[policy.active_adapter].base_model_name_or_path:
        lines.append(
            "the model under the adapter has no name, so the saved adapter will not know its base: save the "
            "base first and load it from there"
        )
    for line in filter(None, lines):
        say(f"{algorithm.name}: {line}.")


def reference_tokenizer(spec: RunSpec) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the given reference; None where it has none beside it."""
    try:
        return load_tokenizer(spec.reference, trust_remote_code=spec.trust_remote_code)
    except ModelError:
        return None
