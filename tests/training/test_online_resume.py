"""An online run that is stopped and resumed at any optimizer step is the run that was not stopped, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from online_runs import ADAPTER, online, weights
from transformers import TrainerCallback

import prefopt

LOGGED = ("loss", "reward", "kl", "kl_coef", "epoch", "policy/ratio", "value/error", "learning_rate", "generator/gap")


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def ppo(critic: str, **plan: object) -> prefopt.algorithms.Algorithm:
    return prefopt.get_algorithm("ppo", critic=critic, **({"passes": 4, "minibatches": 2} | plan))


# A rollout of ppo has 8 steps, 2 in a pass: 1 is in the middle of the first pass, 8 the end of the rollout.
PPO = [
    ("head", {}, 5),
    ("head", ADAPTER, 1),
    ("adapter", ADAPTER, 3),
    ("adapter", ADAPTER, 8),
    ("model", {}, 3),
    ("model", ADAPTER, 1),
]
CASES = [
    *[pytest.param(ppo(critic), how, step, id=f"ppo-{critic}-{len(how)}-{step}") for critic, how, step in PPO],
    pytest.param(ppo("adapter", passes=2), ADAPTER, 7, id="ppo-second-rollout"),
    pytest.param(
        ppo("head", kl_controller="adaptive", kl_target=0.001, kl_horizon=20, passes=1), ADAPTER, 3, id="adaptive-kl"
    ),
    pytest.param(ppo("model", target_kl=1e-5), {}, 4, id="ppo-left"),
    pytest.param(prefopt.get_algorithm("grpo", passes=2, minibatches=2), {}, 3, id="grpo"),
    # An epoch of these has 8 steps: at its end, and in the next one.
    pytest.param("grpo", ADAPTER, 8, id="grpo-lora"),
    pytest.param("dapo", ADAPTER, 3, id="dapo"),
    pytest.param("online_dpo", {}, 9, id="online_dpo"),
    pytest.param("online_dpo", ADAPTER, 3, id="online_dpo-lora"),
    pytest.param(prefopt.get_algorithm("iterative_dpo", minibatches=2), {}, 5, id="iterative_dpo"),
    pytest.param(prefopt.get_algorithm("iterative_dpo", minibatches=2), ADAPTER, 5, id="iterative_dpo-lora"),
    # In the middle of the second round; the third begins with the start again.
    pytest.param(prefopt.get_algorithm("rest_em", minibatches=2, threshold=-9.0), ADAPTER, 3, id="rest_em-lora"),
]


QUICK = (
    "ppo-head-2-1",
    "ppo-adapter-2-8",
    "ppo-model-0-3",
    "ppo-second-rollout",
    "adaptive-kl",
    "ppo-left",
    "grpo-lora",
    "online_dpo",
    "iterative_dpo-lora",
    "rest_em-lora",
)
assert set(QUICK) <= {case.id for case in CASES}


@pytest.mark.parametrize(
    ("algorithm", "how", "stop"),
    [case if case.id in QUICK else pytest.param(*case.values, marks=pytest.mark.slow, id=case.id) for case in CASES],
)
def test_a_resumed_run_is_the_whole_run(
    algorithm: str | prefopt.algorithms.Algorithm, how: dict, stop: int, tmp_path: Path
) -> None:
    steps = stop + 2

    def run(checkpoint: str | None = None) -> prefopt.Trainer:
        args = {"output_dir": str(tmp_path), "max_steps": steps, "per_device_train_batch_size": 1}
        args |= {"gradient_accumulation_steps": 1, "learning_rate": 3e-3, "max_grad_norm": 1.0}
        if checkpoint is None:
            args |= {"save_strategy": "steps", "save_steps": stop, "save_total_limit": 3}
        made = online(algorithm, args=args, generation={"n": 4, "max_new_tokens": 4}, **how)
        made.train(resume_from_checkpoint=checkpoint)
        return made

    whole = run()
    resumed = run(str(tmp_path / f"checkpoint-{stop}"))
    assert resumed.state.global_step == steps
    one, two = weights(whole), weights(resumed)
    assert one.keys() == two.keys()
    different = [key for key, value in one.items() if not torch.equal(two[key], value)]
    assert not different
    by_step = {entry["step"]: entry for entry in resumed.state.log_history if "loss" in entry}
    for entry in whole.state.log_history:
        if "loss" in entry and entry["step"] > stop:
            for key in LOGGED:
                assert by_step[entry["step"]].get(key) == entry.get(key), (entry["step"], key)
    assert whole.source.collector.controller.coefficient == resumed.source.collector.controller.coefficient
    assert whole.source.loader.prompts.place == resumed.source.loader.prompts.place


def test_other_batch_sizes_begin_a_rollout(tmp_path: Path) -> None:
    def run(last: int, *, resume: bool = True, **changes: object) -> prefopt.Trainer:
        args = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 3, "max_steps": 5} | changes
        made = online(ppo("head"), args=args, callbacks=[StopAt(last)])
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        return made

    run(3, resume=False)
    other = run(5, gradient_accumulation_steps=3)
    assert other.source.loader.number == 2
    assert other.source.loader._cursor == 2 * 3


def test_a_checkpoint_is_json_and_safetensors_beside_what_transformers_writes(tmp_path: Path) -> None:
    args = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    run = online("ppo", args=args, **ADAPTER)
    run.train()
    folder = tmp_path / "checkpoint-2"
    place = json.loads((folder / "rollout.json").read_text())
    assert (place["number"], place["given"], place["cursor"], place["prompts"]) == (1, 2, 2, 2)
    assert len(place["examples"]) == 8
    names = {path.name for path in folder.iterdir()}
    assert {"rollout.json", "rollout.safetensors", "critic.safetensors", "adapter_model.safetensors"} <= names
    assert not any("prefopt_" in name for name in names)
