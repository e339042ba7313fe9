"""Names, sums and the list of algorithms."""

import json
import sys
from pathlib import Path

import pytest
import tiny
import torch

import prefopt
from prefopt.algorithms import list_algorithms
from prefopt.cli import main
from prefopt.core.errors import UsageError
from prefopt.training.run_file import assign_flag

SUM = "dpo(beta=0.2) + 0.2*sft"


@pytest.mark.parametrize("width", [80, 120, 40])
def test_the_list_has_one_line_for_each_algorithm_within_the_width(width: int) -> None:
    lines = list_algorithms(width)
    assert len(lines) == 1 + len(prefopt.algorithms())
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[1:]] == prefopt.algorithms()


def test_the_list_says_what_each_takes_and_cuts_titles_with_an_ellipsis() -> None:
    lines = {line.split()[0]: line for line in list_algorithms(80)}
    assert lines["kto"].split()[1:4] == ["labelled", "yes", "2402.01306"]
    assert lines["simpo"].split()[1:3] == ["pairs", "no"]
    assert lines["dpo_pl"].split()[1] == "ranked"
    assert lines["rejection_sampling"].split()[1:3] == ["prompts+reward", "no"]
    assert lines["dpo"].endswith("…")
    assert list_algorithms(400)[1].endswith("Divergence Constraints")


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


def test_names_of_sums_and_of_calls() -> None:
    written = prefopt.get_algorithm(SUM)
    assert (written.name, written.parts, written.hyperparameters) == (SUM, ("dpo", "sft"), {})
    assert written.recipe == prefopt.get_algorithm("dpo").recipe
    called = prefopt.get_algorithm("rso_hinge(gamma=0.2)")
    assert (called.name, called.hyperparameters) == ("hinge", {"gamma": 0.2})
    assert prefopt.get_algorithm("kto(beta=0.3)").recipe == prefopt.get_algorithm("kto").recipe
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
