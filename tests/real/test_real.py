"""The command line on a real pretrained model and real preference data."""

import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.cli import main

pytestmark = pytest.mark.shared

CASES = {
    "dpo": "llamafactory_dpo_en_demo.json",
    "ipo": "llamafactory_dpo_en_demo.json",
    "orpo": "llamafactory_dpo_en_demo.json",
    "kto": "llamafactory_kto_en_demo.json",
    "sft": "llamafactory_alpaca_en_demo.json",
    "rejection_sampling": "llamafactory_alpaca_en_demo.json",
}
# A step of each; a whole epoch is what `make test-all` runs.
QUICK = ["--max-steps", "1", "--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "1"]
REWARD = "def brevity(prompts, completions):\n    return [-float(len(text)) for text in completions]\n"


def train(name: str, shared: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    model = shared / "models" / "tinystories-656k"
    options = ["--model", model, "--data", shared / "data" / CASES[name], "--out", out, "--adapter", "lora"]
    options += ["--max-length", 512, "--truncation", "keep-start", *more]
    if name == "rejection_sampling":
        (out.parent / "reward.py").write_text(REWARD)
        options += ["--reward", f"{out.parent}/reward.py:brevity", "--n", 2, "--max-new-tokens", 24]
    monkeypatch.setattr(sys, "argv", ["prefopt", "train", name, *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def check(shared: Path, out: Path, said: str) -> None:
    assert "read," in said
    assert "kept" in said
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "tinystories-656k")
    tokenizer = AutoTokenizer.from_pretrained(out)
    adapted = PeftModel.from_pretrained(model, out)
    assert any(value.abs().sum() > 0 for key, value in adapted.named_parameters() if "lora_B" in key)
    prompt = tokenizer("Once upon a time ", return_tensors="pt")
    text = tokenizer.decode(adapted.generate(**prompt, max_new_tokens=20, do_sample=False)[0])
    assert len(text.split()) > 8


@pytest.mark.parametrize("name", CASES)
def test_a_step_on_real_data(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train(name, shared, tmp_path / "out", monkeypatch, *QUICK, "--warmup-steps", "0", "--learning-rate", "1e-3")
    check(shared, tmp_path / "out", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_an_epoch_on_real_data(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    more = ["--max-steps", "8"] if name == "rejection_sampling" else []
    train(name, shared, tmp_path / "out", monkeypatch, *more)
    check(shared, tmp_path / "out", capsys.readouterr().err)
