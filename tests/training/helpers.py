"""Short runs of the trainer on the tiny model."""

from collections.abc import Iterable
from typing import Any

import pytest
import tiny
import torch
from transformers import TrainerCallback

import prefopt

SIX = ("sft", "dpo", "ipo", "kto", "orpo", "simpo")
NEEDS_REFERENCE = ("dpo", "ipo", "kto")


def quick(cases: Iterable[Any], chosen: Iterable[Any]) -> list:
    """Parameters of a test that asks every case the same: one of each kind, and the others as slow tests."""
    cases, chosen = list(cases), list(chosen)
    assert all(case in cases for case in chosen), "a test without its quick cases"
    slow = pytest.mark.slow
    given = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=() if raw in chosen else slow) for case, raw in zip(given, cases, strict=True)]


class Watch(TrainerCallback):
    """Keeps the gradients of every optimizer step, and the logs."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        parts = [p.grad.detach().double().flatten() for p in model.parameters() if p.grad is not None]
        self.gradients.append(torch.cat(parts))


def trainer(
    algorithm: Any, rows: Any, *, model: Any = None, args: dict | None = None, callbacks: Any = (), **options: Any
) -> prefopt.Trainer:
    """A trainer that writes nothing and logs every step. The model defaults to the tiny one, in float32."""
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 0.0,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return prefopt.Trainer(
        model=tiny.model() if model is None else model,
        algorithm=algorithm,
        train_dataset=rows,
        processing_class=options.pop("processing_class", None) or tiny.tokenizer(),
        args=defaults | (args or {}),
        callbacks=callbacks,
        **options,
    )


def losses(run: prefopt.Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]
