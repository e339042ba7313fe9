"""Training arguments that suit each algorithm; the user's own are merged over them."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from prefopt.models.precision import compute_dtype


@cache
def checkpointing_field() -> str:
    """What ``TrainingArguments`` call gradient checkpointing: renamed in transformers 5, where the old name warns."""
    from transformers import TrainingArguments  # takes seconds, which a list of algorithms need not

    new = "activation_checkpointing"
    return new if new in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"


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
        schedule: of the learning rate, as transformers calls it.
    """

    full: float
    adapter: float
    batch: int = 32
    micro_batch: int = 4
    epochs: float = 1.0
    schedule: str = "cosine"

    def arguments(self, *, trains_adapter: bool, quantized: bool, device: str | None = None) -> dict[str, Any]:
        """The keyword arguments for this way of training.

        Args:
            trains_adapter: rather than all weights.
            quantized: whether the frozen weights are in 4 bit.
            device: None for what this machine has; ``"cuda"`` for a card that computes in bfloat16, or ``"cpu"``.
        """
        cuda = torch.cuda.is_available() if device is None else device == "cuda"
        bf16 = cuda and (device is not None or compute_dtype() is torch.bfloat16)
        return {
            "learning_rate": self.adapter if trains_adapter else self.full,
            "lr_scheduler_type": self.schedule,
            "warmup_steps": 0.1,
            "num_train_epochs": self.epochs,
            "per_device_train_batch_size": self.micro_batch,
            "per_device_eval_batch_size": self.micro_batch,
            "gradient_accumulation_steps": max(1, self.batch // self.micro_batch),
            "max_grad_norm": 1.0,
            "weight_decay": 0.0,
            "bf16": bf16,
            "fp16": cuda and not bf16,
            checkpointing_field(): cuda,
            f"{checkpointing_field()}_kwargs": {"use_reentrant": False} if cuda else None,
            "optim": "paged_adamw_8bit" if cuda and quantized else "adamw_torch",
            "logging_steps": 10,
            "save_total_limit": 2,
            "report_to": "none",
            # Every trainable weight is in every forward pass; looking for unused ones costs a walk of the graph.
            "ddp_find_unused_parameters": False,
        }


def _recipe(full: float, **others: Any) -> Recipe:
    # 10 * 1e-6 is not 1e-5 in binary, and the number is printed.
    return Recipe(full=full, adapter=float(f"{10 * full:.6g}"), **others)


# Learning rates of a full fine-tune.
_DPO = _recipe(1e-6)
_RECIPES = {
    # From the papers.
    **dict.fromkeys(("dpo", "dpo_pl"), _DPO),
    **dict.fromkeys(("nca_pair", "nca", "infonca"), _recipe(5e-6)),
    **dict.fromkeys(("sppo", "sppo_hard"), _recipe(5e-7)),
    **dict.fromkeys(("apo_zero", "apo_down"), _recipe(2e-7, batch=64)),
    **dict.fromkeys(("bco", "bco_pair"), _recipe(5e-7, batch=128)),
    "kto": _recipe(5e-6, batch=64, micro_batch=8),
    "orpo": _recipe(8e-6),
    "rpo_nll": _recipe(7e-7),
    # Relatives of DPO: one log-ratio against a reference. Robust DPO's published 1e-3 belongs to another setting, and
    # would wreck a language model of today.
    **dict.fromkeys(("cdpo", "robust_dpo", "dpop", "dpo_norm", "rdpo_length", "ld_dpo", "sampo", "beta_dpo"), _DPO),
    **dict.fromkeys(("fdpo", "js_dpo", "forward_kl_dpo", "alpha_div_dpo", "tdpo1", "tdpo2", "wpo"), _DPO),
    **dict.fromkeys(("ipo", "hinge", "exo", "exo_pair", "discopop", "aot_paired", "aot_unpaired"), _DPO),
    **dict.fromkeys(("wpo_weighted", "rebel", "reward_aware_rpo", "mpo"), _DPO),
    # Of SPPO, whose calibration term it has.
    "cal_dpo": _recipe(5e-7),
    # Without a reference. SLiC's published 1e-4 belongs to another kind of model and optimizer.
    **dict.fromkeys(("simpo", "alphapo", "cpo", "cpo_simpo", "slic"), _recipe(1e-6)),
    # Of ORPO: they imitate the best completion and have no reference.
    **dict.fromkeys(("rrhf", "pro"), _recipe(8e-6)),
    # Reward models. The rate is that of Llama 2 (arXiv 2307.09288), the batch InstructGPT's; a second epoch overfits.
    **dict.fromkeys(
        ("reward", "reward_margin", "reward_kwise", "reward_best_of_k", "reward_regression"),
        _recipe(1e-5, batch=64, micro_batch=8),
    ),
    # Imitation.
    "sft": _recipe(2e-5),
    "rejection_sampling": _recipe(2e-5, batch=16),
    # Each round begins from the start again, and none may count for less than another.
    "rest_em": _recipe(2e-5, batch=16, schedule="constant"),
    # Sampled by the policy itself: a batch counts prompts, of which each has several completions.
    **dict.fromkeys(("ppo", "rloo", "reinforce", "reinforce_pp", "nash_md"), _recipe(1e-6, batch=16)),
    **dict.fromkeys(("grpo", "dr_grpo", "dapo", "gspo", "cispo"), _recipe(1e-6, batch=16)),
    **dict.fromkeys(("online", "online_dpo", "online_ipo", "iterative_dpo", "xpo", "rso"), _recipe(1e-6, batch=16)),
}
# Examples of a batch whose losses depend on each other.
_COUPLED = 16


def recipe_for(name: str, *, coupled: bool = False) -> Recipe:
    """The recipe of an algorithm; an objective without one of its own shares DPO's.

    Args:
        name: as it is registered.
        coupled: whether its loss compares the examples of a batch, so that a step must be one batch.
    """
    recipe = _RECIPES.get(name, _DPO)
    return replace(recipe, batch=_COUPLED, micro_batch=_COUPLED) if coupled else recipe
