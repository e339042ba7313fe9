"""PPO's roles on one base: each gets its own gradient, and nothing of the others'."""

import copy
import gc
from pathlib import Path

import pytest
import tiny
import torch
from bitsandbytes.nn import Linear4bit
from helpers import quick, trainer
from online_runs import ADAPTER, PROMPTS, Spy, online, worth
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM, TrainerCallback

import prefopt
from prefopt.core.micro_batch import MicroBatch
from prefopt.models.adapters import CRITIC_ADAPTER, REFERENCE_ADAPTER, REWARD_ADAPTER
from prefopt.scoring import score, score_values

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


class Gradients(TrainerCallback):
    """Keeps the gradients of every role before each optimizer step, and the weights that they belong to."""

    def __init__(self) -> None:
        self.run: prefopt.Trainer | None = None
        self.policy: list[dict[str, torch.Tensor]] = []
        self.critic: list[dict[str, torch.Tensor]] = []
        self.before: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_, model, **__) -> None:
        critic = self.run.source.critic
        named = {f"head.{k}": v for k, v in critic.head.named_parameters()} | critic.body(self.run.policy)
        own = {id(weight) for weight in named.values()}
        self.critic.append({k: v.grad.clone() for k, v in named.items() if v.grad is not None})
        rest = {k: v for k, v in self.run.policy.named_parameters() if v.grad is not None and id(v) not in own}
        self.policy.append({k: v.grad.clone() for k, v in rest.items()})


class Batches:
    """Keeps the micro-batches of every step, and the weights at its beginning."""

    def __init__(self, run: prefopt.Trainer) -> None:
        self.steps: list[list[dict]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.heads: list[torch.nn.Module] = []
        inner = run.get_batch_samples

        def keep(*given, **options):
            batches, step = inner(*given, **options)
            self.steps.append([copy.copy(batch) for batch in batches])
            self.weights.append({k: v.detach().clone() for k, v in run.policy.named_parameters()})
            self.heads.append(copy.deepcopy(run.source.critic.head))
            return batches, step

        run.get_batch_samples = keep


def recorded(critic: str, *, how: dict, args: dict | None = None, **hyperparameters: object) -> tuple:
    """Rollouts of two optimizer steps each, with weights large enough that every gradient is seen."""
    watch = Gradients()
    algorithm = prefopt.get_algorithm("ppo", critic=critic, passes=2, whiten_advantages=False, **hyperparameters)
    defaults = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2}
    model = tiny.model(0, torch.float64)
    run = online(algorithm, model=model, args=defaults | (args or {}), callbacks=[watch], **how)
    watch.run = run
    batches = Batches(run)
    run.train()
    return run, watch, batches


def clipped_surrogate(logps: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """By hand, summed over tokens; everything flat over the completion tokens."""
    ratio = (logps - batch.labels["old_logps"]).exp()
    advantages = batch.labels["advantages"]
    return -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()


def value_error(values: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    old, returns = batch.labels["old_values"], batch.labels["returns"]
    near = old + (values - old).clamp(-0.2, 0.2)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2).sum()


def apart(run: prefopt.Trainer, weights: dict, adapter: str) -> PeftModel:
    """A model of its own with one of the run's adapters and nothing else: base and adapter copied."""
    model = get_peft_model(tiny.model(0, torch.float64), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32,
                                                                    target_modules="all-linear"))  # fmt: skip
    own = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in weights.items():
            if f".{adapter}." in key:
                own[key.replace(f".{adapter}.", ".default.")].copy_(value)
            elif "lora_" not in key:
                own[key].copy_(value)
    return model


@pytest.mark.parametrize(
    ("accumulation", "checkpointing"),
    quick([(1, False), (1, True), (2, False), (2, True)], [(1, True), (2, False)]),
)
def test_gradients_on_a_shared_base_are_those_of_separate_models(checkpointing: bool, accumulation: int) -> None:
    args = {"gradient_accumulation_steps": accumulation} | (CHECKPOINTING if checkpointing else {})
    run, watch, batches = recorded("adapter", how=ADAPTER, args=args)
    assert run.policy.is_gradient_checkpointing == checkpointing
    assert len(batches.steps) == 4 and all(len(step) == accumulation for step in batches.steps)
    for number, step in enumerate(batches.steps):
        count = sum(len(batch.labels["advantages"]) for batch in step)
        policy = apart(run, batches.weights[number], "default")
        critic = apart(run, batches.weights[number], CRITIC_ADAPTER)
        head = batches.heads[number]
        for batch in step:
            (clipped_surrogate(score(policy, batch.rows)["logps"], batch) / count).backward()
            (0.1 * value_error(score_values(critic, batch.rows, head), batch) / count).backward()
        expected = {k: v.grad for k, v in policy.named_parameters() if v.grad is not None}
        assert watch.policy[number].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(watch.policy[number][key], value, rtol=1e-5, atol=1e-9)
        expected = {k: v.grad for k, v in critic.named_parameters() if v.grad is not None}
        expected = {k.replace(".default.", f".{CRITIC_ADAPTER}."): v for k, v in expected.items()}
        expected |= {f"head.{k}": v.grad for k, v in head.named_parameters()}
        assert watch.critic[number].keys() == expected.keys()
        for key, value in expected.items():
            # The head is kept in single precision.
            torch.testing.assert_close(watch.critic[number][key], value, rtol=1e-4, atol=1e-7)
    # From the second step on the head is not 0, and both factors of both adapters have gradients.
    for gradients in (watch.policy[1], {k: v for k, v in watch.critic[2].items()}):
        assert all(value.abs().max() > 0 for value in gradients.values())


