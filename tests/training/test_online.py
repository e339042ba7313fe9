"""Completions of the policy as training data."""

from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from helpers import trainer

import prefopt
from prefopt.rewards.reward import make_reward
from prefopt.rollouts import BestOf, GenerationSettings, Group, Sample, TransformersGenerator

PROMPTS = [{"prompt": row["prompt"], "topic": f"t{i}"} for i, row in enumerate(tiny.pairs(8))]
GENERATION = {"n": 6, "max_new_tokens": 6}


def goodness(prompts: list, completions: list) -> list[float]:
    return [text.split().count("good") / 6 for text in completions]


def online(**options: object) -> prefopt.Trainer:
    args = {"per_device_train_batch_size": 8, "max_steps": 25, "learning_rate": 3e-2} | options.pop("args", {})
    defaults = {"reward": goodness, "generation": GENERATION, "adapter": "lora"}
    return trainer("rejection_sampling", PROMPTS, args=args, **(defaults | options))


def test_rejection_sampling_raises_the_reward() -> None:
    run = online()
    run.train()
    rewards = [entry["reward"] for entry in run.state.log_history if "reward" in entry]
    assert sum(rewards[-5:]) / 5 > rewards[0] + 0.3
    best = [entry["reward/best"] for entry in run.state.log_history if "reward" in entry]
    assert all(b >= r for b, r in zip(best, rewards, strict=True))


def test_every_step_samples_from_the_newest_weights() -> None:
    """With one prompt after another, greedy samples change as soon as the weights do."""
    run = online(generation={"n": 1, "max_new_tokens": 6, "temperature": 0.0}, args={"max_steps": 4})
    seen = []
    collate = run.scorer.counts
    run.scorer.counts = lambda batch: seen.append(batch.rows.input_ids.clone()) or collate(batch)
    run.train()
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairwise(seen))


def test_best_of_keeps_the_highest_rewards_and_the_first_of_a_tie() -> None:
    samples = [Sample(np.array([i], dtype=np.int32), str(i), True) for i in range(4)]
    prompt = online(args={"max_steps": 1}).train_dataset[0]
    group = Group(prompt, samples, [0.1, 0.9, 0.9, 0.5])
    assert [e.completions[0].tolist() for e in BestOf().of_group(group)] == [[1]]
    assert [e.completions[0].tolist() for e in BestOf(keep=3).of_group(group)] == [[1], [2], [3]]


def test_evaluation_samples_with_a_fixed_seed() -> None:
    run = online(eval_dataset=PROMPTS[:4], args={"max_steps": 1})
    state = torch.random.get_rng_state()
    first = run.evaluate()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    second = run.evaluate()
    assert first["eval_reward"] == second["eval_reward"]
    assert first["eval_loss"] == second["eval_loss"]


def test_the_reward_sees_prompts_completions_and_columns() -> None:
    calls = []

    def spy(prompts: list, completions: list, topic: list) -> list[float]:
        calls.append((prompts, completions, topic))
        return [0.0] * len(completions)

    online(reward=[(spy, 0.5), goodness], args={"max_steps": 1}).train()
    prompts, completions, topics = calls[0]
    assert len(prompts) == len(completions) == len(topics) == 48
    known = {row["prompt"]: row["topic"] for row in PROMPTS}
    assert [known[prompt] for prompt in prompts] == topics
    assert all("</s>" not in text and "<pad>" not in text for text in completions)


def test_weighted_rewards_add_up() -> None:
    reward = make_reward([(lambda p, c: [1.0, 2.0], 0.5), (lambda p, c: [10.0, 20.0], 2.0)])
    total, parts = reward(["a", "b"], ["c", "d"], {})
    assert total == [20.5, 41.0]
    assert len(parts) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(prefopt.core.errors.UsageError, match="rewards must be finite"):
        make_reward(lambda p, c: [value])(["a"], ["b"], {})


def test_sampling_follows_the_models_distribution() -> None:
    """First tokens of many samples against the softmax, with left padding and another prompt in the batch."""
    model, tokenizer = tiny.model(), tiny.tokenizer()
    prompts = [np.array([1, 7, 8, 9], dtype=np.int32), np.array([1, 12], dtype=np.int32)]
    torch.manual_seed(0)
    settings = GenerationSettings(n=2000, max_new_tokens=1, batch_size=4000)
    groups = TransformersGenerator(tokenizer).generate(model, prompts, settings)
    for prompt, group in zip(prompts, groups, strict=True):
        exact = model(torch.tensor(prompt[None].astype(np.int64))).logits[0, -1].softmax(-1).detach().numpy()
        counts = np.bincount([int(sample.ids[0]) for sample in group], minlength=len(exact)) / 2000
        assert np.abs(counts - exact).max() < 4 * np.sqrt(exact * (1 - exact) / 2000).max()
        assert np.abs(counts - exact).sum() < 0.25


def test_a_completion_that_ends_keeps_its_end_token_and_one_that_is_cut_has_none() -> None:
    torch.manual_seed(0)
    settings = GenerationSettings(n=64, max_new_tokens=8)
    groups = TransformersGenerator(tiny.tokenizer()).generate(
        tiny.model(), [np.array([1, 9], dtype=np.int32)], settings
    )
    ended = [sample for sample in groups[0] if sample.ended]
    cut = [sample for sample in groups[0] if not sample.ended]
    assert ended
    assert cut
    assert all(sample.ids[-1] == 2 and 2 not in sample.ids[:-1] for sample in ended)
    assert all(len(sample.ids) == 8 and 2 not in sample.ids for sample in cut)
