"""The README's own examples are executed, in order, in one namespace."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("readme")
    tiny.save(folder / "my-model")
    (folder / "pairs.json").write_text(json.dumps(tiny.pairs(8)))
    namespace: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"README.md, python block {number + 1}", "exec"), namespace)
            namespace[f"trainer_{number}"] = namespace.get("trainer")
    namespace["folder"] = folder
    return namespace


def test_the_swap_trains_and_saves_an_adapter(executed: dict[str, Any]) -> None:
    assert (executed["folder"] / "out" / "adapter_model.safetensors").is_file()
    assert executed["trainer_0"].state.global_step == 2
    assert executed["trainer_1"].algorithm.name == "grpo"


def test_verify_prints_what_the_readme_shows(capsys: pytest.CaptureFixture) -> None:
    from prefopt.verify import main_verify

    assert main_verify(f"{README.parent}/docs/examples/my_losses.py:loss", "dpo") == 1
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    block = README.read_text().split("--as dpo\n")[1].split("```")[0]
    for line in block.splitlines():
        assert line.strip() == "..." or line.rstrip() in printed, line


def test_the_bare_loss_is_dpos(executed: dict[str, Any]) -> None:
    # h = (0.5 + 0.5, -0.5 - 1.0); mean of log(1 + e^(-h/10)).
    assert executed["loss"].mean().item() == pytest.approx((0.6443967 + 0.7709545) / 2, rel=1e-5)


def test_trls_trainer_takes_the_loss(executed: dict[str, Any]) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in tiny.pairs(8)]
    trainer = executed["APOTrainer"](
        model=tiny.model(),
        ref_model=tiny.model(),
        args=trl.DPOConfig(
            output_dir=str(executed["folder"] / "trl"),
            max_steps=3,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            per_device_train_batch_size=8,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # APO-zero is 1 at the reference.
    assert losses[0] == pytest.approx(1.0, rel=1e-5)
    assert losses[-1] < 0.9
