"""Learning rates of the demo, by algorithm.

Copied from ``best`` in ``benchmarks/results/demo_sweep.json``, which ``python benchmarks/demo_sweep.py`` writes: of the
rates it tries, the one with the highest gold reward on prompts that the demo does not measure on.
"""

RATES = {
    "sft": 1.6e-3,
    "dpo": 4e-4,
    "ipo": 4e-4,
    "kto": 8e-4,
    "orpo": 8e-4,
    "simpo": 4e-4,
    "rejection_sampling": 1.6e-3,
}
