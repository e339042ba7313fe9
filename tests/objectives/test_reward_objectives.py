"""Objectives that train reward models: values, identities and optima, and numbers computed by published code."""

import itertools
import math

import published
import pytest
import torch
from published import tensor
from torch import Tensor

import prefopt
from prefopt.core.batches import Completions, Pairs, Ranked
from prefopt.core.errors import UsageError
from prefopt.objectives import get_objective
from prefopt.verify.optimum import minimise

ENTRIES = published.entries("reward")
PAIRWISE = ("reward", "reward_margin")
RANKED = ("reward_kwise", "reward_best_of_k", "reward_regression")


def pairs(chosen, rejected, **labels) -> Pairs:
    return Pairs(chosen=Completions.of_rewards(chosen), rejected=Completions.of_rewards(rejected), **labels)


def ranked(rewards, group, *, scores=None, ranks=None) -> Ranked:
    return Ranked(
        completions=Completions.of_rewards(rewards),
        group=torch.tensor(group),
        scores=None if scores is None else tensor(scores),
        ranks=None if ranks is None else torch.tensor(ranks),
    )


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def both_ways(name: str, p: float, x: Tensor, **labels) -> Tensor:
    """The expected loss of one pair of which the first is preferred with probability p; x holds the two rewards."""
    one = get_objective(name) if isinstance(name, str) else name
    forth, back = pairs(x[:1], x[1:], **labels), pairs(x[1:], x[:1], **labels)
    return p * one(forth).mean() + (1 - p) * one(back).mean()


# Published code.


def entry(loss: str) -> dict:
    (found,) = [entry for entry in ENTRIES if entry["loss"] == loss]
    assert found["agrees"]
    return found


def test_bradley_terry_of_halos():
    one = entry("bt")
    loss = get_objective("bt")(pairs(tensor(one["inputs"]["chosen_score"]), tensor(one["inputs"]["rejected_score"])))
    torch.testing.assert_close(loss.mean(), tensor(one["outputs"]["loss"]), rtol=one["rtol"], atol=one["atol"])


def test_best_of_k_of_openai():
    one, objective = entry("best_of_k"), get_objective("best_of_k")
    for scores, best, expected in zip(
        one["inputs"]["scores"], one["inputs"]["best"], one["outputs"]["loss"], strict=True
    ):
        ranks = [1 if i == best else 2 + i for i in range(len(scores))]
        loss = objective(ranked(tensor(scores), [0] * len(scores), ranks=ranks)).mean()
        torch.testing.assert_close(loss, tensor(expected), rtol=one["rtol"], atol=one["atol"])


# Names and values.


def test_names():
    assert type(get_objective("bt")) is type(get_objective("bradley_terry")) is type(get_objective("reward"))
    assert get_objective("bt_margin").name == "reward_margin"
    assert get_objective("best_of_k").name == "reward_best_of_k"
    assert get_objective("rm_regression").name == "reward_regression"
    assert prefopt.get_algorithm("bt").name == "reward"


@pytest.mark.parametrize("name", ["reward", "reward_margin", "reward_kwise"])
def test_without_an_opinion_the_loss_is_log_2(name):
    zero = torch.zeros(3, dtype=torch.float64)
    batch = pairs(zero, zero, rated_margin=zero)
    assert get_objective(name)(batch).mean().item() == pytest.approx(math.log(2), abs=1e-15)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_best_of_k_without_an_opinion_is_log_k(k):
    batch = ranked(torch.zeros(k, dtype=torch.float64), [0] * k, ranks=[1, *range(2, k + 1)])
    assert get_objective("reward_best_of_k")(batch).mean().item() == pytest.approx(math.log(k), abs=1e-14)


@pytest.mark.parametrize("name", ["reward_kwise", "reward_best_of_k"])
def test_two_answers_are_a_pair(name):
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 9, dtype=torch.float64) * 3
    batch = pairs(chosen.requires_grad_(), rejected.requires_grad_())
    ours = get_objective(name)(batch).mean()
    plain = get_objective("reward")(batch).mean()
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=0)
    for a, b in zip(
        torch.autograd.grad(ours, [chosen, rejected]), torch.autograd.grad(plain, [chosen, rejected]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_margin_zero_is_plain():
    torch.manual_seed(1)
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64)
    margin = get_objective("reward_margin")
    plain = get_objective("reward")(pairs(chosen, rejected)).mean()
    assert margin(pairs(chosen, rejected, rated_margin=torch.zeros(5, dtype=torch.float64))).mean() == plain
    shifted = margin(pairs(chosen + 0.7, rejected, rated_margin=torch.full((5,), 0.7, dtype=torch.float64))).mean()
    torch.testing.assert_close(shifted, plain)


def test_only_centring_sees_a_constant():
    torch.manual_seed(2)
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64)
    shift = torch.randn(6, dtype=torch.float64)
    plain, centred = get_objective("reward"), get_objective("reward", centring=0.01)
    batch, moved = pairs(chosen, rejected), pairs(chosen + shift, rejected + shift)
    torch.testing.assert_close(plain(moved).mean(), plain(batch).mean())
    change = 0.01 * ((chosen + rejected + 2 * shift) ** 2 - (chosen + rejected) ** 2).mean()
    torch.testing.assert_close(centred(moved).mean() - centred(batch).mean(), change)


