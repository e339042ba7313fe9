"""Names, sums, recipes and the list of algorithms."""

import json
import sys
from pathlib import Path

import pytest
import tiny
import torch

import prefopt
from prefopt.algorithms import listing
from prefopt.algorithms.recipes import _RECIPES, recipe_for
from prefopt.cli import main
from prefopt.core.errors import UsageError
from prefopt.training.spec import assign_flag

SUM = "dpo(beta=0.2) + 0.2*sft"


@pytest.mark.parametrize("width", [80, 120, 40])
def test_the_list_has_one_line_for_each_algorithm_within_the_width(width: int) -> None:
    lines = listing(width)
    assert len(lines) == 1 + len(prefopt.algorithms())
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[1:]] == prefopt.algorithms()


def test_the_list_says_what_each_takes_and_cuts_titles_with_an_ellipsis() -> None:
    lines = {line.split()[0]: line for line in listing(80)}
    assert lines["kto"].split()[1:4] == ["labelled", "yes", "2402.01306"]
    assert lines["simpo"].split()[1:3] == ["pairs", "no"]
    assert lines["dpo_pl"].split()[1] == "ranked"
    assert lines["rejection_sampling"].split()[1:3] == ["prompts+reward", "no"]
    assert lines["dpo"].endswith("…")
    assert listing(400)[1].endswith("Divergence Constraints")


def test_the_list_is_neither_wrapped_nor_cut_when_it_is_piped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "argv", ["prefopt", "algorithms"])
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(prefopt.algorithms())
    assert lines[1].endswith("Divergence Constraints")
    assert not any(line.endswith("…") for line in lines)


@pytest.mark.parametrize("name", prefopt.algorithms())
def test_every_algorithm_has_a_recipe_of_its_own(name: str) -> None:
    assert name in _RECIPES
    recipe = prefopt.get_algorithm(name).recipe
    assert recipe.adapter == pytest.approx(10 * recipe.full)
    assert 1e-7 <= recipe.full <= 1e-4
    assert len(f"{recipe.adapter!r}") < 8
    assert recipe.batch % recipe.micro_batch == 0


@pytest.mark.parametrize(
    ("name", "rate", "batch"),
    [("dpo", 1e-6, 32), ("kto", 5e-6, 64), ("apo_zero", 2e-7, 64), ("bco", 5e-7, 128), ("sppo_hard", 5e-7, 32),
     ("nca_pair", 5e-6, 32), ("rpo_nll", 7e-7, 32), ("orpo", 8e-6, 32)],
)  # fmt: skip
def test_learning_rates_of_the_papers(name: str, rate: float, batch: int) -> None:
    recipe = prefopt.get_algorithm(name).recipe
    assert (recipe.full, recipe.batch) == (rate, batch)


@pytest.mark.parametrize("name", ["aot_paired", "aot_unpaired", "aot_paired + 0.1*sft"])
def test_what_couples_rows_gets_its_step_as_one_batch(name: str) -> None:
    arguments = prefopt.get_algorithm(name).recipe.arguments(trains_adapter=False, quantized=False)
    assert arguments["gradient_accumulation_steps"] == 1
    assert arguments["per_device_train_batch_size"] == 16


def test_an_unknown_objective_shares_the_recipe_of_dpo() -> None:
    assert recipe_for("somebody's own") == recipe_for("dpo")


def test_names_of_sums_and_of_calls() -> None:
    written = prefopt.get_algorithm(SUM)
    assert (written.name, written.parts, written.hyperparameters) == (SUM, ("dpo", "sft"), {})
    assert written.recipe == recipe_for("dpo")
    called = prefopt.get_algorithm("rso_hinge(gamma=0.2)")
    assert (called.name, called.hyperparameters) == ("hinge", {"gamma": 0.2})
    assert prefopt.get_algorithm("kto(beta=0.3)").recipe == recipe_for("kto")
    with pytest.raises(UsageError, match="rejection_sampling samples its own data"):
        prefopt.get_algorithm("sft + 0.5*rejection_sampling")


def test_a_sum_is_explained() -> None:
    text = prefopt.explain(SUM)
    assert "loss       1 · (-log σ(β h)) + 0.2 · (-log π(y))" in text
    assert "parts      dpo, sft" in text
    assert "(0)" not in text


def test_a_flag_for_a_sum_is_refused_with_the_place_for_it() -> None:
    with pytest.raises(UsageError, match=r"in brackets, as in 'dpo\(beta=0.2\)"):
        assign_flag({}, "--beta", "0.2", "dpo + 0.2*sft")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Two steps of the sum, written as objectives in Python."""
    folder = tmp_path_factory.mktemp("python")
    objective = prefopt.get_objective("dpo", beta=0.2) + 0.2 * prefopt.get_objective("sft")
    tiny.save(folder / "model")
    return train(folder, objective)


def train(folder: Path, algorithm: object) -> dict[str, torch.Tensor]:
    args = {"max_steps": 2, "use_cpu": True, "save_strategy": "no", "output_dir": str(folder / "out")}
    args |= {"gradient_accumulation_steps": 1, "learning_rate": 1e-3}
    run = prefopt.Trainer(str(folder / "model"), algorithm, tiny.pairs(8), args=args)
    assert run.algorithm.name == SUM
    run.train()
    return run.model.state_dict()


@pytest.mark.parametrize("way", ["python", "yaml", "flags"])
def test_a_sum_is_an_algorithm_in_python_yaml_and_on_the_command_line(
    way: str, weights: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model")
    if way == "python":
        found = train(tmp_path, SUM)
    else:
        (tmp_path / "pairs.json").write_text(json.dumps(tiny.pairs(8)))
        config = (
            f"algorithm: {SUM}\nmodel: model\ndata: {{train: pairs.json}}\nout: out\nargs: {{max_steps: 2, "
            "use_cpu: true, save_strategy: no, gradient_accumulation_steps: 1, learning_rate: 1e-3}\n"
        )
        (tmp_path / "run.yaml").write_text(config)
        flags = ["--model", "model", "--data", "pairs.json", "--out", "out", "--max-steps", "2", "--use-cpu", "true"]
        flags += ["--save-strategy", "no", "--gradient-accumulation-steps", "1", "--learning-rate", "1e-3"]
        arguments = ["--config", "run.yaml"] if way == "yaml" else [SUM, *flags]
        monkeypatch.setattr(sys, "argv", ["prefopt", "train", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert json.loads((tmp_path / "out" / "prefopt.json").read_text())["algorithm"] == SUM
        from safetensors.torch import load_file

        found = load_file(tmp_path / "out" / "model.safetensors")
    shared = found.keys() & weights.keys()
    assert len(shared) > 10
    assert all(torch.equal(found[key].cpu(), weights[key].cpu()) for key in shared)


def test_the_default_folder_of_a_sum_has_a_plain_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = prefopt.Trainer(
        tiny.model(), SUM, tiny.pairs(4), processing_class=tiny.tokenizer(), args={"use_cpu": True, "max_steps": 1}
    )
    assert run.args.output_dir == "prefopt-dpo-beta=0.2-0.2-sft"
