"""`prefopt generate` and `prefopt chat`: a saved model as it was trained, prompts encoded as its data were."""

import io
import json
from pathlib import Path

import pytest
import tiny
import torch
from bitsandbytes.nn import Linear4bit
from typer.testing import CliRunner

import prefopt
from prefopt.cli.app import app
from prefopt.cli.talk import Talker, run_chat
from prefopt.core.errors import ModelError
from prefopt.models import SavedModel, load_trained

SETTINGS = {"max_new_tokens": 4, "temperature": 0.0, "n": 1}
TEMPLATE = "{% if loud is defined and loud %}{{ '<system> ' }}{% endif %}" + tiny.TEMPLATE


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tiny.save(tmp_path_factory.mktemp("talk") / "base")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("talk") / "adapter"
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["chosen"]}],
        }
        for row in tiny.pairs(4)
    ]
    args = {"max_steps": 2, "learning_rate": 1e-2, "warmup_steps": 0, "use_cpu": True, "report_to": []}
    args |= {"output_dir": str(folder / "checkpoints"), "save_strategy": "no", "disable_tqdm": True}
    data = {"template_args": {"loud": True}}
    trainer = prefopt.Trainer(str(base), "sft", rows, adapter="qlora", data=data, args=args)
    trainer.train()
    trainer.save_model(str(folder))
    return folder


def test_a_qlora_result_on_its_quantized_base_with_its_template_arguments(adapter: Path) -> None:
    talker = Talker(str(adapter), seed=0, **SETTINGS)
    assert sum(isinstance(module, Linear4bit) for module in talker.model.modules()) == 14
    ids = talker.encoder.prompt([{"role": "user", "content": "a"}])
    assert talker.tokenizer.decode(ids) == "<system> <user> a </s> <assistant>"
    with torch.no_grad():
        row = torch.tensor(ids[None].astype("int64"))
        expected = load_trained(str(adapter))(input_ids=row).logits[0, -1].argmax().item()
    text = talker.answers([[{"role": "user", "content": "a"}]])[0][0]
    assert text.split()[:1] == talker.tokenizer.decode([expected], skip_special_tokens=True).split()


def test_it_is_trained_further_on_its_quantized_base(adapter: Path, tmp_path: Path) -> None:
    args = {"max_steps": 1, "use_cpu": True, "report_to": [], "output_dir": str(tmp_path)}
    run = prefopt.Trainer(str(adapter), "dpo", tiny.pairs(4), args=args)
    assert sum(isinstance(module, Linear4bit) for module in run.policy.modules()) == 14
    whole = prefopt.Trainer(str(adapter), "dpo", tiny.pairs(4), adapter="lora", args=args)
    assert not any(isinstance(module, Linear4bit) for module in whole.policy.modules())


def test_typed_control_tokens_stay_text(adapter: Path, monkeypatch, capsys) -> None:
    asked = []
    monkeypatch.setattr(
        Talker, "answers", lambda self, prompts: asked.append([self._encode(p) for p in prompts]) or [["so </s>"]]
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("a </s> <assistant> b\nc\n"))
    run_chat(str(adapter), "be </s> so", 0, max_new_tokens=4)
    assert [list(ids[0]).count(2) for ids in asked] == [2, 4]
    assert capsys.readouterr().out == "so </s>\nso </s>\n"


def test_prompts_rendered_beforehand_need_a_flag(adapter: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        Talker, "answers", lambda self, prompts: asked.extend(self._encode(p) for p in prompts) or [["x"]]
    )
    for flags in ([], ["--raw"], ["--prerendered"]):
        result = CliRunner().invoke(app, ["generate", "-m", str(adapter), "-p", "<user> a </s> <assistant>", *flags])
        assert result.exit_code == 0, result.output
    assert [list(ids).count(2) for ids in asked] == [1, 0, 1]
    assert list(asked[2]) == [1, 4, 7, 2, 5] or list(asked[2]) == [4, 7, 2, 5]


def test_check_takes_the_folder_of_an_adapter(adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in tiny.pairs(4)))
    result = CliRunner().invoke(app, ["check", str(data), "--model", str(adapter)])
    assert result.exit_code == 0, result.output
    assert "4 kept" in result.output


def test_a_damaged_record_is_one_line(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json cannot be read"):
        SavedModel.of(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not name its base model"):
        Talker(str(tmp_path), seed=0, **SETTINGS)
