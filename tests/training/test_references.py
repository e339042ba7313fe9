"""Where the reference comes from, for every way of training, quantized ones included."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from bitsandbytes.nn import Linear4bit
from helpers import losses, trainer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import prefopt
from prefopt.cli.export import log_prob_gap
from prefopt.models import export_merged
from prefopt.models.adapters import REFERENCE_ADAPTER, adapter_off


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


def sft_adapter(base: Path, out: Path, adapter: str) -> Path:
    run = trainer("sft", tiny.pairs(8), model=str(base), adapter=adapter, args={"max_steps": 4, "learning_rate": 3e-2})
    run.train()
    run.save_model(str(out))
    return out


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_an_sft_adapter_is_the_reference_of_the_dpo_that_follows(base: Path, tmp_path: Path, adapter: str) -> None:
    arrived = sft_adapter(base, tmp_path / "sft", adapter)
    run = trainer(
        "dpo", tiny.pairs(4), model=str(arrived), adapter=adapter, args={"max_steps": 6, "learning_rate": 1e-2}
    )
    assert "frozen copy of the adapter" in run.reference.description
    copied = {k: v.clone() for k, v in run.model.named_parameters() if REFERENCE_ADAPTER in k}
    trained = {k for k, v in run.model.named_parameters() if v.requires_grad}
    run.train()
    first = next(entry for entry in run.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(0.6931472, rel=1e-6)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert losses(run)[-1] < 0.6
    assert copied
    assert all(torch.equal(v, copied[k]) for k, v in run.model.named_parameters() if k in copied)
    assert trained == {k for k, v in run.model.named_parameters() if v.requires_grad}
    assert not any(REFERENCE_ADAPTER in k for k in trained)

    run.save_model(str(tmp_path / "dpo"))
    assert not (tmp_path / "dpo" / REFERENCE_ADAPTER).exists()
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "dpo")
    weights = {k: v for k, v in run.model.named_parameters() if k in trained}
    assert all(torch.equal(v, weights[k]) for k, v in loaded.named_parameters() if k in weights)


def test_the_base_of_that_adapter_would_be_another_reference(base: Path, tmp_path: Path) -> None:
    """The check above means something: against the bare base the first loss is not log 2."""
    arrived = sft_adapter(base, tmp_path / "sft", "lora")
    run = trainer("dpo", tiny.pairs(4), model=str(arrived), reference=str(base), args={"max_steps": 1})
    run.train()
    assert abs(losses(run)[0] - 0.6931472) > 1e-3


def test_an_adapter_on_the_same_base_serves_as_reference_without_a_second_model(base: Path, tmp_path: Path) -> None:
    other = sft_adapter(base, tmp_path / "sft", "lora")
    shared = trainer("dpo", tiny.pairs(4), model=str(base), adapter="lora", reference=str(other), args={"max_steps": 1})
    assert REFERENCE_ADAPTER in shared.model.peft_config
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), other).merge_and_unload()
    apart = trainer("dpo", tiny.pairs(4), model=str(base), adapter="lora", reference=merged, args={"max_steps": 1})
    for run in (shared, apart):
        run.train()
    assert losses(shared)[0] == pytest.approx(losses(apart)[0], rel=1e-5)


def test_an_adapter_that_is_off_is_on_again_whatever_happens() -> None:
    ids = torch.tensor([[1, 7, 10, 11, 2]])
    alone = tiny.model(0)(ids).logits
    model = get_peft_model(tiny.model(0), LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted = model(ids).logits
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    with pytest.raises(ZeroDivisionError), adapter_off(model):
        assert torch.equal(model(ids).logits, alone)
        raise ZeroDivisionError
    again = model(ids).logits
    assert torch.equal(again, adapted) and again.requires_grad
    assert not torch.allclose(again, alone, atol=1e-3)
    assert trained == [name for name, weight in model.named_parameters() if weight.requires_grad]


@pytest.mark.parametrize("name", ["dpo", "sft", "kto", "orpo"])
def test_qlora_trains_on_a_quantized_base(base: Path, name: str, tmp_path: Path) -> None:
    run = trainer(name, tiny.pairs(4), model=str(base), adapter="qlora", args={"max_steps": 8, "learning_rate": 3e-2})
    quantized = [m for m in run.model.modules() if isinstance(m, Linear4bit)]
    assert len(quantized) == 14
    frozen = [m.weight.clone() for m in quantized]
    run.train()
    assert losses(run)[-1] < losses(run)[0] - 0.02
    assert all(torch.equal(m.weight, w) for m, w in zip(quantized, frozen, strict=True))
    run.save_model(str(tmp_path))
    assert json.loads((tmp_path / "prefopt.json").read_text())["adapter"] == "qlora"


def test_what_contradicts_itself_is_refused(base: Path) -> None:
    cases = [
        ({"model": tiny.model(), "adapter": "qlora"}, "cannot quantize a model that is loaded already"),
        ({"adapter": "lorra"}, "is not one of None, 'lora', 'qlora'"),
        ({"adapter": "lora", "lora": {"rank": 4}}, "lora has no setting 'rank'"),
        ({"algorithm": "orpo", "reference": str(base)}, "orpo uses no reference model"),
        ({"reward": len}, "samples nothing: leave reward= out"),
        ({"args": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor=0.1 would have no effect"),
        ({"args": {"learning_rat": 0.1}}, "Did you mean 'learning_rate'"),
        ({"algorithm": "rejection_sampling"}, "needs a reward"),
        ({"model": "/no/such/model"}, "there is no such folder"),
    ]
    for changes, message in cases:
        options = {"model": str(base), "algorithm": "dpo"} | changes
        with pytest.raises(prefopt.core.errors.PrefoptError, match=message) as caught:
            trainer(options.pop("algorithm"), tiny.pairs(4), **options)
        assert "\n" not in str(caught.value)


def test_export_of_a_qlora_adapter_is_the_trained_model(base: Path, tmp_path: Path) -> None:
    """Merged into its dequantized base it has the trained log-probs; into the original base it would not."""
    adapter = sft_adapter(base, tmp_path / "sft", "qlora")
    trained, merged = export_merged(adapter, tmp_path / "merged", dtype="float32")
    assert log_prob_gap(trained, merged, tiny.tokenizer()).max() < 1e-4
    original = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    assert log_prob_gap(trained, original.eval(), tiny.tokenizer()).max() > 1e-2
    sixteen = export_merged(adapter, tmp_path / "sixteen", dtype="bfloat16")[1]
    assert next(sixteen.parameters()).dtype is torch.bfloat16
    assert log_prob_gap(trained, sixteen, tiny.tokenizer()).mean() < 0.05


def test_sft_on_a_conversation_takes_the_loss_on_every_assistant_turn_and_nothing_else(base: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.TEMPLATE
    turns = [("user", "a b"), ("assistant", "good c"), ("user", "d e f"), ("assistant", "bad")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    run = prefopt.Trainer(
        tiny.model(),
        "sft",
        [row, row],
        processing_class=tokenizer,
        args={"max_steps": 1, "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True},
    )
    batch = run.train_dataset.collate([run.train_dataset[0]]).rows
    counted = tokenizer.decode(batch.input_ids[0][batch.completion_mask[0]])
    assert counted.split() == ["good", "c", "</s>", "bad", "</s>"]
    ids, mask = batch.input_ids, batch.completion_mask
    logps = tiny.model()(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    run.train()
    assert losses(run)[0] == pytest.approx(-logps[mask[0, 1:]].mean().item(), rel=1e-5)
