"""The reference's log-probs on disk: the same losses and weights, scored once, and refused where they are not its."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from helpers import losses, quick, trainer
from parity import tiny_model
from safetensors import safe_open
from safetensors.numpy import save_file

import prefopt
from prefopt.core.errors import UsageError
from prefopt.core.micro_batch import MicroBatch
from prefopt.data import prepare_dataset
from prefopt.models.fingerprint import fingerprint
from prefopt.models.reference import AdapterOff, FrozenModel
from prefopt.scoring import sharing
from prefopt.scoring.scorer import Scorer
from prefopt.training import reference_cache

ARGS = {"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 3}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every forward pass of a reference."""
    rows: list[int] = []
    score = Scorer.score_reference

    def count(self: Scorer, policy: Any, batch: MicroBatch) -> MicroBatch:
        missing = len(batch.rows) if batch.ref_logps is None else 0
        if batch.mismatched is not None and batch.mismatched_ref_logps is None:
            missing += len(batch.mismatched)
        if missing:
            rows.append(missing)
        return score(self, policy, batch)

    monkeypatch.setattr(Scorer, "score_reference", count)
    return rows


def run(name: str, rows: Any, folder: Path | None, **options: Any) -> prefopt.Trainer:
    args = ARGS | options.pop("args", {})
    made = trainer(name, rows, args=args, reference_cache=folder, **options)
    made.train()
    return made


def weights(made: prefopt.Trainer) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in made.model.parameters() if w.requires_grad])


@pytest.mark.parametrize(
    ("name", "adapter"),
    quick(
        [(name, adapter) for name in ("dpo", "kto", "ipo", "dpo_pl", "bco") for adapter in (None, "lora")],
        [("dpo", None), ("kto", "lora"), ("dpo_pl", None), ("bco", "lora")],
    ),
)
def test_a_cache_changes_nothing_and_is_read_the_second_time(
    name: str, adapter: str | None, cache: Path, scored: list[int]
) -> None:
    rows = tiny.ranked(6) if name == "dpo_pl" else tiny.pairs(6)
    options = {
        "adapter": adapter,
        "args": {"optim": "sgd", "max_steps": 3},
        "eval_dataset": tiny.ranked(3, 1) if name == "dpo_pl" else tiny.pairs(3, 1),
    }
    plain, first, second = (
        run(name, rows, folder, model=tiny.model(dtype=torch.float64), **options) for folder in (None, cache, cache)
    )
    scored.clear()
    evaluated = [one.evaluate()["eval_loss"] for one in (first, second)]
    assert not scored
    for other in (first, second):
        assert losses(other) == pytest.approx(losses(plain), rel=1e-6, abs=1e-6)
        assert torch.allclose(weights(other), weights(plain), atol=1e-6)
    assert torch.equal(weights(first), weights(second))
    assert evaluated == [pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)] * 2
    assert isinstance(second.reference, FrozenModel if adapter is None else AdapterOff)
    assert not second.reference.own_models


