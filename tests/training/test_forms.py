"""Every documented form of the arguments of `prefopt.Trainer` trains."""

from pathlib import Path

import pytest
import tiny
from transformers import TrainingArguments

import prefopt
from prefopt.core.errors import UsageError


def test_a_training_arguments_object_is_taken_as_it_is(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, learning_rate=3e-4, report_to="none", use_cpu=True, save_strategy="no"
    )
    trainer = prefopt.Trainer(tiny.model(), "dpo", tiny.pairs(4), processing_class=tiny.tokenizer(), args=args)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.args is args
    assert trainer.args.learning_rate == 3e-4


def test_a_field_without_effect_is_refused_in_an_object_too(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)
    with pytest.raises(UsageError, match=r"label_smoothing_factor=0\.1 would have no effect"):
        prefopt.Trainer(tiny.model(), "dpo", tiny.pairs(4), processing_class=tiny.tokenizer(), args=args)
