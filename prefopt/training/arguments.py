"""`transformers.TrainingArguments` from an algorithm's recipe and what the user said."""

import dataclasses
import re
from typing import Any

from transformers import TrainingArguments

from prefopt.algorithms.recipes import checkpointing_field
from prefopt.core.console import say
from prefopt.core.errors import UsageError, did_you_mean

# Fields that would have no effect in this trainer, each with what to do instead.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "smoothing belongs to the objective: use algorithm='cdpo' for pairs",
    "dataloader_drop_last": "no row is dropped here: a short last batch is averaged exactly",
    "remove_unused_columns": "columns are read by the data room; rename them with data={'columns': ...}",
    "label_names": "labels are read by the data room; rename columns with data={'columns': ...}",
    "train_sampling_strategy": "order is decided by the step sampler, the same on any number of processes",
    "average_tokens_across_devices": "averages always span all processes, as the objective says",
    "use_liger_kernel": "losses are computed by the objective, not by the model",
    "include_for_metrics": "metrics come from the objective",
    "batch_eval_metrics": "metrics come from the objective",
    "prediction_loss_only": "evaluation returns no logits",
    "auto_find_batch_size": "set per_device_train_batch_size; the effective batch is part of the result",
}
_PRECISION = ("bf16", "fp16")
CHECKPOINTING = checkpointing_field()
_CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


def training_arguments(
    given: dict[str, Any] | TrainingArguments | None, recipe: dict[str, Any], *, algorithm: str
) -> TrainingArguments:
    """Merge a dict over the recipe, or take a TrainingArguments as it is.

    Raises:
        UsageError: an unknown field, one without effect here, or values that transformers refuses.
    """
    if isinstance(given, TrainingArguments):
        _refuse_without_effect({key: getattr(given, key) for key in WITHOUT_EFFECT if hasattr(given, key)})
        args = given
    else:
        args = _merged(dict(given or {}), recipe, algorithm)
    # A loss that is not finite must be seen, not replaced by an earlier one.
    args.logging_nan_inf_filter = False
    kwargs = getattr(args, f"{CHECKPOINTING}_kwargs") or {}
    if kwargs.get("offload") and args.device.type == "cpu":
        raise UsageError(
            f"args: {CHECKPOINTING}_kwargs moves checkpoints from a card to CPU memory, and this run computes on "
            "CPU: leave offload out."
        )
    if args.n_gpu > 1:
        raise UsageError(
            f"this process sees {args.n_gpu} GPUs: start one process for each with `accelerate launch`, or show it "
            "one with CUDA_VISIBLE_DEVICES=0."
        )
    return args


def _merged(given: dict[str, Any], recipe: dict[str, Any], algorithm: str) -> TrainingArguments:
    merged = merged_fields(given, recipe, algorithm)
    try:
        args = TrainingArguments(**merged)
    except (ValueError, TypeError) as error:
        raise UsageError(f"args: {str(error).strip().splitlines()[0]}") from error
    say(f"{algorithm}: " + ", ".join(f"{key}={value}" for key, value in sorted(merged.items())))
    return args


def merged_fields(given: dict[str, Any], recipe: dict[str, Any], algorithm: str) -> dict[str, Any]:
    """The user's fields of ``TrainingArguments`` over the recipe's.

    Raises:
        UsageError: an unknown field, or one without effect here.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    for key in given:
        if key not in fields:
            raise UsageError(f"args has no field {key!r}.{did_you_mean(key, fields)} See TrainingArguments.")
    _refuse_without_effect(given)
    recipe = {"output_dir": "prefopt-" + re.sub(r"[^\w.=]+", "-", algorithm).strip("-"), **recipe}
    if "gradient_checkpointing" in given or "activation_checkpointing" in given:
        recipe = {key: value for key, value in recipe.items() if not key.startswith(CHECKPOINTING)}
    if any(given.get(f"{name}_kwargs") for name in _CHECKPOINTING) and not any(
        {**recipe, **given}.get(name) for name in _CHECKPOINTING
    ):
        raise UsageError(
            f"args: {CHECKPOINTING}_kwargs would have no effect: set {CHECKPOINTING}=true, which is not on here."
        )
    if any(key in given for key in (*_PRECISION, "use_cpu")):
        recipe = {key: value for key, value in recipe.items() if key not in _PRECISION}
    merged = recipe | given
    # The keys that transformers lets default by platform or by another key are left to it.
    return {key: value for key, value in merged.items() if value is not None}


def _refuse_without_effect(values: dict[str, Any]) -> None:
    # A default may be made by a factory, and then no two of them are the same object.
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(TrainingArguments)
    }
    for key, remedy in WITHOUT_EFFECT.items():
        if key in values and values[key] != defaults[key]:
            raise UsageError(f"args: {key}={values[key]!r} would have no effect: {remedy}.")