def test_a_cache_of_rows_in_several_passes_is_that_of_one_padded_pass(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where prompts are not shared."""
    monkeypatch.setattr(sharing, "call_of", lambda _: 0)
    options = {"args": {"optim": "sgd", "max_steps": 3}, "eval_dataset": tiny.pairs(3, 1)}
    whole = run("dpo", tiny.pairs(6), None, model=tiny_model("bloom"), share_prompts=False, **options)
    positions: list[int] = []
    model = tiny_model("bloom")
    hook = model.transformer.word_embeddings.register_forward_hook(
        lambda _, args, out: positions.append(args[0].numel())
    )
    first = run("dpo", tiny.pairs(6), cache, model=model, **options)
    hook.remove()
    rows = [len(row.prompt) + len(one) for row in first.train_dataset.examples for one in row.completions]
    assert sum(rows) in [sum(positions[i:j]) for i in range(len(positions)) for j in range(i, len(positions) + 1)]
    second = run("dpo", tiny.pairs(6), cache, model=tiny_model("bloom"), **options)
    for other in (first, second):
        assert losses(other) == pytest.approx(losses(whole), rel=1e-6, abs=1e-6)
        assert torch.allclose(weights(other), weights(whole), atol=1e-6)
        assert other.evaluate()["eval_loss"] == pytest.approx(whole.evaluate()["eval_loss"], rel=1e-6)


def test_a_second_run_asks_the_reference_only_for_the_comparison(cache: Path, scored: list[int]) -> None:
    for name in ("dpo", "kto"):
        first = run(name, tiny.pairs(6), cache)
        # All rows of both kinds once, and none of them in the steps.
        files = len(list(cache.iterdir()))
        scored.clear()
        second = run(name, tiny.pairs(6), cache)
        assert torch.equal(weights(first), weights(second))
        assert len(list(cache.iterdir())) == files == (1 if name == "dpo" else 2)
        # Four rows together and each by itself, of every file.
        assert scored == [4, 1, 1, 1, 1] * files


def test_objectives_hyperparameters_and_seeds_share_a_file(cache: Path, scored: list[int]) -> None:
    run("dpo", tiny.pairs(6), cache)
    files = {path.name for path in cache.iterdir()}
    assert len(files) == 1
    for algorithm, options in (
        (prefopt.get_algorithm("dpo", beta=0.7), {}),
        ("ipo", {"args": {"seed": 5}}),
        # Labelled rows of the same pairs; and LoRA on the same base.
        ("bco", {}),
        ("dpo", {"adapter": "lora"}),
    ):
        scored.clear()
        run(algorithm, tiny.pairs(6), cache, **options)
        assert {path.name for path in cache.iterdir()} == files
        assert max(scored) <= reference_cache.CHECKED


def test_other_weights_or_tokens_have_a_file_of_their_own(cache: Path) -> None:
    run("dpo", tiny.pairs(6), cache)
    run("dpo", tiny.pairs(6), cache, reference=tiny.model(1))
    assert len(list(cache.iterdir())) == 2
    run("dpo", tiny.pairs(6, seed=1), cache)
    assert len(list(cache.iterdir())) == 3
    run("dpo", tiny.pairs(6), cache, model=tiny.model(dtype=torch.float64))
    assert len(list(cache.iterdir())) == 4


def test_a_fingerprint_sees_every_number_and_only_what_computes() -> None:
    model = tiny.model()
    before = fingerprint(model)
    model.config._name_or_path = "elsewhere"
    model.config.pad_token_id = 5
    assert fingerprint(model) == before
    for change in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        weight = model.get_parameter(change)
        old = weight.data.view(-1)[7].clone()
        weight.data.view(-1)[7] = torch.nextafter(old, torch.tensor(9.0))
        assert fingerprint(model) != before
        weight.data.view(-1)[7] = old
        assert fingerprint(model) == before
    model.config.rms_norm_eps = 1e-3
    assert fingerprint(model) != before


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_an_adapter_is_part_of_the_key_and_the_one_that_learns_is_not(tmp_path: Path, adapter: str) -> None:
    base = tiny.save(tmp_path / "base")
    sft = run("sft", tiny.pairs(4), None, model=str(base), adapter=adapter, args={"learning_rate": 3e-2})
    sft.save_model(str(tmp_path / "sft"))
    cache = tmp_path / "cache"
    # Under a fresh adapter the reference is the base; twice, with an adapter that begins elsewhere.
    for seed in (0, 1):
        run("dpo", tiny.pairs(4), cache, model=str(base), adapter=adapter, args={"seed": seed, "max_steps": 1})
        assert len(list(cache.iterdir())) == 1
    arrived = run("dpo", tiny.pairs(4), cache, model=str(tmp_path / "sft"), adapter=adapter, args={"max_steps": 1})
    assert len(list(cache.iterdir())) == 2
    assert losses(arrived)[0] == pytest.approx(0.6931472, abs=1e-6)
    trainer("dpo", tiny.pairs(4), reference_cache=cache, model=str(tmp_path / "sft"), adapter=adapter)
    assert len(list(cache.iterdir())) == 2


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one file; in the folder `other`, one of another reference under the same name."""
    folder = tmp_path_factory.mktemp("filled")
    run("dpo", tiny.pairs(4), folder, args={"max_steps": 1})
    (path,) = folder.glob("*.safetensors")
    run("dpo", tiny.pairs(4), folder / "other", reference=tiny.model(1), args={"max_steps": 1})
    (other,) = (folder / "other").iterdir()
    other.rename(other.with_name(path.name))
    return folder


def rewrite(path: Path, *, checksum: bool = True, **changes: Any) -> None:
    with safe_open(path, framework="np") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("logps", "lengths", "rows")}
    tensors |= {name: np.ascontiguousarray(change(tensors[name])) for name, change in changes.items()}
    if checksum:
        header["sum"] = reference_cache._sum(tensors["logps"])
    save_file(tensors, path, metadata=header)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: rewrite(path, logps=lambda x: x * 1.001, checksum=False), "not those that were written"),
        (lambda path: rewrite(path, logps=lambda x: x[:-1]), "lengths are not those"),
        (lambda path: rewrite(path, rows=lambda x: x[::-1]), "of other rows"),
        (lambda path: rewrite(path, logps=lambda x: x + 0.01), "is not what the reference says now"),
        (lambda path: shutil.copy(path.parent / "other" / path.name, path), "is damaged: it is of another reference"),
    ],
)
def test_a_damaged_file_is_refused(filled: Path, cache: Path, damage: Any, message: str) -> None:
    shutil.copytree(filled, cache)
    (path,) = cache.glob("*.safetensors")
    damage(path)
    with pytest.raises(UsageError, match=message) as caught:
        trainer("dpo", tiny.pairs(4), reference_cache=cache)
    assert "Delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_stopped_while_it_writes_leaves_no_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(reference_cache, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        run("dpo", tiny.pairs(4), cache)
    assert not list(cache.iterdir())


