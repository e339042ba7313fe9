"""Reward models through the trainer: their loss, what is saved, and scores that are the same wherever asked for."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from helpers import Watch, losses, trainer
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

import prefopt
from prefopt.cli.export import run_export
from prefopt.core.errors import ModelError, UsageError
from prefopt.models import ModelSettings, export_merged, head_of, load_policy, settle_padding
from prefopt.models.reward_head import RewardHead
from prefopt.rewards.reward_model import RewardModel, is_reward_model

NAMES = ("reward", "reward(centring=0.1)", "reward_margin", "reward_kwise", "reward_best_of_k", "reward_regression")


def rows(name: str, n: int) -> list[dict]:
    if prefopt.get_algorithm(name).data_kind == "ranked":
        return tiny.ranked(n)
    return [{**row, "margin": 0.25 * (i % 4)} for i, row in enumerate(tiny.pairs(n))]


def seeded(dtype: torch.dtype = torch.float32) -> nn.Module:
    """The tiny language model as a reward model whose head is the same every time."""
    model = load_policy(tiny.model(0, dtype), ModelSettings(rewards=True))
    torch.manual_seed(3)
    nn.init.normal_(head_of(model).weight, std=0.2)
    return model


def gradients(name: str, batch: int, accumulation: int) -> tuple[list[torch.Tensor], prefopt.Trainer]:
    watch = Watch()
    args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
    run = trainer(
        name, rows(name, 16), model=seeded(torch.float64), args=args | {"learning_rate": 1e-3}, callbacks=[watch]
    )
    run.train()
    return watch.gradients, run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", [(2, 4), (1, 8)])
def test_micro_batches_change_neither_gradient_nor_metrics(name: str, split: tuple[int, int]) -> None:
    whole, one = gradients(name, 8, 1)
    parts, many = gradients(name, *split)
    for a, b in zip(whole, parts, strict=True):
        assert a.norm() > 0
        assert (a - b).norm() <= 1e-10 * a.norm()
    assert losses(many) == pytest.approx(losses(one), rel=1e-6)
    for entry, other in zip(one.state.log_history, many.state.log_history, strict=True):
        shared = {key: value for key, value in entry.items() if key.startswith("rewards/")}
        assert {key: other[key] for key in shared} == pytest.approx(shared, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_does_not_depend_on_the_batch_size(name: str) -> None:
    results = []
    for size in (1, 3, 16):
        run = trainer(name, None, model=seeded(), eval_dataset=rows(name, 7), args={"per_device_eval_batch_size": size})
        results.append(
            {key: value for key, value in run.evaluate().items() if "per_sec" not in key and "time" not in key}
        )
    assert "eval_rewards/margins" in results[0]
    assert not any("logps" in key for key in results[0])
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5, abs=1e-6)


def test_the_loss_is_bradley_terry_on_what_the_model_returns() -> None:
    """By hand, one row at a time and without padding."""
    model, data = seeded(), tiny.pairs(5)
    run = trainer("reward", None, model=model, eval_dataset=data, args={"per_device_eval_batch_size": 5})
    metrics, expected, margins = run.evaluate(), [], []
    plain = tiny.tokenizer()
    with torch.no_grad():
        for row in data:
            ids = [[*plain(row["prompt"] + row[side]).input_ids, plain.eos_token_id] for side in ("chosen", "rejected")]
            chosen, rejected = (model(input_ids=torch.tensor([each])).logits.item() for each in ids)
            margins.append(chosen - rejected)
            expected.append(math.log1p(math.exp(rejected - chosen)))
    assert metrics["eval_loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert metrics["eval_rewards/margins"] == pytest.approx(np.mean(margins), rel=1e-4, abs=1e-6)
    assert metrics["eval_rewards/accuracies"] == pytest.approx(np.mean(np.array(margins) > 0))


@pytest.mark.parametrize("adapter", [None, "lora", "qlora"])
def test_it_learns_and_moves_head_and_layers(adapter: str | None, tmp_path: Path) -> None:
    run = trainer(
        "reward",
        tiny.pairs(6),
        model=str(tiny.save(tmp_path / "base")),
        adapter=adapter,
        args={"per_device_train_batch_size": 6, "max_steps": 8, "learning_rate": 3e-3},
    )
    before = {key: value.detach().clone() for key, value in run.model.named_parameters()}
    run.train()
    moved = {key for key, value in run.model.named_parameters() if not torch.equal(value, before[key])}
    if adapter is None:
        # The embedding of a token that is nowhere in the data has no gradient, but its matrix does.
        assert moved == set(before)
    else:
        head = {"base_model.model.score.modules_to_save.default.weight"}
        assert moved == {key for key in before if "lora_" in key} | head
    assert losses(run)[-1] < 0.7 * losses(run)[0]


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_run_resumes_bit_for_bit(adapter: str | None, tmp_path: Path) -> None:
    base = str(tiny.save(tmp_path / "base"))

    def run(folder: str, stop: int, resume: bool = False) -> prefopt.Trainer:
        made = trainer(
            "reward",
            tiny.pairs(12),
            model=base,
            adapter=adapter,
            callbacks=[StopAt(stop)],
            args={
                "output_dir": str(tmp_path / folder),
                "num_train_epochs": 2,
                "save_strategy": "steps",
                "save_steps": 1,
                "learning_rate": 1e-3,
                # A seed of its own would draw another head: only the checkpoint can bring it back.
                "seed": 5 if resume else 0,
                "data_seed": 0,
            },
        )
        made.train(resume_from_checkpoint=resume)
        return made

    whole = run("whole", 5)
    run("parts", 2)
    resumed = run("parts", 5, resume=True)
    for (key, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        # The head of the base is under the one that is trained, and is never used.
        assert torch.equal(a, b) or "original_module" in key, key


def trained(folder: Path, adapter: str | None) -> prefopt.Trainer:
    """A reward model trained for a few steps and saved under ``folder``."""
    run = trainer(
        "reward",
        tiny.pairs(8),
        model=str(tiny.save(folder / "base")),
        adapter=adapter,
        args={"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 8},
    )
    run.train()
    run.save_model(str(folder / "out"))
    return run


def scores_in_training(run: prefopt.Trainer, data: list[dict]) -> list[float]:
    """What the trainer's own batches give, chosen and rejected in turn."""
    scores = []
    run.model.eval()
    with torch.no_grad():
        for batch in run.get_eval_dataloader(data):
            pairs = run.scorer.container(run.model, batch)
            for chosen, rejected in zip(pairs.chosen.rewards, pairs.rejected.rewards, strict=True):
                scores += [chosen.item(), rejected.item()]
    return scores


