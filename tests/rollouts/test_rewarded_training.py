"""Rewards of several kinds in one short run: what they are given, and what is logged of them."""

from pathlib import Path

import pytest
import tiny
from judge_server import serving

import prefopt

ARGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "use_cpu": True,
    "report_to": "none",
}


def test_a_run_with_penalties_an_ensemble_and_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    groups = []

    def spy(prompts: list, completions: list, group: list, lengths: list, max_new_tokens: list) -> list[float]:
        groups.append(dict(zip(group, prompts, strict=True)))
        assert max(lengths) <= 5 and set(max_new_tokens) == {5}
        return [0.0] * len(completions)

    with serving(lambda *_: "A") as server:
        reward = [
            spy,
            "0.5*missing_eos_penalty",
            {"ensemble": ["length_penalty(per_token=1)", "empty_penalty"], "how": "min"},
            {"judge": server.base_url, "model": "m", "weight": 2},
        ]
        run = prefopt.Trainer(
            model=tiny.model(),
            algorithm="rejection_sampling",
            train_dataset=[{"prompt": row["prompt"]} for row in tiny.pairs(4)],
            processing_class=tiny.tokenizer(),
            reward=reward,
            generation={"n": 3, "max_new_tokens": 5},
            args=ARGS | {"output_dir": str(tmp_path)},
        )
        run.train()
        assert server.requests
    logs = [entry for entry in run.state.log_history if "reward" in entry]
    assert len(logs) == 2
    for log in logs:
        assert log["reward/missing_eos_penalty"] == pytest.approx(log["completions/ended"] - 1)
        assert log["reward/ensemble/length_penalty"] == pytest.approx(-log["completions/length"])
        # A judge that takes the first decides nothing, and its rate of flips says so (but for equal completions).
        assert log["reward/judge"] == 0.5
        assert 0.5 < log["reward/judge/flip_rate"] <= 1
        total = 0.5 * log["reward/missing_eos_penalty"] + log["reward/ensemble"] + 2 * log["reward/judge"]
        assert log["reward"] == pytest.approx(total)
    assert all(len(group) == len(set(group.values())) == 4 for group in groups)
