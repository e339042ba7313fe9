"""Objectives that train reward models: published numbers, what minimises them, and what they have in common."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.batches import Completions, Pairs, Ranked
from prefopt.objectives import get_objective
from prefopt.verify.optimum import minimise

ENTRIES = {
    entry["loss"]: entry
    for entry in json.loads((Path(__file__).parents[1] / "fixtures" / "author_code_rewards.json").read_text())
}
CANDIDATES = 4
SEEDS = (0, 1, 2)


def tensor(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(found: Tensor, expected, tolerance: float = 1e-8) -> None:
    expected = expected if isinstance(expected, Tensor) else tensor(expected)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def scored(rewards: Tensor) -> Completions:
    """What a reward model gives; log-probabilities, which are not to be read, are NaN."""
    nothing = torch.full(rewards.shape, float("nan"), dtype=rewards.dtype)
    return Completions(logps=nothing, lengths=torch.ones(rewards.shape, dtype=torch.long), rewards=rewards)


def pairs(chosen: Tensor, rejected: Tensor, **labels: Tensor) -> Pairs:
    return Pairs(chosen=scored(chosen), rejected=scored(rejected), **labels)


def ranked(rewards: Tensor, group: Tensor, **order: Tensor) -> Ranked:
    return Ranked(completions=scored(rewards), group=group, **order)


def values(objective, batch) -> Tensor:
    (term,) = objective(batch).terms.values()
    return term.values


# --- published code ------------------------------------------------------------------------------------------------


def test_bradley_terry_of_halos() -> None:
    entry = ENTRIES["bt"]
    chosen, rejected = (tensor(entry["inputs"][f"{side}_score"]).requires_grad_() for side in ("chosen", "rejected"))
    loss = get_objective("reward")(pairs(chosen, rejected)).mean()
    assert_close(loss, entry["outputs"]["loss"], 1e-9)


def test_best_of_k_of_openai() -> None:
    entry = ENTRIES["best_of_k"]
    scores, best = tensor(entry["inputs"]["scores"]), torch.tensor(entry["inputs"]["best"])
    group = torch.arange(len(scores)).repeat_interleave(scores.shape[1])
    ranks = torch.where(torch.arange(scores.shape[1]) == best[:, None], 1, 2).flatten()
    found = values(get_objective("reward_best_of_k"), ranked(scores.flatten(), group, ranks=ranks))
    assert_close(found, entry["outputs"]["loss"], 1e-9)


# --- what minimises them -------------------------------------------------------------------------------------------


def world(seed: int) -> tuple[Tensor, Tensor]:
    """True rewards of a few answers, and how often each is among those that are compared."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(CANDIDATES, generator=random, dtype=torch.float64)  # noqa: E731
    return draw(), torch.softmax(draw(), 0)


def up_to_a_constant(found: Tensor, rewards: Tensor) -> None:
    assert_close(found - found.mean(), rewards - rewards.mean())


def ordered() -> Tensor:
    return torch.tensor(list(itertools.permutations(range(CANDIDATES), 2))).T


@pytest.mark.parametrize("seed", SEEDS)
def test_bradley_terry_finds_the_rewards_up_to_a_constant(seed: int) -> None:
    rewards, often = world(seed)
    first, second = ordered()
    weights = often[first] * often[second] * torch.sigmoid(rewards[first] - rewards[second])
    found = minimise(
        lambda r: (weights * values(get_objective("reward"), pairs(r[first], r[second]))).sum(),
        torch.zeros(CANDIDATES, dtype=torch.float64),
    )
    up_to_a_constant(found, rewards)


@pytest.mark.parametrize("p", [0.3, 0.9])
@pytest.mark.parametrize("centring", [0.01, 1.0])
def test_centring_makes_a_pair_opposite(p: float, centring: float) -> None:
    objective = get_objective("reward", centring=centring)
    found = minimise(
        lambda r: p * objective(pairs(r[:1], r[1:])).mean() + (1 - p) * objective(pairs(r[1:], r[:1])).mean(),
        torch.zeros(2, dtype=torch.float64),
    )
    half = math.log(p / (1 - p)) / 2
    assert_close(found, [half, -half])


@pytest.mark.parametrize("margin", [0.0, 1 / 3, 2.0])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_the_gap_under_a_margin(p: float, margin: float) -> None:
    objective, m = get_objective("reward_margin"), tensor([margin])
    found = minimise(
        lambda r: (
            p * objective(pairs(r[:1], r[1:], rated_margin=m)).mean()
            + (1 - p) * objective(pairs(r[1:], r[:1], rated_margin=m)).mean()
        ),
        torch.zeros(2, dtype=torch.float64),
    )
    root = math.sqrt((1 - 2 * p) ** 2 + 4 * p * (1 - p) * math.exp(-2 * margin))
    closed_form = math.log((2 * p - 1 + root) / (2 * (1 - p) * math.exp(-margin)))
    assert_close(found[0] - found[1], closed_form)


