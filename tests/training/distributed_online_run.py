"""Train online algorithms on the tiny model and write what each process ends with, of two or of one."""

import json
from pathlib import Path

import tiny
import torch
from accelerate import PartialState
from online_runs import ADAPTER, PROMPTS, Spy, logs, online, weights

import prefopt
from prefopt.core.errors import UsageError

ALGORITHMS = {
    "grpo": ({"passes": 2, "minibatches": 2}, {}),
    "ppo-adapter": ({"passes": 2, "critic": "adapter"}, ADAPTER),
    "ppo-head": ({"passes": 2, "critic": "head"}, ADAPTER),
    "online_dpo": ({"minibatches": 2}, {}),
}
STEPS = 4


def run(name: str, folder: Path, *, resume: bool = False) -> tuple[prefopt.Trainer, Spy]:
    hyperparameters, how = ALGORITHMS[name]
    algorithm = prefopt.get_algorithm(name.split("-")[0], **hyperparameters)
    args = {"output_dir": str(folder / name), "max_steps": STEPS, "save_strategy": "steps", "save_steps": 3}
    # Four prompts a step, on one process or two.
    accumulation = 4 // PartialState().num_processes
    args |= {"gradient_accumulation_steps": accumulation, "learning_rate": 1e-2, "max_grad_norm": 1.0}
    args |= {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    # Three prompts for two processes: one of them has nothing to evaluate in the end.
    # In double precision, so that sums in another order show where they are not the same sums.
    made = online(algorithm, model=tiny.model(0, torch.float64), args=args, eval_dataset=PROMPTS[:3], **how)
    spy = Spy(made)
    made.train(resume_from_checkpoint=str(folder / name / "checkpoint-3") if resume else None)
    return made, spy


def refusal(rank: int) -> str:
    """What a process says when the rewards of the first one hardly distinguish anything, and others nothing."""

    def dull(prompts: list, completions: list) -> list[float]:
        return [0.5 if rank or i else 1.0 for i in range(len(completions))]

    made = online(prefopt.get_algorithm("online_dpo", minibatches=20), reward=dull)
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
            "examples": [[one.prompt.tolist(), *(c.tolist() for c in one.completions)] for one in spy.examples[0]],
            "prompts": [group.prompt.prompt.tolist() for group in spy.groups[0]],
            "steps": {key: logs(made, key) for key in ("loss", "grad_norm", "reward")},
            "evaluation": {key: metrics[key] for key in ("eval_loss", "eval_reward")},
            "rewards": [reward for group in spy.groups[0] for reward in group.rewards],
        }
    results["refusal"] = refusal(state.process_index)
    (folder / f"rank-{state.process_index}.json").write_text(json.dumps(results))
