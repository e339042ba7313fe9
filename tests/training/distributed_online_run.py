"""Train online algorithms on the tiny model and write what each of two processes ends with."""

import json
from pathlib import Path

import torch
from accelerate import PartialState
from online_runs import ADAPTER, PROMPTS, Spy, logs, online, weights, worth

import prefopt
from prefopt.core.errors import UsageError

ALGORITHMS = {
    "grpo": ({"passes": 2, "minibatches": 2}, {}),
    "ppo-adapter": ({"passes": 2, "critic": "adapter"}, ADAPTER),
    "ppo-head": ({"passes": 2, "critic": "head"}, ADAPTER),
}
STEPS = 4


def run(name: str, folder: Path, *, resume: bool = False) -> tuple[prefopt.Trainer, Spy]:
    hyperparameters, how = ALGORITHMS[name]
    algorithm = prefopt.get_algorithm(name.split("-")[0], **hyperparameters)
    args = {"output_dir": str(folder / name), "max_steps": STEPS, "save_strategy": "steps", "save_steps": 3}
    args |= {"gradient_accumulation_steps": 2, "learning_rate": 1e-2, "max_grad_norm": 1.0}
    args |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    # Three prompts for two processes: one of them has nothing to evaluate in the end.
    made = online(algorithm, args=args, eval_dataset=PROMPTS[:3], **how)
    spy = Spy(made)
    made.train(resume_from_checkpoint=str(folder / name / "checkpoint-3") if resume else None)
    return made, spy


def refusal(rank: int) -> str:
    """What a process says when the rewards of the second one distinguish nothing."""
    made = online("online_dpo", reward=worth if rank == 0 else lambda prompts, completions: [0.5] * len(completions))
    try:
        made.train()
    except UsageError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    results = {"ranks": state.num_processes}
    for name in ALGORITHMS:
        made, spy = run(name, folder)
        metrics = made.evaluate()
        again, _ = run(name, folder, resume=True)
        results[name] = {
            "weights": {key: value.double().sum().item() for key, value in weights(made).items()},
            "resumed": {key: value.double().sum().item() for key, value in weights(again).items()},
            "advantages": [v for example in spy.examples[0] for v in example.labels["advantages"].tolist()],
            "prompts": [example.prompt.tolist() for example in spy.examples[0][::4]],
            "first": [example.completions[0].tolist() for example in spy.examples[0]],
            "evaluation": {key: metrics[key] for key in ("eval_loss", "eval_reward")},
            "reward": logs(made, "reward"),
            "rewards": [reward for group in spy.groups[0] for reward in group.rewards],
        }
    results["refusal"] = refusal(state.process_index)
    (folder / f"rank-{state.process_index}.json").write_text(json.dumps(results))
