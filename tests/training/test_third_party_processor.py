"""A rollout processor that nothing of prefopt is derived into: its KL in the reward, its metrics, its memory plan."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import tiny
import torch
from online_runs import ADAPTER, PROMPTS, Spy, logs, online, weights, worth

import prefopt
from prefopt.core.batches import Pairs, Rollouts
from prefopt.core.errors import UsageError
from prefopt.data import TokenizedExample
from prefopt.rollouts import Group, KLPenalty, Rollout, RolloutProcessor, example_of


@dataclass(frozen=True)
class BetterHalf:
    """Learns from the better half of a group only; r − β·k2 is the advantage of a whole completion."""

    beta: float = 0.3
    target: float = 1e-3

    batch: ClassVar[type] = Rollouts
    samplers: ClassVar[tuple[str, ...]] = ("policy",)
    compares: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"old_logps", "ref_logps"})

    @property
    def kl_penalty(self) -> KLPenalty:
        return KLPenalty(self.beta, self.target, horizon=10)

    def kl(self, rollout: Rollout) -> torch.Tensor:
        return 0.5 * (rollout.tokens("old_logps") - rollout.tokens("ref_logps")) ** 2

    def keep_group(self, group: Group) -> bool:
        return True

    def examples_per_prompt(self, n: int) -> int:
        return n // 2

    def __call__(self, rollout: Rollout) -> list[TokenizedExample]:
        groups = [better_half(group) for group in rollout.groups]
        kept = replace(rollout, groups=groups)
        total = kept.rewards - kept.kl_coef * torch.where(kept.mask, self.kl(kept), 0.0).sum(dim=1)
        return kept.examples(advantages=torch.where(kept.mask, total[:, None], 0.0))


def better_half(group: Group) -> Group:
    best = sorted(range(len(group.rewards)), key=lambda i: -group.rewards[i])[: len(group.rewards) // 2]
    samples, rewards, tokens = ([each[i] for i in best] for each in (group.samples, group.rewards, group.tokens))
    return Group(group.prompt, samples, rewards, tokens)


def algorithm(
    processor: RolloutProcessor, name: str = "better_half", objective: str = "reinforce"
) -> prefopt.Algorithm:
    known = prefopt.get_algorithm("rloo")
    loss = prefopt.get_objective(objective)
    told = {"name": "better_half", "recipe": known.recipe, "about": known.about}
    return prefopt.Algorithm(objective=loss, processor=processor, **told)


ARGS = {"max_steps": 4, "learning_rate": 1e-2}


def test_its_controller_moves_and_its_kl_is_logged() -> None:
    processor = BetterHalf()
    run = online(algorithm(processor), args=ARGS, **ADAPTER)
    spy, before = Spy(run), weights(run)
    run.train()
    assert any(not torch.equal(value, before[key]) for key, value in weights(run).items())
    # Its own estimate, summed over the tokens of every completion that was sampled.
    kls = []
    for groups in spy.groups:
        rollout = Rollout(groups, 5)
        kls.append(float(torch.where(rollout.mask, processor.kl(rollout), 0.0).sum(dim=1).mean()))
    assert kls[0] == pytest.approx(0.0, abs=1e-9)
    assert kls[-1] > processor.target
    assert logs(run, "kl") == pytest.approx(kls, rel=1e-5, abs=1e-9)
    # Two prompts of four completions each: β (1 + clip(KL/target − 1, ±0.2) · 8/10) after every rollout.
    betas = [processor.beta]
    for kl in kls:
        betas.append(betas[-1] * (1 + np.clip(kl / processor.target - 1, -0.2, 0.2) * 8 / 10))
    assert betas[-1] != betas[0]
    assert logs(run, "kl_coef") == pytest.approx(betas[:-1], rel=1e-6)
    assert run.source.collector.controller.coefficient == pytest.approx(betas[-1], rel=1e-6)
    # What is learned from has that coefficient in it, and is the better half.
    assert [len(examples) for examples in spy.examples] == [4] * 4
    last = spy.examples[-1][0]
    group = better_half(spy.groups[-1][0])
    kl = 0.5 * ((group.tokens[0]["old_logps"].astype(float) - group.tokens[0]["ref_logps"]) ** 2).sum()
    expected = group.rewards[0] - betas[-2] * kl
    assert last.labels["advantages"] == pytest.approx([expected] * len(last.completions[0]), abs=1e-5)


def test_its_plan_has_as_many_rows_as_it_makes() -> None:
    def training(one: prefopt.Algorithm, n: int) -> int:
        generation = {"n": n, "max_new_tokens": 6}
        options = {"args": {"per_device_train_batch_size": 2}, "reward": worth, "prompt_length": 4, "device": "cpu"}
        return prefopt.plan(tiny.model(), one, generation=generation, data={"max_length": 16}, **options)

    own, usual = training(algorithm(BetterHalf()), 8), training(prefopt.get_algorithm("rloo"), 4)
    assert own.tokens == usual.tokens
    assert own.moments["training"] == usual.moments["training"]
    assert training(prefopt.get_algorithm("rloo"), 8).tokens > own.tokens
    # It compares with the reference, and all of its completions are scored.
    assert own.reference == usual.reference > 0
    assert own.moments["rollout"] > usual.moments["rollout"]


class FirstAndLast(RolloutProcessor):
    """Derived for the defaults: no KL in the reward, everything kept."""

    batch = Pairs

    def __call__(self, rollout: Rollout) -> list[TokenizedExample]:
        return [example_of(group.prompt, group.samples[0], group.samples[-1]) for group in rollout.groups]


def test_the_defaults_are_enough_where_no_kl_is_in_the_reward() -> None:
    run = online(algorithm(dataclass(frozen=True)(FirstAndLast)(), objective="dpo"), args=ARGS, **ADAPTER)
    run.train()
    assert len(logs(run, "loss")) == 4
    assert not logs(run, "kl")
    assert run.source.collector.controller.coefficient == 0


@dataclass(frozen=True)
class Unfinished:
    batch: ClassVar[type] = Rollouts
    samplers: ClassVar[tuple[str, ...]] = ("policy",)

    def __call__(self, rollout: Rollout) -> list[TokenizedExample]:
        return rollout.examples()


@dataclass(frozen=True)
class Elsewhere(FirstAndLast):
    samplers: ClassVar[tuple[str, ...]] = ("policy", "critic")


@dataclass(frozen=True)
class Mixed(FirstAndLast):
    samplers: ClassVar[tuple[str, ...]] = ("policy", "mixture")


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (Unfinished(), r"Unfinished has no compares, needs, kl_penalty, .*: derive it from"),
        (Elsewhere(), r"samplers has 'critic', which is not one of policy, reference, mixture"),
        (Mixed(), "samples from the mixture, and has no mixture"),
    ],
)
def test_one_that_lacks_something_is_refused_before_anything_is_loaded(processor: object, message: str) -> None:
    for start in (online, lambda one: prefopt.plan(tiny.model(), one, PROMPTS, reward=worth)):
        with pytest.raises(UsageError, match=message) as caught:
            start(algorithm(processor))
        assert "\n" not in str(caught.value)