def test_kwise_averages_over_the_pairs_of_each_prompt():
    """A prompt with three answers weighs as much as one with two; a pair of equals is none."""
    rewards = tensor([0.3, -1.0, 2.0, 0.5, 0.1, 1.1])
    batch = ranked(rewards, [0, 1, 0, 1, 0, 0], scores=[3, 1, 2, 0, 1, 2])
    soft = torch.nn.functional.softplus
    order = [(0, 2), (0, 5), (0, 4), (2, 4), (5, 4)]
    first = sum(soft(rewards[b] - rewards[a]) for a, b in order) / len(order)
    second = soft(rewards[3] - rewards[1])
    torch.testing.assert_close(get_objective("reward_kwise")(batch).mean(), (first + second) / 2)


@pytest.mark.parametrize("name", ["reward_kwise", "reward_best_of_k"])
def test_a_prompt_without_a_preference_contributes_nothing(name):
    rewards = tensor([1.0, 0.0, 4.0, 9.0])
    alone = get_objective(name)(ranked(rewards[:2], [0, 0], scores=[1, 0])).mean()
    tied = get_objective(name)(ranked(rewards, [0, 0, 1, 1], scores=[1, 0, 5, 5])).mean()
    torch.testing.assert_close(tied, alone / 2)


def test_tied_bests_do_not_compete():
    rewards = tensor([1.0, 2.0, 0.5])
    found = get_objective("reward_best_of_k")(ranked(rewards, [0, 0, 0], ranks=[1, 1, 3])).mean()
    soft = torch.nn.functional.softplus
    torch.testing.assert_close(found, (soft(tensor(0.5 - 1.0)) + soft(tensor(0.5 - 2.0))) / 2)


def test_regression_is_a_mean_over_answers_or_over_pairs_and_prompts():
    rewards = tensor([1.0, 2.0, 0.0, 5.0])
    batch = ranked(rewards, [0, 0, 0, 1], scores=[0.0, 0.0, 1.0, 4.0])
    errors = [1.0, 2.0, -1.0, 1.0]
    rating = get_objective("reward_regression")(batch).mean().item()
    assert rating == pytest.approx(sum(e * e for e in errors) / 4)
    gaps = [(1 - 2) ** 2, (1 + 1) ** 2, (2 + 1) ** 2]
    difference = get_objective("reward_regression", target="difference")(batch).mean().item()
    assert difference == pytest.approx((sum(gaps) / 3 + 0) / 2)
    shifted = ranked(rewards + tensor([7.0, 7.0, 7.0, -2.0]), [0, 0, 0, 1], scores=[0.0, 0.0, 1.0, 4.0])
    assert get_objective("reward_regression", target="difference")(shifted).mean().item() == pytest.approx(difference)


# Optima.


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_minimiser_of_a_pair_is_the_logit(p):
    x = minimise(lambda x: both_ways("reward", p, x), tensor([0.4, -0.1]))
    assert (x[0] - x[1]).item() == pytest.approx(logit(p), abs=1e-8)


@pytest.mark.parametrize("p", [0.2, 0.7])
@pytest.mark.parametrize("centring", [0.01, 1.0])
def test_centring_puts_the_two_at_half_the_logit_on_either_side(p, centring):
    objective = get_objective("reward", centring=centring)
    x = minimise(lambda x: both_ways(objective, p, x), tensor([3.0, 2.0]))
    assert x.tolist() == pytest.approx([logit(p) / 2, -logit(p) / 2], abs=1e-7)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("margin", [0.0, 1 / 3, 2.0])
def test_the_minimiser_with_a_margin_has_a_closed_form(p, margin):
    m = tensor([margin])
    x = minimise(lambda x: both_ways("reward_margin", p, x, rated_margin=m), tensor([0.4, -0.1]))
    root = math.sqrt((1 - 2 * p) ** 2 + 4 * p * (1 - p) * math.exp(-2 * margin))
    z = math.log(((2 * p - 1) + root) / (2 * (1 - p) * math.exp(-margin)))
    assert (x[0] - x[1]).item() == pytest.approx(z, abs=1e-7)


TRUE = [0.9, -0.4, 1.6, 0.1]


