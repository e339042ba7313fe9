"""Losses, gradient norms and weights of two or three steps of every algorithm, to compare one commit with another.

``python tests/training/recorded.py --write`` writes them to `tests/fixtures/recorded_runs.json`;
``python tests/training/recorded.py --exact`` compares the present code with that file bit for bit, which holds on one
machine with one version of torch. `test_recorded.py` compares with tolerances.
"""

import argparse
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILE = HERE.parent / "fixtures" / "recorded_runs.json"
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import tiny
import torch
from helpers import trainer
from transformers import set_seed

import prefopt

SUMS = ("dpo + 0.2*sft", "kto + 0.5*bco")
CRITICS = ("head", "adapter", "model")


def worth(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that hardly ever ties."""
    return [sum((tiny.WORDS.index(w) % 7) / 5 - 0.5 for w in text.split() if w in tiny.WORDS) for text in completions]


def rows(kind: str, n: int = 12) -> list[dict]:
    """Data of one kind, with every label."""
    if kind == "prompts":
        return [{"prompt": row["prompt"]} for row in tiny.pairs(n)]
    if kind == "ranked":
        return tiny.ranked(n)
    if kind == "labelled":
        return tiny.labelled(n)
    labels = [{"preference": 0.6 + 0.05 * (i % 8), "margin": 0.25 * (i % 4)} for i in range(n)]
    return [{**row, **label} for row, label in zip(tiny.pairs(n), labels, strict=True)]


@cache
def cases() -> dict[str, dict[str, Any]]:
    """The runs by name: options of `helpers.trainer`, with the seed of a reference in place of the model."""
    made: dict[str, dict[str, Any]] = {}
    for name in [*(n for n in prefopt.algorithms() if n != "value"), *SUMS]:
        algorithm = prefopt.get_algorithm(name)
        online = algorithm.data_kind == "prompts"
        for adapter in (None, "lora"):
            options: dict[str, Any] = {"algorithm": name, "adapter": adapter}
            if adapter:
                options["lora"] = {"r": 4}
            coupled = algorithm.objective.needs.coupled
            options["args"] = {
                "per_device_train_batch_size": 2 if online else 4 if coupled else 2,
                "gradient_accumulation_steps": 1 if coupled or online else 2,
                "max_steps": 3,
                "learning_rate": 1e-3 if adapter else 1e-4,
                "max_grad_norm": 1.0,
                "seed": 3,
            }
            if online:
                options |= {"reward": worth, "generation": {"n": 4, "max_new_tokens": 5}}
            elif algorithm.needs_reference and adapter is None:
                options["reference"] = 1
            made[f"{name}, {adapter or 'all weights'}"] = options
    for critic in CRITICS:
        base = made["ppo, lora" if critic != "model" else "ppo, all weights"]
        made[f"ppo(critic={critic})"] = {**base, "algorithm": prefopt.get_algorithm("ppo", critic=critic)}
    return made


def record(name: str) -> dict[str, Any]:
    """What a run leaves behind."""
    options = dict(cases()[name])
    if "reference" in options:
        options["reference"] = tiny.model(options["reference"])
    set_seed(0)
    algorithm = options.pop("algorithm")
    kind = (prefopt.get_algorithm(algorithm) if isinstance(algorithm, str) else algorithm).data_kind
    run = trainer(algorithm, rows(kind), **options)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    weights = {key: value.detach().cpu() for key, value in sorted(run.policy.named_parameters())}
    digest = hashlib.sha256()
    for value in weights.values():
        digest.update(value.contiguous().numpy().tobytes())
    direction = torch.Generator().manual_seed(0)
    projected = {
        key: (value.double() * torch.randn(value.shape, generator=direction, dtype=torch.float64)).sum().item()
        for key, value in weights.items()
        if value.requires_grad or "lora_" in key or "score" in key or options["adapter"] is None
    }
    skip = ("seconds/", "epoch", "learning_rate", "loss", "grad_norm")
    return {
        "losses": [entry["loss"] for entry in logs],
        "gradients": [float(entry["grad_norm"]) for entry in logs],
        "metrics": {key: value for key, value in logs[-1].items() if not key.startswith(skip)},
        "weights": sum(projected.values()),
        "sha256": digest.hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th run, from the I-th; for --exact")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    names = list(cases())
    if given.write:
        found = {}
        for i, name in enumerate(names):
            found[name] = record(name)
            print(f"{i + 1}/{len(names)} {name} {found[name]['losses'][-1]:.6g}", flush=True)
        FILE.write_text(json.dumps({"torch": torch.__version__, "runs": found}, indent=1) + "\n")
    if given.exact:
        known = json.loads(FILE.read_text())["runs"]
        first, step = map(int, given.part.split("/"))
        others = [name for name in names[first::step] if record(name) != known[name]]
        print(f"{len(names[first::step]) - len(others)} equal, {len(others)} not", *others, sep="\n")
        sys.exit(bool(others))


if __name__ == "__main__":
    main()