def test_a_start_that_is_not_the_reference_is_still_refused(cache: Path) -> None:
    with pytest.raises(UsageError, match="at step 0 the policy differs from its reference"):
        run("dpo", tiny.pairs(4), cache, adapter="lora", lora={"init_lora_weights": False})


def test_what_no_cache_serves_is_refused(tmp_path: Path) -> None:
    cases = [
        ("orpo", {}, "orpo uses no reference model: leave reference_cache= out"),
        ("tdpo1", {}, "whole distribution"),
        ("online_dpo", {"reward": lambda prompts, completions: [0.0] * len(prompts)}, "which no cache knows"),
        ("dpo", {"folder": tmp_path / "file"}, "file' is a file: name a folder"),
        ("dpo", {"folder": tmp_path / "file" / "cache"}, "cannot be made: Not a directory: name a folder"),
    ]
    (tmp_path / "file").write_text("")
    for name, options, message in cases:
        folder = options.pop("folder", tmp_path / "cache")
        with pytest.raises(UsageError, match=message) as caught:
            trainer(name, tiny.pairs(4), reference_cache=folder, **options)
        assert "\n" not in str(caught.value)
    # A whole model was not copied: there is no reference for data that was not known at the start.
    made = run("dpo", tiny.pairs(4), tmp_path / "cache")
    with pytest.raises(UsageError, match="give the dataset that is evaluated as eval_dataset="):
        made.evaluate(tiny.pairs(3, seed=2))
    # An adapter can be switched off at any time.
    made = run("dpo", tiny.pairs(4), tmp_path / "cache", adapter="lora")
    assert made.evaluate(tiny.pairs(3, seed=2))["eval_loss"] > 0


def test_a_dataset_brings_no_reference_of_another_run(cache: Path) -> None:
    """Tokenized data of a run with a cache, given to a run with another reference."""
    filled = run("dpo", tiny.pairs(4), cache).train_dataset
    again = run("dpo", filled, None, reference=tiny.model(1))
    assert losses(again) == pytest.approx(losses(run("dpo", tiny.pairs(4), None, reference=tiny.model(1))))
    assert abs(losses(again)[0] - 0.6931472) > 1e-3


def test_batches_hold_every_row_once_and_stay_within_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_cache, "TOKENS", 64)
    made = trainer("dpo", tiny.pairs(9))
    rows = [reference_cache._row(each, k) for each in made.train_dataset.examples for k in range(2)]
    unique = {reference_cache._key(row): row for row in rows}
    found = list(reference_cache.batches(unique))
    assert sorted(key for batch in found for key in batch) == sorted(unique)
    sizes = [max(reference_cache._length(unique[key]) for key in batch) for batch in found]
    assert all(size * len(batch) <= 64 for size, batch in zip(sizes, found, strict=True))
    assert sizes[0] == max(map(reference_cache._length, unique.values()))


@pytest.mark.parametrize(
    ("precision", "shift", "refused"), [("bf16", 0.01, False), ("bf16", 0.1, True), ("no", 0.01, True)]
)
def test_a_file_may_differ_by_the_roundings_of_its_precision(
    cache: Path, precision: str, shift: float, refused: bool
) -> None:
    """Rows that agree to the last bit together and alone may have been written from a batch that rounds otherwise."""
    data = prepare_dataset(tiny.pairs(4), "pairs", tiny.tokenizer())

    def kept(moved: float) -> reference_cache.ReferenceCache:
        def score(rows: list) -> list[np.ndarray]:
            return [np.full(int(row.mask(0).sum()), -1.0 + moved, dtype=np.float32) for row in rows]

        return reference_cache.ReferenceCache(cache, "a reference", precision, score)

    kept(0.0).fill(data)
    if refused:
        with pytest.raises(UsageError, match="is not what the reference says now"):
            kept(shift).fill(data)
    else:
        kept(shift).fill(data)
