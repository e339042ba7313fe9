"""From a recipe and what the user said to `TrainingArguments`."""

import pytest
from transformers import TrainingArguments

from prefopt.core.recipe import DEFAULTS, Recipe
from prefopt.training.arguments import CHECKPOINTING, recipe_fields, training_arguments

RECIPE = Recipe(full=2e-6, batch=24, micro_batch=8, epochs=2.0, schedule="linear")


def test_the_fields_of_a_recipe() -> None:
    fields = recipe_fields(RECIPE, trains_adapter=False, quantized=False, device="cpu")
    assert (fields["learning_rate"], fields["lr_scheduler_type"], fields["num_train_epochs"]) == (2e-6, "linear", 2.0)
    assert (fields["per_device_train_batch_size"], fields["gradient_accumulation_steps"]) == (8, 3)
    assert (fields["bf16"], fields["fp16"], fields[CHECKPOINTING]) == (False, False, False)


def test_an_adapter_on_a_card() -> None:
    fields = recipe_fields(RECIPE, trains_adapter=True, quantized=True, device="cuda")
    assert (fields["learning_rate"], fields["optim"]) == (2e-5, "paged_adamw_8bit")
    assert (fields["bf16"], fields["fp16"], fields[CHECKPOINTING]) == (True, False, True)


def said(recipe: Recipe, given: object, capsys: pytest.CaptureFixture) -> list[str]:
    training_arguments(given, recipe, algorithm="mine", trains_adapter=False, quantized=False)
    return capsys.readouterr().err.splitlines()


def test_an_algorithm_without_a_recipe_says_what_it_trains_with(capsys: pytest.CaptureFixture) -> None:
    line = (
        "mine: it declares no recipe; prefopt's defaults: learning rate 1e-06 (1e-05 for LoRA and QLoRA), batch 32 in "
        "micro-batches of 4, 1 epoch, cosine schedule."
    )
    assert line in said(DEFAULTS, {"use_cpu": True}, capsys)
    assert not any("recipe" in one for one in said(RECIPE, {"use_cpu": True}, capsys))


def test_arguments_that_are_taken_as_they_are_leave_the_recipe_out(capsys: pytest.CaptureFixture) -> None:
    assert said(DEFAULTS, TrainingArguments(use_cpu=True, report_to="none"), capsys) == []
