"""Learning rates and settings of the demo, by algorithm.

Rates are copied from ``best`` in ``benchmarks/results/demo_sweep.json``, which ``python benchmarks/demo_sweep.py``
writes: of the rates it tries, the one with the highest gold reward on prompts that the demo does not measure on; for
the reward model the one with the highest accuracy on held-out pairs.
"""

from typing import Any

RATES = {
    "sft": 1.6e-3,
    "dpo": 4e-4,
    "ipo": 4e-4,
    "kto": 8e-4,
    "orpo": 8e-4,
    "simpo": 4e-4,
    "rejection_sampling": 2e-4,
    "grpo": 2e-4,
    "ppo": 8e-4,
    "reward": 1e-3,
}

SETTINGS: dict[str, dict[str, Any]] = {
    # Completions of four steps are sampled at once, which takes little longer than those of one.
    "rejection_sampling": {"minibatches": 4},
    # The reward model is trained on 1,280 noisy pairs: without a strong pull to the start it is soon fooled.
    "grpo": {"beta": 0.2, "minibatches": 4},
    "ppo": {"kl_coef": 0.15, "passes": 1, "minibatches": 4, "critic": "head"},
}
"""Hyperparameters that are not at their defaults; learning rates were tried with these."""