def test_exactly_the_roles_weights_are_trained_and_the_base_gets_nothing() -> None:
    run, watch, batches = recorded("adapter", how=ADAPTER)
    named = dict(run.policy.named_parameters())
    policy = {k for k in named if ".default." in k}
    critic = {k for k in named if f".{CRITIC_ADAPTER}." in k}
    assert len(policy) == len(critic) == 28
    assert {k for k, v in named.items() if v.requires_grad} == policy
    for gradients in watch.policy:
        assert gradients.keys() == policy
    for gradients in watch.critic:
        assert gradients.keys() == critic | {"head.weight", "head.bias"}
    first = batches.weights[0]
    assert {k for k, v in named.items() if not torch.equal(v, first[k])} == policy | critic
    groups = run.optimizer.param_groups
    trained = [{id(weight) for weight in group["params"]} for group in groups]
    assert set().union(*trained[:-1]) == {id(named[k]) for k in policy}
    assert trained[-1] == {id(named[k]) for k in critic} | {id(v) for v in run.source.critic.head.parameters()}
    assert sum(map(len, trained)) == len(set().union(*trained))


@pytest.mark.parametrize(("critic", "how"), [("head", ADAPTER), ("adapter", ADAPTER), ("model", {}), ("head", {})])
def test_the_critic_learns_at_a_rate_of_its_own(critic: str, how: dict) -> None:
    run, _, _ = recorded(critic, how=how, critic_rate=5.0, args={"max_steps": 2})
    groups = run.optimizer.param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-2] * (len(groups) - 1) + [5e-2])
    assert run.source.critic.head.weight.abs().max() > 1e-3


@pytest.mark.parametrize("how", [{}, ADAPTER])
def test_a_head_on_the_policy_is_the_joint_loss(how: dict) -> None:
    run, watch, batches = recorded("head", how=how, args={"gradient_accumulation_steps": 2}, vf_coef=0.7)
    for number, step in enumerate(batches.steps):
        count = sum(len(batch.labels["advantages"]) for batch in step)
        policy = apart(run, batches.weights[number], "default") if how else tiny.model(0, torch.float64)
        if not how:
            policy.load_state_dict(batches.weights[number], strict=False)
        head = batches.heads[number]
        for batch in step:
            found = score(policy, batch.rows, value_head=head)
            loss = clipped_surrogate(found["logps"], batch) + 0.7 * value_error(found["values"], batch)
            (loss / count).backward()
        expected = {k: v.grad for k, v in policy.named_parameters() if v.grad is not None}
        assert watch.policy[number].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(watch.policy[number][key], value, rtol=1e-4, atol=1e-8)
        for key, value in head.named_parameters():
            torch.testing.assert_close(watch.critic[number][f"head.{key}"], value.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("critic", "how"), [("adapter", ADAPTER), ("model", {}), ("head", {})])
def test_clipping(critic: str, how: dict) -> None:
    """A critic of its own does not shrink the policy's steps; one on the policy's hidden states is clipped with it."""
    _, watch, _ = recorded(critic, how=how, args={"max_grad_norm": 1e-3, "max_steps": 2}, vf_coef=100.0)
    for mine, other in zip(watch.policy, watch.critic, strict=True):
        own = torch.stack([value.double().norm() for value in mine.values()]).norm()
        critics = torch.stack([value.double().norm() for value in other.values()]).norm()
        if critic == "head":
            assert (own**2 + critics**2).sqrt() == pytest.approx(1e-3, rel=1e-2)
        else:
            assert own == pytest.approx(1e-3, rel=1e-2)
            assert critics == pytest.approx(1e-3, rel=1e-2)


def test_the_log_has_the_same_names_whatever_the_critic_is() -> None:
    runs = [recorded(critic, how=ADAPTER, args={"max_steps": 1})[0] for critic in ("head", "adapter", "model")]
    names = [set(run.state.log_history[0]) for run in runs]
    assert names[0] == names[1] == names[2]
    assert {"policy/ratio", "policy/approx_kl", "value/error", "value/mean", "logps"} <= names[0]
    assert not any("ppo/" in name or "value/value" in name for name in names[0])


def test_a_rollout_is_left_with_a_head_too() -> None:
    run, _, _ = recorded("head", how=ADAPTER, target_kl=1e-6)
    assert run.source.loader.number == 2
    run, _, _ = recorded("head", how=ADAPTER, target_kl=1e-6, args={"max_steps": 2, "learning_rate": 0.0})
    assert not run.source.loader._skip


