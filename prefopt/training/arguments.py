"""`transformers.TrainingArguments` from an algorithm's recipe and what the user said."""

import dataclasses
import re
from typing import Any

import torch
from transformers import TrainingArguments

from prefopt.core.console import say
from prefopt.core.errors import UsageError
from prefopt.core.recipe import Recipe
from prefopt.core.settings import refuse_unknown
from prefopt.models.precision import compute_dtype

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
# Gradient checkpointing was renamed in transformers 5, where the old name warns.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
_CHECKPOINTING = ("activation_checkpointing", "gradient_checkpointing")


def recipe_fields(
    recipe: Recipe, *, trains_adapter: bool, quantized: bool, device: str | None = None
) -> dict[str, Any]:
    """The fields of ``TrainingArguments`` that a recipe stands for.

    Args:
        recipe: The recipe.
        trains_adapter: Whether an adapter is trained in place of all weights.
        quantized: Whether the frozen weights are in 4 bit.
        device: None for what this machine has; ``"cuda"`` for a card that computes in bfloat16, or ``"cpu"``.
    """
    cuda = torch.cuda.is_available() if device is None else device == "cuda"
    bf16 = cuda and (device is not None or compute_dtype() is torch.bfloat16)
    return {
        "learning_rate": recipe.adapter if trains_adapter else recipe.full,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": 0.1,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.micro_batch,
        "per_device_eval_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.batch // recipe.micro_batch,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "bf16": bf16,
        "fp16": cuda and not bf16,
        CHECKPOINTING: cuda,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False} if cuda else None,
        "optim": "paged_adamw_8bit" if cuda and quantized else "adamw_torch",
        "logging_steps": 10,
        "save_total_limit": 2,
        "report_to": "none",
        # Every trainable weight is in every forward pass; looking for unused ones costs a walk of the graph.
        "ddp_find_unused_parameters": False,
    }


def training_arguments(
    given: dict[str, Any] | TrainingArguments | None,
    recipe: Recipe,
    *,
    algorithm: str,
    trains_adapter: bool,
    quantized: bool,
) -> TrainingArguments:
    """Merge a dict over the recipe, or take a TrainingArguments as it is.

    Args:
        given: The user's arguments.
        recipe: The recipe of the algorithm.
        algorithm: The name of the algorithm, for messages and the default output folder.
        trains_adapter: Whether an adapter is trained in place of all weights.
        quantized: Whether the frozen weights are in 4 bit.

    Raises:
        UsageError: an unknown field, one without effect here, or values that transformers refuses.
    """
    if isinstance(given, TrainingArguments):
        _refuse_without_effect({key: getattr(given, key) for key in WITHOUT_EFFECT if hasattr(given, key)})
        args = given
    else:
        if not recipe.declared:
            say(f"{algorithm}: it declares no recipe; prefopt's defaults: {recipe.in_words()}.")
        fields = recipe_fields(recipe, trains_adapter=trains_adapter, quantized=quantized)
        args = _merged(dict(given or {}), fields, algorithm)
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
    refuse_unknown("args", given, fields, see="transformers.TrainingArguments")
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
