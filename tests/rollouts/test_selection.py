"""Which completions are learned from: selections at their limits, laws of rejection sampling, the KL in the reward."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import prefopt
from prefopt.algorithms.online import assemblies
from prefopt.core.batches import Rollouts
from prefopt.core.errors import UsageError
from prefopt.data import TokenizedExample
from prefopt.rollouts import (
    AboveThreshold,
    BestAndWorst,
    BestOf,
    DynamicSampling,
    Gae,
    GenerationSettings,
    Group,
    Mixture,
    PolicyAgainstReference,
    Rollout,
    Sample,
    StatisticalRejection,
    TransformersGenerator,
)
from prefopt.rollouts.draws import SampleKeys
from prefopt.rollouts.kl_controller import KLController
from prefopt.rollouts.selection import accept_without_replacement, accepted
from prefopt.training.build import check_assembly
from prefopt.training.spec import RunSpec


def group(rewards: list[float], ids: list[list[int]] | None = None, **tokens: list[list[float]]) -> Group:
    """Completions [10], [11], … with those rewards, and per-token values by name."""
    ids = ids or [[10 + i] for i in range(len(rewards))]
    samples = [Sample(np.array(own, dtype=np.int32), str(own), True) for own in ids]
    prompt = TokenizedExample(id=7, prompt=np.array([1, 8], dtype=np.int32), completions=(), masks=None, labels={})
    arrays = [
        {name: np.array(values[i], dtype=np.float32) for name, values in tokens.items()} for i in range(len(rewards))
    ]
    return Group(prompt, samples, rewards, arrays if tokens else [])


def chosen(examples: list[TokenizedExample]) -> list[list[int]]:
    """The first token of every completion of every example."""
    return [[int(ids[0]) for ids in example.completions] for example in examples]


# ---- best of n, thresholds, pairs --------------------------------------------------------------------------------


def test_best_of_n_takes_the_highest_and_of_a_tie_the_first() -> None:
    rewards = [0.1, 0.9, -2.0, 0.9, 0.5]
    assert chosen(BestOf().of_group(group(rewards))) == [[11]]
    assert chosen(BestOf(keep=4).of_group(group(rewards))) == [[11], [13], [14], [10]]
    assert chosen(BestOf(keep=9).of_group(group([1.0, 2.0]))) == [[11], [10]]


def test_a_threshold_is_reached_by_equality_and_a_prompt_gives_no_more_than_its_share() -> None:
    rewards = [0.5, 0.49, 1.0, 0.7]
    source = AboveThreshold(threshold=0.5)
    assert chosen(source.of_group(group(rewards))) == [[10], [12], [13]]
    assert chosen(AboveThreshold(threshold=0.5, keep=2).of_group(group(rewards))) == [[10], [12]]
    assert source.keep_group(group(rewards))
    assert not source.keep_group(group([0.1, 0.2]))


def test_the_best_is_chosen_over_the_worst_with_their_rewards() -> None:
    (pair,) = BestAndWorst().of_group(group([0.1, 0.9, -2.0, 0.9]))
    assert chosen([pair]) == [[11, 12]]
    assert (pair.labels["chosen_score"], pair.labels["rejected_score"]) == (0.9, -2.0)
    assert not BestAndWorst().keep_group(group([0.3, 0.3, 0.3]))


def test_xpo_says_which_of_its_completions_the_reference_sampled() -> None:
    """The first half is the policy's, the second the reference's; i stands against i, and a tie is no pair."""
    pairs = PolicyAgainstReference().of_group(group([1.0, 0.0, 3.0, 0.0, 2.0, 3.0]))
    assert chosen(pairs) == [[10, 13], [14, 11]]
    assert [pair.labels["sampled_by_reference"] for pair in pairs] == [False, True]
    assert not PolicyAgainstReference().keep_group(group([1.0, 1.0]))


def test_a_selection_goes_through_all_groups_of_a_rollout() -> None:
    rollout = Rollout([group([0.0, 1.0]), group([5.0, 4.0])], max_new_tokens=3)
    assert chosen(BestAndWorst()(rollout)) == [[11, 10], [10, 11]]


# ---- rejection sampling ------------------------------------------------------------------------------------------


def test_published_rejection_sampling_at_its_limits() -> None:
    rewards = [0.3, 2.0, -1.0, 1.5, 1.9]
    random = np.random.default_rng(0)
    assert accept_without_replacement(rewards, 3, math.inf, random) == [0, 1, 2]
    assert accept_without_replacement(rewards, 5, 1e9, random) == [0, 1, 2, 3, 4]
    assert accept_without_replacement(rewards, 3, 1e-9, random) == [1, 4, 3]
    assert sorted(accept_without_replacement(rewards, 99, 0.5, random)) == [0, 1, 2, 3, 4]


def test_published_rejection_sampling_against_its_own_law() -> None:
    """Of two candidates with rewards 0 and −d the first accepted is the worse one with probability p/(1 + 0): in a
    pass in order [worse, better] the worse comes first with p = exp(−d/β), and never if the better is asked first."""
    draws, d, beta = 20_000, 0.8, 0.5
    p = math.exp(-d / beta)
    random = np.random.default_rng(1)
    first = [accept_without_replacement([-d, 0.0], 1, beta, random)[0] for _ in range(draws)]
    assert abs(np.mean(np.array(first) == 0) - p) < 4 * math.sqrt(p * (1 - p) / draws)
    assert all(accept_without_replacement([0.0, -d], 1, beta, random) == [0] for _ in range(200))


def test_after_a_pass_the_bound_is_that_of_the_candidates_left() -> None:
    """With the better one gone, the next pass accepts the worse for sure, however bad it is."""
    random = np.random.default_rng(2)
    assert all(accept_without_replacement([-1e3, 0.0, -2e3], 3, 1.0, random) == [1, 0, 2] for _ in range(20))


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_independent_rejection_samples_the_optimal_policy(beta: float) -> None:
    """The law of the accepted is π_ref·exp(r/β)/Z, and E exp((r − r_max)/β) of all are accepted."""
    random = np.random.default_rng(3)
    reference = np.array([0.4, 0.3, 0.2, 0.05, 0.05])
    rewards = np.array([-0.5, 0.2, 1.0, 1.3, -2.0])
    drawn = random.choice(5, size=400_000, p=reference)
    bound = rewards.max() + 0.2
    taken = drawn[accepted(rewards[drawn], bound, beta, random)]
    rate = float(reference @ np.exp((rewards - bound) / beta))
    assert abs(len(taken) / len(drawn) - rate) < 4 * math.sqrt(rate * (1 - rate) / len(drawn))
    optimal = reference * np.exp(rewards / beta)
    optimal /= optimal.sum()
    found = np.bincount(taken, minlength=5) / len(taken)
    assert (np.abs(found - optimal) < 4 * np.sqrt(optimal * (1 - optimal) / len(taken))).all()
    assert np.abs(reference - optimal).max() > 20 / math.sqrt(len(taken))  # so the bound above would see the difference


def test_rso_pairs_distinct_candidates_once_and_always_alike() -> None:
    ids = [[10], [11], [10], [12, 5], [12]]
    candidates = group([0.0, 1.0, 0.0, 2.0, 3.0], ids)
    source = StatisticalRejection(temperature=1e9, accept=4)
    examples = source.of_group(candidates)
    together = [tuple(ids.tolist()) for example in examples for ids in example.completions]
    # The four distinct ones, in two pairs, the higher reward chosen.
    assert sorted(together) == [(10,), (11,), (12,), (12, 5)]
    worth = {(10,): 0.0, (11,): 1.0, (12, 5): 2.0, (12,): 3.0}
    for example in examples:
        better, worse = (worth[tuple(ids.tolist())] for ids in example.completions)
        assert better > worse
        assert (example.labels["chosen_score"], example.labels["rejected_score"]) == (better, worse)
    again = source.of_group(candidates)
    assert [e.completions[0].tolist() for e in again] == [e.completions[0].tolist() for e in examples]
    assert source.keep_group(candidates)
    assert not source.keep_group(group([1.0, 1.0, 1.0, 1.0]))


def test_rso_near_zero_temperature_accepts_the_best() -> None:
    examples = StatisticalRejection(temperature=1e-6, accept=2).of_group(group([0.0, 3.0, 1.0, 2.0]))
    assert chosen(examples) == [[11, 13]]


# ---- the KL in the reward ----------------------------------------------------------------------------------------


def adaptive(**changes: float) -> KLController:
    return KLController(Gae(kl_coef=0.2, kl_controller="adaptive", **changes).kl_penalty)


def test_the_adaptive_coefficient_follows_the_published_rule() -> None:
    """Ziegler et al. 2019, 2.2: unchanged at the target, moved by a clipped proportional error times n/horizon."""
    for kl, error in [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (600.0, 0.2), (7.2, 0.2), (0.0, -0.2), (-3.0, -0.2)]:
        controller = adaptive()
        controller.update(kl, 64)
        assert controller.coefficient == pytest.approx(0.2 * (1 + error * 64 / 10_000), rel=1e-12)
    controller = adaptive(kl_target=2.0, kl_horizon=100)
    controller.update(2.2, 50)
    controller.update(1.0, 25)
    assert controller.coefficient == pytest.approx(0.2 * 1.05 * 0.95, rel=1e-12)


def test_the_coefficient_never_turns_negative_and_a_fixed_one_never_moves() -> None:
    controller = adaptive(kl_horizon=10)
    controller.update(0.0, 1000)
    assert controller.coefficient == 0.0
    fixed = KLController(Gae(kl_coef=0.2).kl_penalty)
    fixed.update(600.0, 64)
    assert fixed.coefficient == 0.2
    assert KLController(BestOf().kl_penalty).coefficient == 0.0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_in_the_reward_is_the_estimator_that_is_asked_for(estimator: str) -> None:
    """γ = λ = 1 and a critic that says 0: the advantage of a token is the sum of the rewards from it on."""
    old, ref = [[-1.0, -0.5, -2.0], [-0.3]], [[-1.5, -0.1, -2.0], [-0.9]]
    values = [[0.0] * 3, [0.0]]
    one = group([1.0, -2.0], [[10, 11, 12], [13]], old_logps=old, ref_logps=ref, values=values)
    source = Gae(kl_estimator=estimator, lam=1.0, whiten_advantages=False)
    first, second = source(Rollout([one], max_new_tokens=3, kl_coef=0.5))
    formula = {"k1": lambda x: x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(-x) - 1 + x}[estimator]
    penalties = [0.5 * formula(a - b) for a, b in zip(old[0], ref[0], strict=True)]
    assert first.labels["advantages"] == pytest.approx([1 - sum(penalties[t:]) for t in range(3)], abs=1e-6)
    assert second.labels["advantages"] == pytest.approx([-2 - 0.5 * formula(0.6)], abs=1e-6)
    assert first.labels["returns"] == pytest.approx(first.labels["advantages"], abs=1e-6)


def test_the_coefficient_of_the_rollout_counts_and_not_that_of_the_settings() -> None:
    one = group([1.0], [[10]], old_logps=[[-1.0]], ref_logps=[[-3.0]], values=[[0.25]])
    (example,) = Gae(kl_coef=0.7, whiten_advantages=False)(Rollout([one], max_new_tokens=3, kl_coef=0.1))
    assert example.labels["advantages"] == pytest.approx([1 - 0.1 * 2 - 0.25])
    assert example.labels["returns"] == pytest.approx([1 - 0.1 * 2])
    assert example.labels["old_values"] == pytest.approx([0.25])


def test_dapo_takes_reward_from_completions_near_the_limit() -> None:
    """L_max = 10, L_c = 4: nothing up to 6 tokens, a quarter a token after that."""
    ids = [[5] * 6, [5] * 7, [5] * 10, [5] * 2]
    one = group([1.0, 1.0, 1.0, 0.0], ids, old_logps=[[0.0] * len(own) for own in ids])
    source = DynamicSampling(overlong=0.4, scale="none")
    rewards = np.array([1.0, 0.75, 0.0, 0.0])
    examples = source(Rollout([one], max_new_tokens=10))
    for example, expected in zip(examples, rewards - rewards.mean(), strict=True):
        assert example.labels["advantages"] == pytest.approx([expected] * len(example.completions[0]), abs=1e-6)


# ---- the mixture of Nash-MD --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_mixture_samples_from_mixed_logits(weight: float) -> None:
    policy, reference = tiny.model(0), tiny.model(1)
    prompts = [np.array([1, 7, 8, 9], dtype=np.int32), np.array([1, 12], dtype=np.int32)]

    def next_logits(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        return reference(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions).logits[:, -1]

    torch.manual_seed(5)
    draws = 2000
    settings = GenerationSettings(n=draws, max_new_tokens=1, batch_size=2 * draws)
    generator = TransformersGenerator(tiny.tokenizer())
    groups = generator.generate(policy, prompts, settings, mixture=Mixture(next_logits, weight))
    for prompt, samples in zip(prompts, groups, strict=True):
        ids = torch.tensor(prompt[None].astype(np.int64))
        with torch.no_grad():
            own, other = policy(ids).logits[0, -1], reference(ids).logits[0, -1]
        logps = ((1 - weight) * own + weight * other).log_softmax(-1).numpy()
        counts = np.bincount([int(sample.ids[0]) for sample in samples], minlength=len(logps)) / draws
        exact = np.exp(logps)
        assert (np.abs(counts - exact) < 4.5 * np.sqrt(exact * (1 - exact) / draws) + 1e-3).all()
        assert max(abs(float(sample.logps[0]) - logps[sample.ids[0]]) for sample in samples) < 1e-5


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """A model that, unlike the tiny one, knows absolute positions: left padding must not move them."""
    torch.manual_seed(seed)
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape)).eval()


def test_left_padding_does_not_move_the_positions_of_cached_prompts() -> None:
    prompts = [np.array(ids, dtype=np.int32) for ids in ([1, 7, 8, 9, 10], [1, 12])]
    model = gpt2()
    groups = TransformersGenerator(tiny.tokenizer()).generate(model, prompts, GenerationSettings(n=3, max_new_tokens=5))
    for prompt, samples in zip(prompts, groups, strict=True):
        for sample in samples:
            ids = torch.tensor(np.concatenate([prompt, sample.ids])[None].astype(np.int64))
            with torch.no_grad():
                logps = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            exact = logps.gather(-1, ids[0, len(prompt) :, None])[:, 0]
            np.testing.assert_allclose(sample.logps, exact.numpy(), atol=1e-4)


def test_a_prompt_that_is_read_makes_logits_of_one_position_alone() -> None:
    prompts = [np.array([1, *range(7, 17)], dtype=np.int32), np.array([1, 12], dtype=np.int32)]
    model, rows = tiny.model(0), []
    model.lm_head.register_forward_hook(lambda _, __, logits: rows.append(logits.shape[:-1].numel()))
    TransformersGenerator(tiny.tokenizer()).generate(model, prompts, GenerationSettings(n=3, max_new_tokens=2))
    assert rows[0] == len(prompts)
    assert max(rows) == 3 * len(prompts)


@pytest.mark.parametrize("make", [tiny.model, gpt2])
def test_a_mixture_follows_both_models_over_several_tokens(make: Callable[[], torch.nn.Module]) -> None:
    """The log-probability of every token of every completion, recomputed from whole sequences."""
    run = nash_md(make())
    collector = run.source.collector
    with torch.no_grad():
        for name, value in run.policy.named_parameters():
            if "1." in name:
                value.add_(0.1 * torch.randn_like(value))
    examples = [run.train_dataset[i] for i in range(3)]
    torch.manual_seed(0)
    collector.settings = GenerationSettings(n=2, max_new_tokens=5)
    drawn = collector._draw("mixture", [example.prompt for example in examples], SampleKeys.fresh(len(examples)))
    other = run.reference.model
    apart = 0.0
    for example, samples in zip(examples, drawn, strict=True):
        for sample in samples:
            ids = torch.tensor(np.concatenate([example.prompt, sample.ids])[None].astype(np.int64))
            with torch.no_grad():
                own, ref = run.policy(ids).logits[0], other(ids).logits[0]
            start, target = len(example.prompt) - 1, torch.from_numpy(sample.ids.astype(np.int64))[:, None]
            mixed = (0.6 * own + 0.4 * ref)[start:-1].log_softmax(-1).gather(-1, target)[:, 0]
            alone = own[start:-1].log_softmax(-1).gather(-1, target)[:, 0]
            np.testing.assert_allclose(sample.logps, mixed.numpy(), atol=1e-4)
            apart = max(apart, float((mixed - alone).abs().max()))
    assert apart > 1e-2


def nash_md(model: torch.nn.Module) -> prefopt.Trainer:
    return prefopt.Trainer(
        model=model,
        algorithm=prefopt.get_algorithm("nash_md", mixture=0.4),
        train_dataset=[{"prompt": row["prompt"]} for row in tiny.pairs(3)],
        processing_class=tiny.tokenizer(),
        reward=lambda prompts, completions: [0.0] * len(completions),
        args={"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "report_to": "none"},
    )


# ---- how many examples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("name", sorted(assemblies()))
def test_a_prompt_yields_as_many_examples_as_are_planned_for(name: str, n: int) -> None:
    """With rewards that all differ; a plan must not be below it."""
    processor = prefopt.get_algorithm(name).processor
    tokens = {key: [[-1.0]] * n for key in ("old_logps", "ref_logps", "values")}
    one = group([1.0 + 0.1 * i for i in range(n)], **tokens)
    assert len(processor(Rollout([one], 8))) == processor.examples_per_prompt(n)


# ---- one completion ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(assemblies()))
def test_what_compares_completions_is_not_given_one_alone(name: str) -> None:
    algorithm = prefopt.get_algorithm(name, **({"objective": "dpo"} if name == "online" else {}))

    def check(generation: dict | GenerationSettings) -> None:
        check_assembly(algorithm, RunSpec(model="m", algorithm=algorithm, reward="r", generation=generation))

    check({"n": 2})
    if algorithm.processor.compares == 1:
        check({"n": 1})
        return
    with pytest.raises(UsageError, match=f"{name} compares completions of the same prompt.*--n.* to 2 or more"):
        check({"n": 1})
    with pytest.raises(UsageError, match="compares"):
        check(GenerationSettings(n=1))
    # That there is nothing to learn is so, whatever the reward.
    without_kl = {"kl_coef": 0.0} if hasattr(algorithm.processor, "kl_coef") else {}
    processor = dataclasses.replace(algorithm.processor, **without_kl)
    examples = processor(Rollout([group([0.7], old_logps=[[-1.0]])], 8))
    assert len(examples) == (processor.batch is Rollouts)
    assert all((example.labels["advantages"] == 0).all() for example in examples)


def test_one_completion_alone_is_of_use_with_a_baseline_of_the_batch_only() -> None:
    assert prefopt.get_algorithm("reinforce_pp").processor.compares == 1
    assert prefopt.get_algorithm("reinforce_pp", baseline="group").processor.compares == 2