def test_a_model_critic_is_trained_beside_a_full_policy() -> None:
    run, watch, batches = recorded("model", how={}, args={"gradient_accumulation_steps": 2, "max_steps": 2})
    for number, step in enumerate(batches.steps[:1]):
        count = sum(len(batch.labels["advantages"]) for batch in step)
        policy, critic = tiny.model(0, torch.float64), tiny.model(0, torch.float64)
        head = batches.heads[number]
        for batch in step:
            (clipped_surrogate(score(policy, batch.rows)["logps"], batch) / count).backward()
            (0.1 * value_error(score_values(critic, batch.rows, head), batch) / count).backward()
        for key, value in policy.named_parameters():
            torch.testing.assert_close(watch.policy[number][key], value.grad, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(watch.critic[number]["head.weight"], head.weight.grad, rtol=1e-4, atol=1e-7)
    start = dict(tiny.model(0, torch.float64).named_parameters())
    critic = dict(run.source.critic.model.named_parameters())
    # It says nothing about values, so the critic has none of its own.
    assert critic.pop("lm_head.weight") is run.policy.lm_head.weight
    moved = {k for k, v in critic.items() if not torch.equal(v, start[k])}
    # The last layer norm is part of the hidden states.
    assert moved == start.keys() - {"lm_head.weight"}


def test_a_model_critic_is_checkpointed_like_the_policy() -> None:
    ends = []
    for checkpointing in (False, True):
        run, _, _ = recorded("model", how={}, args={"gradient_checkpointing": checkpointing, "max_steps": 2})
        layers = [module for module in run.source.critic.model.modules() if hasattr(module, "gradient_checkpointing")]
        assert layers
        assert {layer.gradient_checkpointing for layer in layers} == {checkpointing}
        ends.append(run.source.critic.state(run.policy))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value)


def train_and_save(name: str, base: Path, out: Path, adapter: str) -> str:
    """One step of an algorithm on a base by path; the folder of its result."""
    args = {"max_steps": 1, "learning_rate": 1e-2}
    run = trainer(name, tiny.pairs(4), model=str(base), adapter=adapter, args=args)
    run.train()
    run.save_model(str(out))
    return str(out)


def test_the_saved_policy_is_the_policy_alone(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    reward = train_and_save("reward", base, tmp_path / "rm", "lora")
    sft = train_and_save("sft", base, tmp_path / "sft", "lora")
    run = online("ppo", model=sft, reward=reward, args={"max_steps": 2})
    roles = {CRITIC_ADAPTER, REFERENCE_ADAPTER, REWARD_ADAPTER}
    assert set(run.policy.peft_config) == {"default", *roles}
    frozen = {k: v.clone() for k, v in run.policy.named_parameters() if REFERENCE_ADAPTER in k or REWARD_ADAPTER in k}
    run.train()
    assert all(torch.equal(dict(run.policy.named_parameters())[k], v) for k, v in frozen.items())
    run.save_model(str(tmp_path / "out"))
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not any("prefopt_" in name or "critic" in name for name in written)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    trained = {k: v for k, v in run.policy.named_parameters() if ".default." in k}
    found = {k: v for k, v in loaded.named_parameters() if "lora_" in k}
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[k], v) for k, v in trained.items())


def bases() -> list[torch.nn.Module]:
    """All language models and quantized layers in memory."""
    return [one for one in gc.get_objects() if type(one) in (LlamaForCausalLM, Linear4bit)]


def test_four_roles_of_a_quantized_run_share_one_base(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    reward = train_and_save("reward", base, tmp_path / "rm", "qlora")
    sft = train_and_save("sft", base, tmp_path / "sft", "qlora")
    gc.collect()
    before = {id(one) for one in bases()}
    arguments = {"adapter": "qlora", "reward": reward, "args": {"max_steps": 2, "learning_rate": 1e-2}}
    run = online(prefopt.get_algorithm("ppo", passes=2), model=sft, **arguments)
    spy = Spy(run)
    run.train()
    gc.collect()
    mine = [one for one in bases() if id(one) not in before]
    assert sum(isinstance(one, LlamaForCausalLM) for one in mine) == 1
    assert sum(isinstance(one, Linear4bit) for one in mine) == 14
    assert set(run.policy.peft_config) == {"default", CRITIC_ADAPTER, REFERENCE_ADAPTER, REWARD_ADAPTER}
    for group in spy.groups[0]:
        for tokens in group.tokens:
            # At step 0 policy and reference are one, whatever the base is made of; the critic starts from the reward.
            assert abs(tokens["old_logps"] - tokens["ref_logps"]).max() < 1e-5
            assert abs(tokens["values"]).max() > 0
    assert len({reward for group in spy.groups[0] for reward in group.rewards}) > 4
    assert all(torch.isfinite(value).all() for value in run.policy.parameters() if value.requires_grad)


def test_separate_models_stay_possible(tmp_path: Path) -> None:
    algorithm = prefopt.get_algorithm("ppo", critic="model", passes=1)
    run = online(algorithm, reference=tiny.model(0), reward=worth, rows=PROMPTS, args={"max_steps": 2})
    run.train()
    models = {id(run.policy), id(run.reference.model), id(run.source.critic.model)}
    assert len(models) == 3
