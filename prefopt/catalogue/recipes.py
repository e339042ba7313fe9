"""Training arguments that suit each algorithm; the user's own are merged over them."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments

# The field was renamed in transformers 5; the old name still works there, with a warning.
CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults for `transformers.TrainingArguments`.

    Attributes:
        full: learning rate of a full fine-tune.
        adapter: learning rate of LoRA and QLoRA; about ten times that of a full fine-tune suits the low-rank
            factors of the same model.
        batch: examples per optimizer step and device (micro-batch × accumulation).
        micro_batch: examples per forward pass.
        epochs: passes over the data.
    """

    full: float
    adapter: float
    batch: int = 32
    micro_batch: int = 4
    epochs: float = 1.0

    def arguments(self, *, trains_adapter: bool, quantized: bool) -> dict[str, Any]:
        """The keyword arguments for this machine and this way of training."""
        cuda = torch.cuda.is_available()
        bf16 = cuda and torch.cuda.is_bf16_supported()
        return {
            "learning_rate": self.adapter if trains_adapter else self.full,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.micro_batch,
            "per_device_eval_batch_size": self.micro_batch,
            "gradient_accumulation_steps": max(1, self.batch // self.micro_batch),
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


# Learning rates of a full fine-tune follow the papers (`prefopt explain NAME` names them); where a paper gives none,
# its relatives' do.
_IMITATION = Recipe(full=2e-5, adapter=2e-4)
_PREFERENCE = Recipe(full=1e-6, adapter=1e-5)
_RECIPES = {
    "sft": _IMITATION,
    "rejection_sampling": Recipe(full=2e-5, adapter=2e-4, batch=16),
    "dpo": _PREFERENCE,
    "ipo": _PREFERENCE,
    "kto": Recipe(full=5e-6, adapter=5e-5, batch=64, micro_batch=8),
    "orpo": Recipe(full=8e-6, adapter=8e-5),
    "simpo": Recipe(full=1e-6, adapter=1e-5),
}


def recipe_for(name: str) -> Recipe:
    """The recipe of an algorithm; preference objectives without one of their own share DPO's."""
    return _RECIPES.get(name, _PREFERENCE)
