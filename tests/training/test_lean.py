"""What makes a run lean: offloaded checkpoints, small optimizers, other kinds of LoRA, weights that are not copied."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from helpers import Watch, losses, trainer
from transformers import TrainerCallback, TrainingArguments

from prefopt.core.errors import UsageError
from prefopt.models.critic import make_critic
from prefopt.models.reference import FrozenModel
from prefopt.scoring import share_prompts, why_not_shared

OFFLOADED = {"activation_checkpointing_kwargs": {"offload": True}}


class Offload(TrainerCallback):
    """Does on CPU what the trainer does for these arguments on a card."""

    def on_train_begin(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        model.activation_checkpointing_enable(offload=True)


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_checkpoints_in_cpu_memory_change_no_gradient(adapter: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[torch.Size] = []

    class Counting(torch.autograd.graph.save_on_cpu):
        def __init__(self, **_: Any) -> None:
            # Pinned memory is for copies to a card.
            super().__init__(pin_memory=False)

        def __enter__(self) -> None:
            # What the hooks of this context are given, layer by layer.
            pack = self.pack_hook
            self.pack_hook = lambda tensor: packed.append(tensor.shape) or pack(tensor)
            super().__enter__()

    monkeypatch.setattr("transformers.modeling_utils.save_on_cpu", Counting)
    gradients = []
    for checkpointing, offload in ((False, ()), (True, ()), (True, (Offload(),))):
        assert not packed
        watch, args = Watch(), {"max_steps": 1, "activation_checkpointing": checkpointing}
        run = trainer(
            "dpo", tiny.pairs(4), adapter=adapter, args=args, callbacks=[watch, *offload], share_prompts=False
        )
        run.train()
        gradients.append(watch.gradients[0])
    # The inputs of both layers and nothing of their insides: 8 rows of hidden states each.
    hidden = [shape for shape in packed if len(shape) == 3]
    assert len(hidden) == 2
    assert all(shape[0] == 8 and shape[2] == 32 for shape in hidden)
    for other in gradients[1:]:
        assert torch.allclose(other, gradients[0], atol=1e-7)


def test_offloading_that_would_have_no_effect_is_refused() -> None:
    with pytest.raises(UsageError, match="activation_checkpointing_kwargs would have no effect"):
        trainer("dpo", tiny.pairs(4), args=OFFLOADED)
    with pytest.raises(UsageError, match="computes on CPU: leave offload out"):
        trainer("dpo", tiny.pairs(4), args=OFFLOADED | {"activation_checkpointing": True})


@pytest.mark.parametrize("kind", ["use_dora", "use_rslora"])
def test_other_kinds_of_lora_start_at_margin_zero_and_learn(kind: str) -> None:
    run = trainer("dpo", tiny.pairs(4), adapter="lora", lora={kind: True}, args={"max_steps": 6, "learning_rate": 1e-2})
    assert getattr(run.model.peft_config["default"], kind)
    assert any("magnitude" in name for name, _ in run.model.named_parameters()) == (kind == "use_dora")
    run.train()
    first = next(entry for entry in run.state.log_history if "loss" in entry)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert losses(run)[-1] < 0.6


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_eight_bit_optimizers(optimizer: str) -> None:
    args = {"optim": optimizer, "max_steps": 6, "learning_rate": 1e-2}
    run = trainer("dpo", tiny.pairs(4), adapter="lora", args=args)
    run.train()
    assert losses(run)[-1] < 0.6


def bytes_of(*models: torch.nn.Module) -> int:
    weights = {weight.data_ptr(): weight.nbytes for model in models for weight in model.parameters()}
    return sum(weights.values())


def test_copies_share_what_is_frozen() -> None:
    """A reference or a critic of its own holds what the policy's training changes, and the rest once."""
    policy = tiny.model()
    policy.get_input_embeddings().requires_grad_(False)
    frozen = bytes_of(policy.get_input_embeddings())
    run = trainer("dpo", tiny.pairs(4), model=policy, args={"max_steps": 3, "learning_rate": 1e-2})
    assert isinstance(run.reference, FrozenModel)
    before = {name: weight.clone() for name, weight in run.reference.model.named_parameters()}
    assert bytes_of(run.policy, run.reference.model) == 2 * bytes_of(run.policy) - frozen
    run.train()
    assert losses(run)[-1] < losses(run)[0]
    assert all(torch.equal(weight, before[name]) for name, weight in run.reference.model.named_parameters())
    cached = trainer("dpo", tiny.pairs(4), model=tiny.model(), reference_cache="cache")
    assert not any(isinstance(value, torch.nn.Module) for value in vars(cached.reference).values())


@pytest.mark.parametrize("adapter", [False, True])
def test_a_critic_of_its_own_copies_neither_the_head_nor_a_frozen_base(adapter: bool) -> None:
    policy = tiny.model()
    head = bytes_of(policy.get_output_embeddings())
    own = bytes_of(policy) - head
    if adapter:
        policy = trainer("dpo", tiny.pairs(4), model=policy, adapter="lora").policy
        own = sum(weight.nbytes for weight in policy.parameters() if weight.requires_grad)
    critic = make_critic("model", policy)
    assert bytes_of(policy, critic.model) == bytes_of(policy) + own
    # Every copied weight learns values, and no shared one does.
    mine = {weight.data_ptr() for weight in critic.body(policy).values()}
    assert mine.isdisjoint(weight.data_ptr() for weight in policy.parameters())


def test_sharing_prompts_is_on_unless_it_is_switched_off() -> None:
    model, reference = tiny.model(), tiny.model(1)
    runs = []
    for on in (True, False):
        watch = Watch()
        run = trainer(
            "dpo",
            tiny.pairs(4),
            model=tiny.model() if on else model,
            reference=tiny.model(1) if on else reference,
            share_prompts=on,
            args={"max_steps": 1},
            callbacks=[watch],
        )
        run.train()
        runs.append(watch.gradients[0])
    assert torch.allclose(*runs, atol=1e-6)
    assert why_not_shared(model) == why_not_shared(reference) == "it was switched off"
    # The next trainer decides anew.
    assert why_not_shared(trainer("dpo", tiny.pairs(4), model=model).policy) == ""
    share_prompts(reference)
    assert why_not_shared(reference) == ""


def test_a_config_switches_sharing_and_names_a_cache(tmp_path: Path) -> None:
    from prefopt.cli.options import Said
    from prefopt.cli.train import assemble
    from prefopt.training.run import make_trainer
    from prefopt.training.spec import RunFile

    base, data = tiny.save(tmp_path / "base"), tmp_path / "pairs.json"
    data.write_text(json.dumps(tiny.pairs(4)))
    given = {"model": str(base), "out": str(tmp_path / "out"), "share_prompts": False, "reference_cache": "cache"}
    config = assemble(Said(["dpo"], given | {"data.train": str(data)}, None, ["args.use_cpu=true"]))
    made = make_trainer(config)
    assert why_not_shared(made.policy)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert RunFile(algorithm="dpo", model="m", out="o").share_prompts is True


def test_the_page_on_memory_and_speed_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    tiny.save(tmp_path / "my-model")
    (tmp_path / "pairs.json").write_text(json.dumps(tiny.pairs(8)))
    (python,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(python, "scale.md", "exec"), {})
    assert len(list((tmp_path / "reference-logps").iterdir())) == 1
    (config,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    fields = yaml.safe_load(config)["args"]
    assert fields.keys() <= {field.name for field in dataclasses.fields(TrainingArguments)}
