"""A lab with the tiny random model and a silly reward, in which the whole demo runs in seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tiny


@dataclass
class ToyLab:
    """See `prefopt.lab.demo.Lab`. The reward is the share of "good" among six words."""

    model: Path
    pairs: list[dict]
    held_out_pairs: list[dict]
    prompts: list[str]
    held_out_prompts: list[str]

    def reward(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        assert len(prompts) == len(completions)
        return [min(1.0, text.split().count("good") / 6) for text in completions]

    def explain(self, prompt: str, completion: str) -> dict[str, float]:
        return {"goodness": self.reward([prompt], [completion])[0], "brevity": 1 / (1 + len(completion.split()))}


def toy_lab(folder: Path) -> ToyLab:
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in tiny.pairs(48)]
    # Held-out prompts carry markup, which a page must not take for its own.
    prompts = [f"<b>{row['prompt']}" if i == 0 else row["prompt"] for i, row in enumerate(rows[32:])]
    return ToyLab(tiny.save(folder), rows[:32], rows[32:], [row["prompt"] for row in rows[:32]], prompts)
