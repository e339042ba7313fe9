"""Short online runs on the tiny model."""

from typing import Any

import tiny
import torch
from helpers import trainer

import prefopt
from prefopt.rollouts import RolloutCollector

PROMPTS = [{"prompt": row["prompt"]} for row in tiny.pairs(8)]
ADAPTER = {"adapter": "lora", "lora": {"r": 4}}


def worth(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward that hardly ever ties: it likes words of the end of the list, and not too many of them."""
    return [sum((tiny.WORDS.index(w) % 7) / 5 - 0.5 for w in text.split() if w in tiny.WORDS) for text in completions]


def online(name: Any, *, args: dict | None = None, generation: dict | None = None, **options: Any) -> prefopt.Trainer:
    """A trainer of an online algorithm: two prompts a step, four completions each."""
    defaults = {"per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 1e-3, "seed": 3}
    options = {"reward": worth, "generation": {"n": 4, "max_new_tokens": 5} | (generation or {})} | options
    return trainer(name, options.pop("rows", PROMPTS), args=defaults | (args or {}), **options)


class Spy:
    """Keeps the groups and the examples of every rollout that is collected."""

    def __init__(self, run: prefopt.Trainer) -> None:
        self.groups: list[list] = []
        self.examples: list[list] = []
        collector = run.source.collector
        score, collect = collector.score, collector.collect

        def keep_scored(groups: list) -> list:
            self.groups.append(score(groups))
            return self.groups[-1]

        def keep_collected(*given: Any, **options: Any) -> list:
            self.examples.append(collect(*given, **options))
            return self.examples[-1]

        collector.score, collector.collect = keep_scored, keep_collected


def collector(run: prefopt.Trainer) -> RolloutCollector:
    return run.source.collector


def logs(run: prefopt.Trainer, name: str) -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry and "train_runtime" not in entry]


def weights(run: prefopt.Trainer) -> dict[str, torch.Tensor]:
    """Of the policy, the critic and what else is in memory."""
    own = {f"policy.{k}": v.detach().clone() for k, v in run.policy.named_parameters()}
    if run.source.critic is not None:
        own |= {f"critic.{k}": v for k, v in run.source.critic.state(run.policy).items()}
    if run.algorithm.schedule.renew_reference:
        own |= {f"reference.{k}": v for k, v in run.source.reference.state(run.policy).items()}
    return own