def texts(data: list[dict]) -> tuple[list[str], list[str]]:
    flat = [(row["prompt"], row[side]) for row in data for side in ("chosen", "rejected")]
    return [prompt for prompt, _ in flat], [text for _, text in flat]


@pytest.mark.parametrize("adapter", [None, "lora", "qlora"])
def test_a_saved_model_scores_as_in_training(adapter: str | None, tmp_path: Path) -> None:
    run, data = trained(tmp_path, adapter), tiny.pairs(9, seed=4)
    expected = scores_in_training(run, data)
    assert np.std(expected) > 0.1
    reward = RewardModel.load(tmp_path / "out")
    assert reward(*texts(data)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    record = json.loads((tmp_path / "out" / "prefopt.json").read_text())
    assert (record["role"], record["algorithm"], record["adapter"]) == ("reward model", "reward", adapter)


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_plain_transformers_and_peft_give_the_same_bits(adapter: str | None, tmp_path: Path) -> None:
    run = trained(tmp_path, adapter)
    if adapter is None:
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
        assert plain.config.num_labels == 1
    else:
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
        plain = PeftModel.from_pretrained(base, tmp_path / "out")
        assert "score" in plain.peft_config["default"].modules_to_save
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert not any(isinstance(module, RewardHead) for module in plain.modules())
    data = tiny.pairs(4, seed=2)
    batch = run.get_eval_dataloader(data).dataset
    inputs = batch.collate(batch.examples).rows.inputs
    with torch.no_grad():
        ours, theirs = run.model.eval()(**inputs).logits, plain.eval()(**inputs).logits
    assert torch.equal(ours, theirs)
    assert plain.config.pad_token_id == tokenizer.pad_token_id
    # As anyone would call it, one text at a time.
    prompts, completions = texts(data)
    ids = [*tokenizer(prompts[0] + completions[0]).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        assert plain(torch.tensor([ids])).logits.item() == pytest.approx(ours[0].item(), rel=1e-5)


def test_neither_padding_nor_company_nor_order_changes_a_score() -> None:
    reward = RewardModel(seeded(torch.float64), tiny.tokenizer())
    prompts, completions = texts(tiny.pairs(6))
    together = reward(prompts, completions)
    alone = [reward([prompt], [text])[0] for prompt, text in zip(prompts, completions, strict=True)]
    assert together == pytest.approx(alone, rel=1e-12)
    assert reward(prompts[::-1], completions[::-1]) == pytest.approx(together[::-1], rel=1e-12)
    model, pad = reward.model, reward.tokenizer.pad_token_id
    ids = torch.tensor([[1, 9, 8, 12, 2]])
    wide = torch.cat([ids, torch.full((1, 7), pad)], dim=1)
    with torch.no_grad():
        short = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item()
        padded = model(input_ids=wide, attention_mask=(torch.arange(12) < 5).long()[None]).logits.item()
    assert padded == pytest.approx(short, rel=1e-12)


def test_a_cut_completion_has_no_end_token() -> None:
    reward = RewardModel(seeded(), tiny.tokenizer())
    tokenizer = reward.tokenizer
    prompt, text = "a b c ", "good d e"
    ids = torch.tensor([tokenizer(prompt + text).input_ids])
    with torch.no_grad():
        bare = reward.model(input_ids=ids).logits.item()
        whole = reward.model(input_ids=torch.cat([ids, torch.tensor([[2]])], dim=1)).logits.item()
    assert reward([prompt] * 2, [text] * 2, ended=[False, True]) == pytest.approx([bare, whole], rel=1e-5)
    assert reward([prompt], [text]) == pytest.approx([whole], rel=1e-5)
    assert abs(bare - whole) > 1e-3


def test_messages_go_through_the_chat_template() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.TEMPLATE
    reward = RewardModel(seeded(), tokenizer)
    text = "<user> a b </s> <assistant> good c </s>"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
    with torch.no_grad():
        expected = reward.model(input_ids=ids).logits.item()
    assert reward([[{"role": "user", "content": "a b"}]], ["good c"]) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_reward_model_is_trained_further(adapter: str | None, tmp_path: Path) -> None:
    first = trained(tmp_path, adapter)
    second = trainer("reward", tiny.pairs(4), model=str(tmp_path / "out"), args={"max_steps": 1})
    assert torch.equal(head_of(second.model).weight, head_of(first.model).weight)
    assert not head_of(second.model).fresh
    assert is_reward_model(tmp_path / "out")
    assert not is_reward_model(tmp_path / "base")


def test_a_fresh_head_is_announced_and_an_old_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trained(tmp_path, None)
    assert "this llama is a language model: it gets a reward head, drawn at random" in capsys.readouterr().err
    trainer("reward", tiny.pairs(4), model=str(tmp_path / "out"), args={"max_steps": 1})
    assert "drawn at random" not in capsys.readouterr().err


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_tied_embeddings_are_found_under_the_head_of_the_language_model(
    adapter: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Where a checkpoint has them there, a classifier has no name for them, and transformers draws them at random."""
    model = tiny.model()
    model.config.tie_word_embeddings = True
    weights = {name: value.clone() for name, value in model.state_dict().items() if "embed" not in name}
    weights["lm_head.weight"] = model.model.embed_tokens.weight.detach().clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    run = trainer("reward", tiny.pairs(4), model=str(tmp_path), adapter=adapter)
    assert torch.equal(run.model.get_input_embeddings().weight, model.model.embed_tokens.weight)
    assert ("stores its embeddings as the language model's head" in capsys.readouterr().err) == (adapter is not None)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="its files are not complete"):
        trainer("reward", tiny.pairs(4), model=str(tmp_path))


def classifier(labels: int, folder: Path) -> str:
    tiny.save(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=labels)
    model.save_pretrained(folder / "many")
    tiny.tokenizer().save_pretrained(folder / "many")
    return str(folder / "many")


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    many = classifier(3, tmp_path)
    with pytest.raises(ModelError, match=r"3 labels, and a reward model has one: start from its language model"):
        trainer("reward", tiny.pairs(4), model=many)
    with pytest.raises(ModelError, match="gives no reward: train one with `prefopt train reward`"):
        RewardModel.load(tmp_path / "base")
    run = trainer("sft", tiny.pairs(4), model=str(tmp_path / "base"), adapter="lora")
    run.save_model(str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match=r"adapter of a language model.*prefopt export"):
        trainer("reward", tiny.pairs(4), model=str(tmp_path / "adapter"))
    with pytest.raises(UsageError, match="task_type='SEQ_CLS'"):
        trainer("reward", tiny.pairs(4), adapter=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    with pytest.raises(UsageError, match="uses no reference model"):
        trainer("reward", tiny.pairs(4), reference=tiny.model(1))


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_reward_model_is_refused_as_a_policy(adapter: str | None, tmp_path: Path) -> None:
    trained(tmp_path, adapter)
    with pytest.raises(ModelError, match="no language model: give its base instead"):
        trainer("dpo", tiny.pairs(4), model=str(tmp_path / "out"))


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_an_exported_reward_model_gives_the_rewards_of_its_adapter(adapter: str, tmp_path: Path) -> None:
    trained(tmp_path, adapter)
    asked = ["a b"] * 4, ["good c", "bad", "very good d e", "f"]
    expected = RewardModel.load(tmp_path / "out")(*asked)
    export_merged(tmp_path / "out", tmp_path / "merged", dtype="float32")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert RewardModel.load(tmp_path / "merged")(*asked) == pytest.approx(expected, abs=1e-4)
    # Any other tool finds the head, and the padding before which the score is read.
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", num_labels=1)
    assert plain.config.pad_token_id == RewardModel.load(tmp_path / "out").tokenizer.pad_token_id
    run_export(str(tmp_path / "out"), str(tmp_path / "sixteen"), "bfloat16")
    rough = RewardModel.load(tmp_path / "sixteen")(*asked)
    assert rough == pytest.approx(expected, abs=0.1)
    assert rough != expected


def test_the_head_keeps_float32_over_a_lower_precision() -> None:
    model = load_policy(tiny.model(0, torch.bfloat16), ModelSettings(rewards=True))
    assert head_of(model).weight.dtype == torch.float32
    ids = torch.tensor([[1, 9, 8, 2]])
    with torch.no_grad():
        assert model(input_ids=ids).logits.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(input_ids=ids).logits.dtype == torch.float32


def test_padding_that_ends_sequences_is_replaced_where_the_tokenizer_has_another() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = seeded()
    head_of(model).fresh = True
    settled, lines = settle_padding(model, tokenizer)
    assert (settled.pad_token, model.config.pad_token_id) == ("<pad>", 0)
    assert tokenizer.pad_token == "</s>"
    assert any("padding is '<pad>'" in line for line in lines)


def test_where_only_the_end_token_can_pad_that_is_said() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.unk_token = tokenizer.eos_token
    model = seeded()
    # As if the vocabulary had no token that is named for padding.
    model.get_input_embeddings().weight = nn.Parameter(model.get_input_embeddings().weight)
    head_of(model).fresh = True
    tokenizer.convert_ids_to_tokens = lambda number: {0: "<zero>", 2: "</s>"}.get(number, "x")
    settled, lines = settle_padding(model, tokenizer)
    assert model.config.pad_token_id == settled.pad_token_id == 2
    assert any("does not see whether a completion ended" in line for line in lines)


def test_a_published_model_keeps_its_padding() -> None:
    model = seeded()
    model.config.pad_token_id = 5
    head_of(model).fresh = False
    tokenizer, lines = settle_padding(model, tiny.tokenizer())
    assert (model.config.pad_token_id, tokenizer.pad_token) == (5, "<assistant>")
    assert lines


def test_too_long_is_refused_with_the_numbers() -> None:
    reward = RewardModel(seeded(), tiny.tokenizer())
    with pytest.raises(UsageError, match="completion 1 with its prompt has 74 tokens, and the reward model's context"):
        reward(["a ", "a "], ["b", "b " * 72])
    with pytest.raises(UsageError, match="got 1 prompts for 2 completions"):
        reward(["a "], ["b", "c"])


def test_a_causal_model_in_memory_gives_its_layers(tmp_path: Path) -> None:
    policy = tiny.model()
    run = trainer("reward", tiny.pairs(4), model=policy)
    assert run.model.base_model is policy.base_model
    with pytest.raises(ModelError, match="gives no reward"):
        policy.save_pretrained(tmp_path / "policy")
        tiny.tokenizer().save_pretrained(tmp_path / "policy")
        RewardModel.load(tmp_path / "policy")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy") is not None
