"""What a model and its tokenizer must be, asked when the trainer is assembled; and what is mended there."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    GenerationConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
)

import prefopt
from prefopt.core.errors import ModelError, UsageError
from prefopt.models import SavedModel, export_merged, load_trained

ARGS = {"max_steps": 2, "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1, "warmup_steps": 0}


def trainer(model, out: Path, algorithm="dpo", rows=None, args=None, **options):
    options.setdefault("processing_class", tiny.tokenizer())
    args = {**ARGS, "output_dir": str(out), "save_strategy": "no", **(args or {})}
    return prefopt.Trainer(model, algorithm, rows or tiny.pairs(4), args=args, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_float32(dtype, tmp_path, capsys):
    model = tiny.model(dtype=dtype)
    before = [weight.detach().clone().float() for weight in model.parameters()]
    run = trainer(model, tmp_path, args={"learning_rate": 1e-6, "max_steps": 1})
    run.train()
    assert {weight.dtype for weight in run.policy.parameters()} == {torch.float32}
    moved = [(a != b).float().mean().item() for a, b in zip(run.policy.parameters(), before, strict=True)]
    assert sum(moved) / len(moved) > 0.5
    assert "rounded away" in capsys.readouterr().err


def test_adapter_weights_in_half_precision_are_trained_in_float32(tmp_path):
    model = get_peft_model(tiny.model(dtype=torch.bfloat16), LoraConfig(task_type="CAUSAL_LM")).to(torch.bfloat16)
    run = trainer(model, tmp_path)
    run.train()
    dtypes = {name: weight.dtype for name, weight in run.policy.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if "lora_" in name} == {torch.float32}
    assert dtypes["base_model.model.model.norm.weight"] == torch.bfloat16


def frozen():
    return tiny.model().requires_grad_(False)


def shape():
    return {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 30,
    }


def bart():
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return BartForConditionalGeneration(
        BartConfig(**sizes, vocab_size=30, encoder_attention_heads=2, decoder_attention_heads=2)
    )


def peft_model(**options):
    return get_peft_model(tiny.model(), LoraConfig(task_type="CAUSAL_LM", **options))


REFUSED = {
    "all frozen": (frozen, {}, "all weights of the model are frozen"),
    "adapter not for training": (
        lambda: peft_model(inference_mode=True),
        {},
        "is_trainable=True",
    ),
    "encoder-decoder": (bart, {}, "is an encoder–decoder"),
    "encoder": (lambda: BertLMHeadModel(BertConfig(**shape())), {}, "is an encoder"),
    "classifier": (lambda: LlamaForSequenceClassification(tiny.model().config), {}, "is a classifier"),
    "no head": (lambda: LlamaModel(tiny.model().config), {}, "no vocabulary head"),
    "prompt tuning": (
        lambda: get_peft_model(tiny.model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        {},
        "PROMPT_TUNING",
    ),
    "lora without adapter": (tiny.model, {"lora": {"r": 4}}, "lora= would have no effect without an adapter"),
    "lora beside a config": (tiny.model, {"lora": {"r": 4}, "adapter": LoraConfig()}, "beside a LoraConfig"),
    "lora beside an adapter": (peft_model, {"lora": {"r": 4}, "adapter": "lora"}, "brings an adapter of its own"),
    "config beside an adapter": (peft_model, {"adapter": LoraConfig()}, "brings an adapter of its own"),
    "adalora": (tiny.model, {"adapter": AdaLoraConfig(total_step=9, task_type="CAUSAL_LM")}, "AdaLoRA"),
    "no tokenizer": (tiny.model, {"processing_class": 3}, "processing_class must be a tokenizer or the path"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    make, options, message = REFUSED[name]
    with pytest.raises((ModelError, UsageError), match=message):
        trainer(make(), tmp_path, **options)


def test_the_folder_of_a_prompt_tuning_is_refused(base, tmp_path):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "prompts")
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        trainer(str(tmp_path / "prompts"), tmp_path)


def test_a_token_without_an_embedding(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["new"])
    rows = [{**row, "chosen": "new new"} for row in tiny.pairs(4)]
    with pytest.raises(ModelError, match="the token 'new' has the id 30, and the model has 30 embeddings"):
        trainer(tiny.model(), tmp_path, rows=rows, processing_class=tokenizer)
    trainer(tiny.model(), tmp_path, processing_class=tokenizer)


def test_a_reference_of_other_tokens(base, tmp_path):
    other = tmp_path / "other"
    tiny.model().save_pretrained(other)
    state = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    tokenizer = tiny.tokenizer()
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(json.dumps(state))
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match="the reference has another vocabulary"):
        trainer(str(base), tmp_path, reference=str(other))
    small = tiny.model()
    small.resize_token_embeddings(20)
    with pytest.raises(ModelError, match="the reference has 20 embeddings"):
        trainer(str(base), tmp_path, reference=small)
    trainer(str(base), tmp_path, reference=str(base))


def test_a_generation_config_that_could_not_be_saved_and_the_end_of_a_turn(tmp_path):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    # As many published models say it.
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.6, eos_token_id=2)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    tokenizer.chat_template = tiny.TEMPLATE.replace("</s>", "<user>")
    run = trainer(
        model, tmp_path, args={"max_steps": 1, "save_strategy": "steps", "save_steps": 1}, processing_class=tokenizer
    )
    run.train()
    saved = GenerationConfig.from_pretrained(tmp_path / "checkpoint-1")
    assert saved.eos_token_id == [2, 4]
    assert (saved.temperature, saved.do_sample) == (0.6, True)


def test_an_exported_adapter_ends_turns_too(base, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    tokenizer.chat_template = tiny.TEMPLATE.replace("</s>", "<user>")
    trainer(str(base), tmp_path, adapter="lora", processing_class=tokenizer).save_model(tmp_path / "adapter")
    export_merged(tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [2, 4]


@pytest.mark.parametrize(
    "lora", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [30]}]
)
def test_an_adapter_on_added_tokens_comes_back(base, tmp_path, lora):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["new"])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    rows = [{**row, "chosen": "new so"} for row in tiny.pairs(4)]
    options = {"args": {"learning_rate": 1e-2}, "adapter": "lora", "lora": lora, "processing_class": tokenizer}
    run = trainer(model, tmp_path, rows=rows, **options)
    run.train()
    run.save_model(tmp_path / "out")
    assert SavedModel.of(tmp_path / "out").vocabulary == 31
    ids = torch.tensor([[1, 30, 9, 12]])
    with torch.no_grad():
        expected = run.policy.eval()(input_ids=ids).logits
        assert torch.allclose(load_trained(str(tmp_path / "out"))(input_ids=ids).logits, expected, atol=1e-4)
    trainer(str(tmp_path / "out"), tmp_path, rows=rows, processing_class=None)


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["embed_tokens"], ["q_proj"]])
@pytest.mark.parametrize("save", [None, ["lm_head"]])
def test_the_export_of_tied_embeddings(tmp_path, targets, save):
    if save and "lm_head" in targets:
        pytest.skip("a layer is either adapted or saved whole")
    model = tiny.model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        LoraConfig(task_type="CAUSAL_LM", target_modules=targets, modules_to_save=save, init_lora_weights=False),
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "modules_to_save" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    adapted.save_pretrained(tmp_path / "adapter")
    export_merged(tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([[1, 8, 9, 12]])
    with torch.no_grad():
        assert torch.allclose(merged.eval()(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits, atol=1e-4)
    assert merged.config.tie_word_embeddings == (targets == ["q_proj"] and not save)


def experts(coefficient: float, on: bool = True) -> nn.Module:
    torch.manual_seed(0)
    config = MixtralConfig(**shape(), num_key_value_heads=1, num_local_experts=4, output_router_logits=on)
    config.router_aux_loss_coef = coefficient
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    return MixtralForCausalLM(config)


def test_the_experts_are_balanced_with_their_coefficient(tmp_path, capsys):
    logs = {}
    for coefficient, options in ((0.0, {}), (2.0, {}), (2.0, {"share_prompts": False}), (2.0, {"on": False})):
        model = experts(coefficient, options.pop("on", True))
        run = trainer(model, tmp_path, "sft", args={"max_steps": 1}, **options)
        run.train()
        logs[coefficient, model.config.output_router_logits, *options] = run.state.log_history[0]
    plain, added = logs[0.0, True], logs[2.0, True]
    assert added["loss"] == pytest.approx(plain["loss"] + 2.0 * added["aux_loss"], abs=2e-3)
    assert 2.0 <= added["aux_loss"] < 4.0  # of top-2 experts: 2 where they are balanced
    assert logs[2.0, True, "share_prompts"]["loss"] == pytest.approx(added["loss"], abs=2e-3)
    assert "aux_loss" not in logs[2.0, False]
    assert logs[2.0, False]["loss"] == pytest.approx(plain["loss"], abs=2e-3)
    assert "without its load-balancing loss" in capsys.readouterr().err


def test_accumulated_steps_balance_as_whole_ones(tmp_path):
    losses = []
    for size, steps in ((4, 1), (1, 4)):
        args = {"max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        run = trainer(experts(0.5), tmp_path, "sft", args=args)
        run.train()
        losses.append(run.state.log_history[0]["loss"])
    # The loss of a pass is not linear in its tokens: nearly, not exactly.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_experts_sample_and_learn_online(tmp_path):
    def reward(prompts, completions, **_):
        return [float(len(text)) for text in completions]

    rows, generation = [{"prompt": row["prompt"]} for row in tiny.pairs(2)], {"n": 2, "max_new_tokens": 4}
    args = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    run = trainer(experts(0.5), tmp_path, "grpo", rows, args, reward=reward, generation=generation)
    run.train()
    assert "aux_loss" in run.state.log_history[0]


def test_the_context_in_a_text_config():
    from transformers import Gemma3Config

    from prefopt.models.origin import context_of

    assert context_of(Gemma3Config(text_config={"max_position_embeddings": 77})) == 77


def test_a_loaded_adapter_of_its_own_is_trained_further(base, tmp_path):
    peft_model().save_pretrained(tmp_path / "one")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "one", is_trainable=True)
    trainer(model, tmp_path, adapter="lora").train()
