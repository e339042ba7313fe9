"""The benchmark for graphics cards at toy size: all of it runs on a CPU, and its arithmetic is right."""

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

pytest.importorskip("trl")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command makes libraries quiet; other tests want to hear them."""
    monkeypatch.setattr(gpu.console.console, "quiet", gpu.console.console.quiet)
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        yield
    logging.disable(level)
    gpu.datasets.enable_progress_bars()


FAST = ["--device", "cpu", "--size", "toy", "--rounds", "1", "--pairs", "4", "--checkpointing", "on"]


def setting(objective: str = "dpo", adapter: str = "qlora", batch: int = 2) -> gpu.Setting:
    return gpu.Setting("toy", adapter, objective, batch, True, "cpu", new_tokens=3)


def run(out: Path, *flags: str) -> dict[str, Any]:
    gpu.main([*FAST, "--out", str(out), *flags])
    return json.loads(out.read_text())


def test_parts_merge_into_one_file_with_both_libraries(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    every = ["--only", "steps", "--objective"]
    run(out, *every, "orpo", "kto", "simpo", "ppo", "--adapter", "lora", "--batch", "4", "--peak-tflops", "1")
    run(out, *every, "dpo", "--adapter", "qlora", "--batch", "1", "2")
    parts = ["--only", "shares", "context", "checks", "--adapter", "qlora", "--share", "0.75"]
    made = run(out, *parts, "--batch", "1", "4", "--cap", "8", "--longest", "512", "--new-tokens", "192")
    assert set(made) >= {"hardware", "versions", "best", "rows"}
    assert all(row["commit"] for row in made["rows"].values())
    shared = [row for row in made["rows"].values() if row.get("library") == "prefopt"]
    assert any(row["bucket_calls"] for row in shared) and not any("not_shared" in row for row in shared)

    steps = [row for name, row in made["rows"].items() if name.startswith("steps")]
    libraries = {(row["objective"], row["library"]) for row in steps}
    both = {(objective, library) for objective in ("dpo", "orpo", "kto", "simpo") for library in gpu.LIBRARIES}
    assert libraries == both | {("ppo", "prefopt")}
    for row in (row for row in steps if row["objective"] != "ppo"):
        # Every row with its prompt, whoever runs it.
        assert row["tokens"] == sum(2 * max(2, p // 64) + max(2, c // 64) + max(2, r // 64) for p, c, r in drawn(4))
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / (row["step_s"] * row["steps"]))
    with_peak = [row for row in steps if row["adapter"] == "lora"]
    assert all(row["mfu"] == row["useful_tflops"] for row in with_peak)
    assert sum(row["objective"] == "dpo" and row["steps"] == 4 for row in steps) == 2

    names = " ".join(made["rows"])
    assert "share=0.75" in names and "batch=1 checkpointing=on" in names
    assert not any(name.startswith("shares") and "batch=1 " in name for name in made["rows"])
    contexts = [row for name, row in made["rows"].items() if name.startswith("context")]
    assert [row["context"] for row in contexts] == [8, 8] and not contexts[0]["limited"]
    checks = [row for name, row in made["rows"].items() if name.startswith("check")]
    assert [row["cap_gib"] for row in checks] == [16, 24] and all("fits" not in row for row in checks)


def drawn(count: int) -> list[gpu.Lengths]:
    return gpu.drawn_lengths(count)


def test_a_reference_that_is_known_costs_no_flops_in_the_step() -> None:
    lengths = [(5, 3, 7), (9, 4, 2)]
    for library in gpu.LIBRARIES:
        per_token = []
        for known in (False, True):
            made = gpu.train(library, replace(setting(), known=known), lengths)
            per_token.append(made["useful_tflops"] / made["tokens_per_s"])
        assert per_token[0] == pytest.approx(1.5 * per_token[1])


def test_results_of_other_hardware_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    out.write_text(json.dumps({"hardware": {"device": "another"}, "versions": {}, "rows": {}}))
    with pytest.raises(SystemExit, match="other hardware"):
        run(out, "--only", "checks")


def test_trainers_see_the_lengths_they_are_given(tmp_path: Path) -> None:
    """No token more or fewer in either library, and the steps have as many pairs as they should."""
    lengths, clock = [(5, 3, 7), (9, 4, 2)], gpu.Clock("cpu")
    rows = gpu.text_rows(lengths, gpu.SHAPES["toy"][5])
    own = gpu.prefopt_trainer(setting(), rows, 20, str(tmp_path), clock).train_dataset.examples
    assert [(len(e.prompt), *map(len, e.completions)) for e in own] == lengths
    dpo = gpu.trl_trainer(setting(), rows, 20, str(tmp_path), clock).train_dataset
    assert [tuple(len(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected")) for row in dpo] == lengths
    kto = gpu.trl_trainer(setting("kto"), rows, 20, str(tmp_path), clock)
    assert kto.args.per_device_train_batch_size == 4
    assert Counter(len(row["completion_ids"]) for row in kto.train_dataset) == Counter([3, 7, 4, 2])
    orpo = gpu.trl_trainer(setting("orpo"), rows, 20, str(tmp_path), clock).train_dataset
    assert [(len(row["chosen_input_ids"]), len(row["rejected_input_ids"])) for row in orpo] == [(8, 12), (13, 11)]


def test_the_four_roles_of_ppo_share_one_base(tmp_path: Path) -> None:
    rows = gpu.text_rows([(5, 3, 7)] * 2, gpu.SHAPES["toy"][5])
    trainer = gpu.prefopt_trainer(setting("ppo"), rows, 20, str(tmp_path), gpu.Clock("cpu"))
    adapters = set(trainer.policy.peft_config)
    assert adapters == {"default", "prefopt_critic", "prefopt_reward"}
    four_bit = [module for module in trainer.policy.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(four_bit) == 7 * gpu.SHAPES["toy"][0]


@pytest.mark.parametrize("size", ["toy", "1b"])
def test_weights_in_matrices_are_counted(size: str) -> None:
    config = gpu.Setting(size, "lora", "dpo", 1, True, "cpu").config()
    with torch.device("meta"):
        model = gpu.skeleton.build(config, lora=None, quantized=False, dtype=torch.bfloat16)
    linear = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)}
    assert gpu.matrix_weights(size) == sum(linear.values())


def test_a_random_base_is_quantised_as_the_loader_does(tmp_path: Path) -> None:
    """The same kind of layers, and the very bytes that loading the same weights in 4 bit gives."""
    plain = gpu.random_base(setting(adapter="lora"))
    plain.save_pretrained(tmp_path)
    loaded = gpu.load_policy(str(tmp_path), gpu.ModelSettings(adapter="qlora", lora=gpu.RANK)).get_base_model()
    base = gpu.random_base(setting())
    own = [m for m in base.modules() if isinstance(m, bnb.nn.Linear4bit)]
    theirs = [m.base_layer for m in loaded.modules() if isinstance(getattr(m, "base_layer", None), bnb.nn.Linear4bit)]
    assert len(own) == len(theirs) == 7 * gpu.SHAPES["toy"][0]
    for a, b in zip(own, theirs, strict=True):
        assert torch.equal(a.weight, b.weight) and a.weight.quant_state.nested and b.weight.quant_state.nested
        assert a.weight.quant_type == b.weight.quant_type == "nf4" and a.compute_dtype == b.compute_dtype
        assert torch.equal(a.weight.quant_state.absmax, b.weight.quant_state.absmax)
        assert not a.support_avx512bf16_for_cpu
    ids = torch.arange(3, 20)[None]
    assert torch.equal(base(ids).logits, loaded(ids).logits)


def test_drawn_lengths_have_the_quantiles_and_correlations_of_real_ones() -> None:
    tenths, ranks = gpu.described(gpu.drawn_lengths(20_000))
    inner = np.array(gpu.QUANTILES)[:, 1:-1]
    assert np.allclose(np.array(tenths)[:, 1:-1], inner, rtol=0.05, atol=2)
    assert np.allclose(ranks, gpu.RANKS, atol=0.05)
    assert gpu.drawn_lengths(5) == gpu.drawn_lengths(5)


@pytest.mark.parametrize("limit", [0, 255, 256, 300, 5000, 65_536, 10**6])
def test_the_longest_context_is_found(limit: int) -> None:
    tried: list[int] = []

    def fits(length: int) -> bool:
        tried.append(length)
        return length <= limit

    expected = min(limit // 256 * 256, 65_536)
    assert gpu.largest(fits, 256, 65_536, 256) == expected
    assert len(tried) <= 18 and len(set(tried)) == len(tried) and max(tried) <= 65_536


def test_what_does_not_fit_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that runs out is noted, whatever way it is told; any other error is one, and nothing after it is lost."""
    for error in (torch.OutOfMemoryError("CUDA out of memory"), gpu.OutOfMemory("one pair")):
        monkeypatch.setattr(gpu, "train", failing(error))
        assert gpu.attempt("TRL", setting(), [(2, 2, 2)]) == {"out_of_memory": True}
        assert gpu.alternating(setting(), [(2, 2, 2)], 2)["TRL"] == {"out_of_memory": True}
    monkeypatch.setattr(gpu, "train", failing(RuntimeError("shapes differ")))
    assert gpu.attempt("TRL", setting(), [(2, 2, 2)]) == {"failed": "RuntimeError: shapes differ"}
    with pytest.raises(SystemExit, match=r"these failed:\n.*checks?.*PPO"):
        run(tmp_path / "gpu.json", "--only", "checks")
    assert len(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == 2


def failing(error: Exception) -> Any:
    def train(*_: Any) -> dict:
        raise error

    return train


def test_the_fastest_round_and_the_largest_peak_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([(2.0, 5.0), (9.0, 1.0), (1.0, 4.0), (8.0, 3.0)])

    def train(*_: Any) -> dict:
        seconds, peak = next(rounds)
        return {"step_s": seconds, "allocated_gib": peak}

    monkeypatch.setattr(gpu, "train", train)
    kept: list[tuple[str, float]] = []
    best = gpu.alternating(setting(), [], 2, lambda library, row: kept.append((library, row["step_s"])))
    assert kept == [("prefopt", 2.0), ("TRL", 9.0), ("prefopt", 1.0), ("TRL", 8.0)]
    assert best == {"prefopt": {"step_s": 1.0, "allocated_gib": 5.0}, "TRL": {"step_s": 8.0, "allocated_gib": 3.0}}


def test_each_library_is_compared_at_its_best() -> None:
    def row(library: str, batch: int, speed: float) -> dict[str, Any]:
        return {"group": "g", "library": library, "batch": batch, "checkpointing": True, "tokens_per_s": speed}

    rows = {
        "a": row("TRL", 1, 10.0),
        "b": row("TRL", 2, 20.0),
        "c": row("prefopt", 1, 50.0),
        "d": row("prefopt", 2, 40.0),
        "e": {"group": "g", "library": "prefopt", "out_of_memory": True},
    }
    best = gpu.best_of(rows)["g"]
    assert best["ratio"] == 2.5 and best["TRL"]["batch"] == 2 and best["prefopt"]["batch"] == 1