def all_rankings(rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every ranking of three answers and its Plackett–Luce probability: rows, groups, weights."""
    rankings = torch.tensor(list(itertools.permutations(range(CANDIDATES), 3)))
    own = rewards[rankings]
    pick = own[:, 0] - own.logsumexp(1)
    second = own[:, 1] - own[:, 1:].logsumexp(1)
    return rankings.flatten(), torch.arange(len(rankings)).repeat_interleave(3), (pick + second).exp()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["reward_kwise", "reward_best_of_k"])
def test_rankings_find_the_rewards_up_to_a_constant(name: str, seed: int) -> None:
    """Two answers of a Plackett–Luce ranking are ordered as Bradley–Terry says; its first is a softmax's pick."""
    rewards, _ = world(seed)
    rows, group, weights = all_rankings(rewards)
    ranks = torch.tensor([1, 2, 3]).repeat(len(weights))
    of_pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    per_row = {"reward_kwise": weights.repeat_interleave(len(of_pairs)), "reward_best_of_k": weights}[name]
    found = minimise(
        lambda r: (per_row * values(get_objective(name), ranked(r[rows], group, ranks=ranks))).sum(),
        torch.zeros(CANDIDATES, dtype=torch.float64),
    )
    up_to_a_constant(found, rewards)


@pytest.mark.parametrize("target", ["rating", "difference"])
def test_a_regression_finds_the_mean_rating(target: str) -> None:
    """Four answers, each rated by several people, two of them at a time."""
    rewards, _ = world(3)
    random = torch.Generator().manual_seed(4)
    first, second = ordered()
    ratings = rewards[torch.stack([first, second])] + torch.randn(2, len(first), generator=random, dtype=torch.float64)
    rows, group = torch.stack([first, second], 1).flatten(), torch.arange(len(first)).repeat_interleave(2)
    objective = get_objective("reward_regression", target=target)
    found = minimise(
        lambda r: objective(ranked(r[rows], group, scores=ratings.T.flatten())).mean(),
        torch.zeros(CANDIDATES, dtype=torch.float64),
    )
    if target == "rating":
        mean = [ratings.T.flatten()[rows == i].mean() for i in range(CANDIDATES)]
        assert_close(found, torch.stack(mean))
        return
    # Least squares on differences: every pair is compared twice, so that row i is 2(4 r_i − Σ r) = Σ differences.
    difference = ratings[0] - ratings[1]
    own = torch.zeros(CANDIDATES, dtype=torch.float64).index_add(0, first, difference).index_add(0, second, -difference)
    up_to_a_constant(found, own / (2 * CANDIDATES))


# --- what they have in common --------------------------------------------------------------------------------------


def test_with_two_answers_all_are_bradley_terry() -> None:
    rewards = torch.randn(6, 2, dtype=torch.float64)
    batch = pairs(rewards[:, 0], rewards[:, 1], rated_margin=torch.zeros(6, dtype=torch.float64))
    expected = -logsigmoid(rewards[:, 0] - rewards[:, 1])
    for name in ("reward", "reward_margin", "reward_kwise", "reward_best_of_k"):
        assert_close(get_objective(name)(batch).mean(), expected.mean(), 1e-12)


def test_k_answers_weigh_no_more_than_two() -> None:
    rewards, group = torch.randn(7, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    ranks = torch.tensor([1, 2, 3, 4, 3, 1, 2])
    found = get_objective("reward_kwise")(ranked(rewards, group, ranks=ranks)).mean()
    means = []
    for g in (0, 1):
        order = rewards[group == g][ranks[group == g].argsort()]
        means.append(torch.stack([-logsigmoid(a - b) for a, b in itertools.combinations(order, 2)]).mean())
    assert_close(found, torch.stack(means).mean(), 1e-12)


@pytest.mark.parametrize("name, expected", [("reward_kwise", math.log(2)), ("reward_best_of_k", math.log(3))])
def test_without_rewards(name: str, expected: float) -> None:
    batch = ranked(torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.long), ranks=torch.tensor([2, 1, 3]))
    assert_close(get_objective(name)(batch).mean(), expected, 1e-12)


def test_the_reward_is_the_model_s_own() -> None:
    rewards = torch.randn(4, dtype=torch.float64)
    for name in ("reward", "reward_margin", "reward_kwise", "reward_best_of_k", "reward_regression"):
        assert torch.equal(get_objective(name).reward(scored(rewards)), rewards)