def test_bradley_terry_preferences_give_the_reward_back_up_to_a_constant():
    """All pairs of four answers, with the probabilities of a Bradley–Terry judge."""
    true = tensor(TRUE)
    i, j = torch.triu_indices(4, 4, offset=1)
    p = torch.sigmoid(true[i] - true[j])

    def population(x):
        objective = get_objective("reward")
        forth = objective(pairs(x[i], x[j])).terms["preference"].values
        back = objective(pairs(x[j], x[i])).terms["preference"].values
        return (p * forth + (1 - p) * back).mean()

    x = minimise(population, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(x - x.mean(), true - true.mean(), rtol=0, atol=1e-7)


def rankings_of_three(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Every ranking of three of the answers, best first, [n 3], and its Plackett–Luce probability."""
    rankings = torch.tensor(list(itertools.permutations(range(len(rewards)), 3)))
    own = rewards[rankings]
    first, second = own[:, 0] - own.logsumexp(1), own[:, 1] - own[:, 1:].logsumexp(1)
    return rankings, (first + second).exp()


@pytest.mark.parametrize("name, rows", [("reward_kwise", 3), ("reward_best_of_k", 1)])
def test_rankings_give_the_reward_back_up_to_a_constant(name, rows):
    """Two answers of a Plackett–Luce ranking are ordered as Bradley–Terry says; its first is a softmax's pick."""
    true = tensor(TRUE)
    rankings, weights = rankings_of_three(true)
    group, ranks = torch.arange(len(rankings)).repeat_interleave(3).tolist(), [1, 2, 3] * len(rankings)

    def population(x):
        (term,) = get_objective(name)(ranked(x[rankings.flatten()], group, ranks=ranks)).terms.values()
        return (weights.repeat_interleave(rows) * term.values).sum()

    x = minimise(population, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(x - x.mean(), true - true.mean(), rtol=0, atol=1e-7)


def test_regression_finds_the_mean_rating():
    ratings = [1.0, 4.0, 4.0, 5.0]

    def population(x):
        return get_objective("reward_regression")(ranked(x.expand(4), [0, 1, 2, 3], scores=ratings)).mean()

    assert minimise(population, tensor([0.0])).item() == pytest.approx(3.5, abs=1e-9)


def test_regression_on_differences_is_least_squares():
    """Every pair of answers is rated twice, by people who disagree."""
    first, second = torch.tensor(list(itertools.permutations(range(4), 2))).T
    random = torch.Generator().manual_seed(4)
    ratings = torch.randn(len(first), 2, generator=random, dtype=torch.float64)
    objective = get_objective("reward_regression", target="difference")
    rows, group = torch.stack([first, second], 1).flatten(), torch.arange(len(first)).repeat_interleave(2).tolist()
    x = minimise(
        lambda x: objective(ranked(x[rows], group, scores=ratings.flatten().tolist())).mean(),
        torch.zeros(4, dtype=torch.float64),
    )
    # Row i of the normal equations: 2·(4 x_i − Σ x) = Σ of the differences that i is in.
    gaps = ratings[:, 0] - ratings[:, 1]
    own = torch.zeros(4, dtype=torch.float64).index_add(0, first, gaps).index_add(0, second, -gaps) / 8
    torch.testing.assert_close(x - x.mean(), own - own.mean(), rtol=0, atol=1e-9)


# What they need, and with what they go together.


@pytest.mark.parametrize("name", [*PAIRWISE, *RANKED])
def test_the_reward_is_the_models_own_and_no_log_probability_is_logged(name):
    objective = get_objective(name)
    assert objective.needs.rewards
    assert not objective.needs.reference
    rewards = tensor([0.5, -2.0])
    assert torch.equal(objective.reward(Completions.of_rewards(rewards)), rewards)
    batch = pairs(
        tensor([0.5]),
        tensor([-2.0]),
        rated_margin=tensor([0.1]),
        chosen_score=tensor([1.0]),
        rejected_score=tensor([0.0]),
    )
    metrics = objective(batch).metrics
    assert metrics["rewards/margins"].item() == 2.5
    assert not any("logps" in key for key in metrics)


def test_log_probabilities_are_refused():
    sums = Pairs.from_sums(chosen=tensor([-1.0]), rejected=tensor([-2.0]))
    with pytest.raises(UsageError, match="reward trains a reward model: pass rewards for every completion"):
        get_objective("reward")(sums)
    with pytest.raises(UsageError, match="reward_margin needs 'rated_margin'"):
        get_objective("reward_margin")(pairs(tensor([1.0]), tensor([0.0])))


def test_reward_models_are_summed_among_themselves_only():
    both = get_objective("reward + 0.5*reward_kwise")
    assert both.needs.rewards
    batch = pairs(tensor([0.3, 1.0]), tensor([0.8, -1.0]))
    torch.testing.assert_close(both(batch).mean(), 1.5 * get_objective("reward")(batch).mean())
    with pytest.raises(UsageError, match="reward trains a reward model and sft a policy: they cannot be summed"):
        get_objective("reward + 0.1*sft")
    with pytest.raises(UsageError, match="centring=-1 is out of range"):
        get_objective("reward", centring=-1)


def test_single_answers_are_of_use_to_ratings_only():
    assert get_objective("reward_regression").needs.singles
    assert not get_objective("reward_regression", target="difference").needs.singles
    assert not get_objective("reward_kwise").needs.singles
    assert not get_objective("reward_regression + reward_kwise").needs.singles
