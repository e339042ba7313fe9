"""What a plan predicts: against real weights, real optimizers, and the peaks of real runs."""

import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import prefopt
from prefopt.core import console
from prefopt.core.errors import UsageError
from prefopt.memory import CARDS
from prefopt.memory.dry_run import DryRun
from prefopt.memory.estimate import GB, RESERVE, SLACK
from prefopt.memory.optimizers import state_bytes, step_bytes
from prefopt.memory.recorder import Recorder
from prefopt.memory.segments import Segments
from prefopt.memory.skeleton import nf4_bytes
from prefopt.models import ModelSettings, load_policy

TOLERANCE = 0.1
"""Share by which a prediction may miss the peak of a run on a CPU."""


def llama(layers: int, **changes: Any) -> LlamaConfig:
    shape = {"vocab_size": 4000, "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 512}
    return LlamaConfig(**{**shape, **special, "num_key_value_heads": 2, "num_hidden_layers": layers, **changes})


@pytest.fixture(scope="module")
def llama_8b() -> LlamaConfig:
    """The shape of Llama 3.1 8B."""
    return llama(
        32,
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
    )


def sentence(words: int, seed: int) -> str:
    return tiny.words(torch.Generator().manual_seed(seed), words, words)


def pairs(n: int = 8) -> list[dict]:
    return [{"prompt": sentence(96, i), "chosen": sentence(48, n + i), "rejected": sentence(48, -i)} for i in range(n)]


def saved(layers: int, where: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(llama(layers)).save_pretrained(where)
    tiny.tokenizer().save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, all of which a plan runs."""
    return saved(2, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four layers, of which a plan runs two and three."""
    return saved(4, tmp_path_factory.mktemp("deep"))


# ---- against real runs -----------------------------------------------------------------------------------------------


def longest(prompts: list, completions: list) -> list[float]:
    return [float(len(text)) + number % 2 for number, text in enumerate(completions)]


PPO = {
    "adapter": "lora",
    "reward": longest,
    "generation": {"n": 4, "max_new_tokens": 24, "batch_size": 8},
    "args": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
}
RUNS = {
    "dpo": {"adapter": "lora", "args": {"gradient_accumulation_steps": 2}},
    "dpo, deep": {"adapter": "lora", "args": {"gradient_accumulation_steps": 1}},
    "dpo, whole": {"args": {"gradient_accumulation_steps": 2}},
    "dpo, cached": {"reference_cache": "kept", "args": {"gradient_accumulation_steps": 2}},
    "dpo, padded": {"adapter": "lora", "share_prompts": False, "args": {"gradient_accumulation_steps": 2}},
    "orpo": {"args": {"gradient_accumulation_steps": 1, "gradient_checkpointing": True}},
    "reward": {"adapter": "lora", "args": {"gradient_accumulation_steps": 2}},
    "ppo": PPO,
    "ppo, whole": {**PPO, "adapter": None},
    "ppo(minibatches=2)": PPO,
}
QUICK = ("dpo, deep", "dpo, cached", "orpo", "reward", "ppo")
"""One with layers that are not run, with a cache, with all weights and checkpoints, with a reward head, with roles."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RUNS])
def test_the_peak_of_a_run_on_the_cpu_is_as_planned(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("deep" if "deep" in name else "folder")
    told = dict(RUNS[name])
    algorithm, *_ = name.split(",")
    if "reference_cache" in told:
        told["reference_cache"] = tmp_path / told["reference_cache"]
    if algorithm == "ppo(minibatches=2)":
        algorithm = prefopt.get_algorithm("ppo", minibatches=2)
    args = {"per_device_train_batch_size": 4, **told.pop("args")}
    data = [{"prompt": row["prompt"]} for row in pairs()] if "reward" in told else pairs()
    planned = prefopt.plan(folder, algorithm, data, args=args, device="cpu", **told)
    run = {"output_dir": str(tmp_path), "max_steps": 2, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    with console.quiet():
        trainer = prefopt.Trainer(folder, algorithm, data, args=args | run, **told)
        recorder = Recorder()
        recorder.add([*trainer.model.parameters(), *trainer.model.buffers()])
        with recorder:
            trainer.train()
    assert planned.total == pytest.approx(recorder.peak, rel=TOLERANCE)


def test_filling_a_reference_cache_takes_what_is_planned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill, recorders = prefopt.Trainer._fill_cache, []

    def recorded(trainer: prefopt.Trainer, where: Path) -> None:
        with Recorder([*trainer.model.parameters(), *trainer.model.buffers()]) as recorder:
            fill(trainer, where)
        recorders.append(recorder)

    monkeypatch.setattr(prefopt.Trainer, "_fill_cache", recorded)
    told = {"adapter": "lora", "reference_cache": tmp_path / "kept"}
    many = pairs(40)
    planned = prefopt.plan(folder, "dpo", many, device="cpu", **told)
    with console.quiet():
        prefopt.Trainer(folder, "dpo", many, args={"output_dir": str(tmp_path), "use_cpu": True}, **told)
    # The states of the optimizer are counted as there throughout, and are not there yet.
    moment = planned.moments["reference cache"] + planned.optimizer
    assert moment == pytest.approx(recorders[0].peak, rel=TOLERANCE)


def test_a_cached_reference_needs_no_second_model(tmp_path: Path) -> None:
    told = {"model": llama(2), "algorithm": "dpo", "data": {"max_length": 64}}
    plain, cached = prefopt.plan(**told), prefopt.plan(**told, reference_cache=tmp_path)
    assert (plain.reference, cached.reference) == (plain.weights, 0)
    assert plain.moments.keys() - cached.moments.keys() == {"reference"}
    # One that was given has its weights until the cache is full.
    other = prefopt.plan(**told, reference=llama(4), reference_cache=tmp_path)
    assert other.reference == 0
    more = prefopt.plan(**{**told, "model": llama(4)}).weights
    states = cached.optimizer
    assert other.moments["reference cache"] + states > more
    with pytest.raises(UsageError, match="leave reference_cache= out"):
        prefopt.plan(llama(2), "orpo", reference_cache=tmp_path)


def test_rows_that_do_not_share_their_prompt_are_planned_with_padding() -> None:
    told = {"model": llama(2), "algorithm": "dpo", "data": {"max_length": 256}, "prompt_length": 192}
    shared, padded = (prefopt.plan(**told, share_prompts=on) for on in (True, False))
    rows = 2 * shared.run.micro_batch
    assert padded.tokens == rows * 256
    assert shared.tokens == rows // 2 * (192 + 2 * 64 - 2)
    assert padded.kept > 1.3 * shared.kept


def size(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_an_8b_model_in_4_bit_needs_what_the_arithmetic_says(llama_8b: LlamaConfig) -> None:
    run = DryRun(
        llama_8b,
        lora=ModelSettings(adapter="qlora").lora_config(),
        quantized=True,
        dtype=torch.bfloat16,
        mixed=torch.bfloat16,
    )
    linear = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    rest = 2 * 2 * 128_256 * 4096
    # Half a byte, and a byte and 1/64 of a float for each 64 of them: 0.516 bytes for a number.
    assert run.base_bytes == pytest.approx(linear * (0.5 + (1 + 4 / 256) / 64) + rest, rel=1e-3)
    assert run.base_bytes / GB == pytest.approx(5.3, abs=0.05)
    # r = 16 in float32, with its gradient and two moments.
    assert 4 * run.adapter_bytes / GB == pytest.approx(0.62, abs=0.01)
    few, many = (run.training(Segments(((512, (256, 256)),) * n), checkpointing=True, gradients=True) for n in (2, 4))
    tokens = 2 * (512 + 2 * 256) - 4
    # Checkpoints are one hidden state a layer, in bfloat16; the last norm keeps a copy in float32 and what it makes.
    assert 262_144 < (many.kept - few.kept) / tokens < 262_144 + 4096 * (4 + 2) + 1000
    # The live layer: kernels that fuse its operations come to 190 kB; the copies that plain ones make say more.
    live = (many.last - few.last - (many.kept - few.kept)) / tokens
    assert 300_000 < live < 400_000


def test_a_4_bit_weight_is_as_large_as_bitsandbytes_makes_it() -> None:
    weight = torch.randn(384, 256)
    packed, state = bnb.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    tensors = [packed, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    assert nf4_bytes(weight.numel()) == sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_weights_and_adapters_are_counted_as_they_are_loaded(adapter: str | None, folder: Path) -> None:
    planned = prefopt.plan(folder, "sft", adapter=adapter, device="cpu", data={"max_length": 64})
    policy = load_policy(folder, ModelSettings(adapter=adapter))
    buffers = sum(map(size, policy.buffers()))
    assert planned.weights + planned.adapter == sum(map(size, policy.parameters())) + buffers
    assert planned.gradients == sum(size(one) for one in policy.parameters() if one.requires_grad)


def test_the_states_of_adamw_are_those_of_torch() -> None:
    weights = [torch.nn.Parameter(torch.randn(30, 20)), torch.nn.Parameter(torch.randn(7))]
    optimizer = torch.optim.AdamW(weights)
    sum(one.sum() for one in weights).backward()
    recorder = Recorder(weights)
    recorder.add([one.grad for one in weights])
    before = recorder.live
    with recorder:
        optimizer.step()
    shapes = [tuple(one.shape) for one in weights]
    steps = 4 * len(weights)  # the number of the step, for each weight
    assert recorder.live - before == state_bytes("adamw_torch", shapes) + steps
    assert recorder.peak - recorder.live == pytest.approx(step_bytes("adamw_torch", shapes, "cpu"), rel=0.1)


def test_states_in_8_bit_have_a_scale_for_256_numbers() -> None:
    assert state_bytes("paged_adamw_8bit", [(64, 128)]) == 2 * (64 * 128 + 4 * 32)
    assert state_bytes("paged_adamw_8bit", [(64,)]) == 2 * 4 * 64


@pytest.mark.parametrize(
    ("options", "times"),
    [({}, 1.0), ({"adapter": "lora"}, 0.0), ({"algorithm": "orpo"}, 0.0)],
    ids=["all weights", "adapter", "none needed"],
)
def test_a_reference_costs_a_copy_only_where_there_is_no_adapter(options: dict, times: float) -> None:
    planned = prefopt.plan(**{"model": llama(2), "algorithm": "dpo", "data": {"max_length": 64}, **options})
    assert planned.reference == times * planned.weights


def test_a_critic_is_an_adapter_beside_an_adapter_and_a_model_beside_a_model() -> None:
    told = {"model": llama(2), "algorithm": "ppo", "reward": longest, "data": {"max_length": 64}}
    told |= {"generation": {"n": 2, "max_new_tokens": 16, "batch_size": 4}, "args": {"gradient_accumulation_steps": 2}}
    with_adapter, whole = prefopt.plan(**told, adapter="lora"), prefopt.plan(**told)
    head = 4 * (128 + 1)
    assert with_adapter.critic == with_adapter.adapter + head
    # All weights but the vocabulary head, which is the policy's; buffers of a few bytes are not counted twice.
    assert whole.critic == pytest.approx(whole.weights - 4 * 128 * llama(2).vocab_size + head, abs=1024)
    assert with_adapter.gradients == 2 * with_adapter.adapter + head
    # Keys and values of 4 sequences of 48 tokens, in bfloat16.
    assert with_adapter.cache == 2 * 2 * 2 * 32 * 2 * 4 * (32 + 16 - 1)


# ---- what to change --------------------------------------------------------------------------------------------------


def test_checkpointing_keeps_less_and_shorter_rows_need_less() -> None:
    def planned(length: int, on: bool) -> prefopt.memory.Plan:
        args = {"gradient_checkpointing": on}
        return prefopt.plan(llama(2), "dpo", adapter="lora", data={"max_length": length}, args=args)

    assert planned(256, True).kept < planned(256, False).kept / 3
    assert planned(128, False).total < planned(256, False).total


def test_advice_makes_it_fit() -> None:
    told = {"model": llama(2), "algorithm": "dpo", "adapter": "lora", "data": {"max_length": 512}}
    planned = prefopt.plan(**told)
    card = (0.6 * planned.total / (1 - SLACK) + RESERVE) / GB
    assert not planned.fits(card)
    flags = planned.advice(card)
    args = {name: value for name, value in flags.items() if name not in ("adapter", "max_length")}
    length = {"max_length": flags.get("max_length", 512)}
    again = prefopt.plan(**{**told, "adapter": flags.get("adapter", "lora"), "args": args, "data": length})
    assert again.fits(card)
    batches = [one.micro_batch * one.accumulation for one in (planned.run, again.run)]
    assert batches[0] == batches[1]
    assert planned.advice(RESERVE / GB) is None
    assert planned.advice(max(CARDS)) == {}


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="device='tpu' is not one of cuda, cpu"):
        prefopt.plan(llama(2), "dpo", device="tpu")


# ---- the recorder ----------------------------------------------------------------------------------------------------


def test_the_recorder_counts_what_is_alive() -> None:
    with Recorder() as recorder:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10]
        del a, b
        assert recorder.live == 4000
        c = torch.zeros(500)
        del view, c
    assert (recorder.live, recorder.peak) == (0, 8000)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_takes_a_config_file_or_the_flags_of_train(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from typer.testing import CliRunner

    from prefopt.cli.app import app

    (tmp_path / "pairs.json").write_text(json.dumps(pairs(4)))
    (tmp_path / "run.yaml").write_text(
        f"algorithm: dpo\nmodel: {folder}\nadapter: lora\ndata: {tmp_path / 'pairs.json'}\nout: {tmp_path / 'out'}\n"
    )
    from_file = CliRunner().invoke(app, ["plan", str(tmp_path / "run.yaml"), "--beta", "0.2"])
    flags = ["--model", str(folder), "--adapter", "lora", "--data", str(tmp_path / "pairs.json"), "--beta", "0.2"]
    from_flags = CliRunner().invoke(app, ["plan", "dpo", *flags])
    assert from_file.exit_code == from_flags.exit_code == 0, from_file.output
    assert from_file.stdout == from_flags.stdout
    assert "  8 GB: fits" in from_file.stdout
    assert "lengths are those of the longest of the 4 examples" in from_file.stdout
    assert not (tmp_path / "out").exists()


STAGES = """
model: {model}
adapter: lora
args: {{per_device_train_batch_size: 2, gradient_accumulation_steps: 2}}
data: {{max_length: 128}}
generation: {{n: 2, max_new_tokens: 32, batch_size: 4}}
stages:
  sft: {{algorithm: sft, lora: {{r: 8}}}}
  reward: {{algorithm: reward, lora: {{r: 4}}}}
  accuracy: {{evaluate: "stage:reward", data: pairs.json}}
  ppo: {{algorithm: ppo, model: "stage:sft", reward: "stage:reward"}}
"""


def plan_stages(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[dict, str]:
    """The plans of the stages of a pipeline, by name, and what was printed."""
    from typer.testing import CliRunner

    import prefopt.cli.plan as command
    from prefopt.cli.app import app

    plans, whole = {}, command.plan_run
    monkeypatch.setattr(command, "plan_run", lambda run: plans.setdefault(len(plans), whole(run)))
    (tmp_path / "stages.yaml").write_text(text)
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "stages.yaml"), *flags])
    assert done.exit_code == 0, done.output
    names = [line.removeprefix("stage ") for line in done.stdout.splitlines() if line.startswith("stage ")]
    return dict(zip(names, plans.values(), strict=False)), done.stdout


def test_the_stages_of_a_pipeline_are_planned_with_what_earlier_ones_will_make(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, said = plan_stages(STAGES.format(model=folder), tmp_path, monkeypatch)
    sft, reward, ppo = (plans[name] for name in ("sft", "reward", "ppo"))
    # The adapter of the first stage is trained further; it has a copy as reference, and one of its shape as critic.
    assert sft.adapter == ppo.adapter == ppo.reference == ppo.critic - 4 * (128 + 1)
    # The reward model's adapter sits on the policy's own base.
    assert ppo.reward == ppo.adapter // 2
    assert sft.reference == sft.reward == reward.reward == 0
    largest = max(plans, key=lambda name: plans[name].total)
    assert said.splitlines()[-2:] == [
        "not planned, since nothing is trained there: accuracy",
        f"stage {largest} needs most: {plans[largest].total / GB:.2f} GiB",
    ]
    assert said.count("  8 GB: fits") == 3


def test_stages_without_adapters_make_models_of_their_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = STAGES.format(model=folder).replace("adapter: lora", "").replace(", lora: {r: 8}", "")
    plans, _ = plan_stages(text.replace(", lora: {r: 4}", ""), tmp_path, monkeypatch, "--device", "cpu")
    ppo, head = plans["ppo"], 4 * 4000 * 128
    assert plans["sft"].weights == ppo.weights == ppo.reference
    # A reward model has one number where the policy has a vocabulary head.
    assert ppo.reward == pytest.approx(ppo.weights - head, abs=1024)


def test_changes_for_a_stage_are_written_as_the_pipeline_takes_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefopt.memory.text.CARDS", (0.8, 24))
    text = f"model: {folder}\nstages: {{only: {{algorithm: dpo, data: {{max_length: 512}}}}}}\n"
    _, said = plan_stages(text, tmp_path, monkeypatch)
    advice = next(line for line in said.splitlines() if "GB: with" in line)
    assert "--set only.args.per_device_train_batch_size=" in advice
    given = [word for word in advice.split() if "=" in word]
    _, said = plan_stages(text, tmp_path, monkeypatch, *[part for word in given for part in ("--set", word)])
    assert "0.8 GB: fits" in said
