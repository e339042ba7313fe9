"""Rewards to advantages: against scalar references row by row, published code, identities, and poisoned padding."""

import math

import pytest
import torch
from mpmath import fsum, mp, mpf, sqrt
from published import of_rollouts, tensor

from prefopt.core.policy_gradient import kl_estimate
from prefopt.rollouts.advantages import gae, leave_one_out, relative_to_group, reward_to_tokens, rewards_to_go, whiten

NAN = float("nan")
SEEDS = range(6)


def assert_close(found, expected, tolerance=1e-12):
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


class Rows:
    """Rows of different lengths with holes, and tensors of them with NaN wherever the mask is False."""

    def __init__(self, seed, rows=4, width=7):
        self.random = torch.Generator().manual_seed(seed)
        self.mask = torch.zeros(rows, width, dtype=torch.bool)
        for row in range(rows):
            length = int(torch.randint(1, width + 1, (), generator=self.random))
            self.mask[row, :length] = torch.rand(length, generator=self.random) > 0.25
            self.mask[row, 0] |= not self.mask[row].any()

    def column(self):
        return torch.randn(self.mask.shape, generator=self.random, dtype=torch.float64).masked_fill(~self.mask, NAN)

    def per_row(self):
        return torch.randn(len(self.mask), generator=self.random, dtype=torch.float64)

    def lists(self, values):
        """The values that count of each row, as exact numbers."""
        return [[mpf(x) for x in row[mask].tolist()] for row, mask in zip(values, self.mask, strict=True)]

    def agrees(self, found, expected, tolerance=1e-12):
        """Equal to lists over the tokens that count, and 0 everywhere else."""
        assert torch.equal(found[~self.mask], torch.zeros_like(found[~self.mask]))
        for row, mask, values in zip(found, self.mask, expected, strict=True):
            assert_close(row[mask], [float(x) for x in values], tolerance)


# --- the reward lands on tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_score_lands_on_the_last_token_that_counts(seed):
    rows = Rows(seed)
    scores, penalties = rows.per_row(), rows.column()
    expected = [[-x for x in row] for row in rows.lists(penalties)]
    for row, score in zip(expected, scores.tolist(), strict=True):
        row[-1] += mpf(score)
    rows.agrees(reward_to_tokens(scores, rows.mask, penalties), expected)
    alone = [[mpf(0)] * (len(row) - 1) + [mpf(score)] for row, score in zip(expected, scores.tolist(), strict=True)]
    rows.agrees(reward_to_tokens(scores, rows.mask), alone)


def test_the_last_token_by_hand():
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, True, False], [False] * 4])
    found = reward_to_tokens(tensor([1.0, 2.0, 3.0, 4.0]), mask)
    assert found.tolist() == [[0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("seed", SEEDS)
def test_i18_the_shaped_rewards_sum_to_score_minus_beta_log_ratio(seed):
    rows, beta = Rows(seed), 0.07
    scores, old, reference = rows.per_row(), rows.column(), rows.column()
    shaped = reward_to_tokens(scores, rows.mask, beta * kl_estimate(old - reference, "k1"))
    inside = lambda x: torch.where(rows.mask, x, 0.0).sum(1)  # noqa: E731
    assert_close(shaped.sum(1), scores - beta * (inside(old) - inside(reference)))


# --- GAE -----------------------------------------------------------------------------------------------------------


def scalar_gae(rewards, values, gamma, lam):
    """A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t, nothing after the end."""
    after = [*values[1:], mpf(0)]
    deltas = [r + gamma * ahead - v for r, v, ahead in zip(rewards, values, after, strict=True)]
    return [fsum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (0.99, 1.0), (1.0, 0.0), (0.5, 0.3)])
@pytest.mark.parametrize("seed", SEEDS)
def test_gae_is_that_of_each_row(seed, gamma, lam):
    rows = Rows(seed)
    rewards, values = rows.column(), rows.column()
    advantages, returns = gae(rewards, values, rows.mask, gamma=gamma, lam=lam)
    with mp.workdps(40):
        own = list(zip(rows.lists(rewards), rows.lists(values), strict=True))
        expected = [scalar_gae(r, v, mpf(gamma), mpf(lam)) for r, v in own]
        rows.agrees(advantages, expected)
        rows.agrees(
            returns, [[a + x for a, x in zip(e, v, strict=True)] for e, (_, v) in zip(expected, own, strict=True)]
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_at_its_ends(seed):
    rows = Rows(seed)
    rewards, values = rows.column(), rows.column()
    advantages, returns = gae(rewards, values, rows.mask, gamma=1.0, lam=1.0)
    monte_carlo = rewards_to_go(rewards, rows.mask)
    assert_close(returns, monte_carlo)  # λ = 1: the Monte-Carlo return, minus V
    assert_close(advantages, monte_carlo - torch.where(rows.mask, values, 0.0))
    error, _ = gae(rewards, values, rows.mask, gamma=0.9, lam=0.0)
    with mp.workdps(40):  # λ = 0: the TD error
        expected = [
            [r + mpf(0.9) * ahead - v for r, v, ahead in zip(r, v, [*v[1:], mpf(0)], strict=True)]
            for r, v in zip(rows.lists(rewards), rows.lists(values), strict=True)
        ]
    rows.agrees(error, expected)


def test_gae_does_not_depend_on_the_padding():
    rows = Rows(3)
    rewards, values = rows.column(), rows.column()
    wide = lambda x, fill: torch.nn.functional.pad(x, (0, 3), value=fill)  # noqa: E731
    narrow = gae(rewards, values, rows.mask)
    padded = gae(wide(rewards, 1e9), wide(values, math.inf), wide(rows.mask, False))
    for a, b in zip(narrow, padded, strict=True):
        assert torch.equal(wide(a, 0.0), b)


@pytest.mark.parametrize("seed", SEEDS)
def test_rewards_to_go(seed):
    rows = Rows(seed)
    rewards = rows.column()
    rows.agrees(
        rewards_to_go(rewards, rows.mask), [[fsum(row[t:]) for t in range(len(row))] for row in rows.lists(rewards)]
    )


# --- whitening -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_whitening(seed, shift_mean):
    rows = Rows(seed)
    values = rows.column()[rows.mask] + 3
    with mp.workdps(40):
        exact = [mpf(x) for x in values.tolist()]
        mean = fsum(exact) / len(exact)
        std = sqrt(fsum((x - mean) ** 2 for x in exact) / len(exact))
        expected = [(x - mean) / (std + mpf("1e-8")) + (0 if shift_mean else mean) for x in exact]
    assert_close(whiten(values, shift_mean=shift_mean), [float(x) for x in expected])


def test_whitened_values_have_mean_0_and_variance_1():
    values = Rows(0, rows=20).column()
    white = whiten(values[~values.isnan()])
    assert_close(torch.stack([white.mean(), white.var(unbiased=False)]), [0.0, 1.0], 1e-7)
    kept = whiten(values[~values.isnan()] + 5, shift_mean=False)
    assert_close(kept.mean(), (values[~values.isnan()] + 5).mean())
    assert_close(kept.var(unbiased=False), tensor(1.0), 1e-7)


# --- groups --------------------------------------------------------------------------------------------------------


def groups(seed):
    random = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 4, (13,), generator=random) * 5 - 3
    return 3 * torch.randn(13, generator=random, dtype=torch.float64), group


def members(rewards, group):
    for g in group.unique():
        rows = (group == g).nonzero().flatten()
        yield rows, [mpf(x) for x in rewards[rows].tolist()]


@pytest.mark.parametrize("scale", ["sample", "population", "none"])
@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_relative_to_the_group(seed, scale):
    rewards, group = groups(seed)
    found = relative_to_group(rewards, group, scale=scale)
    with mp.workdps(40):
        for rows, exact in members(rewards, group):
            k, mean = len(exact), fsum(exact) / len(exact)
            squares = fsum((x - mean) ** 2 for x in exact) / (k if scale == "population" else max(k - 1, 1))
            divisor = mpf(1) if scale == "none" else sqrt(squares) + mpf("1e-6")
            assert_close(found[rows], [float((x - mean) / divisor) for x in exact])
            assert abs(float(found[rows].sum())) < 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_leave_one_out_and_i14(seed):
    rewards, group = groups(seed)
    found, centred = leave_one_out(rewards, group), relative_to_group(rewards, group, scale="none")
    with mp.workdps(40):
        for rows, exact in members(rewards, group):
            k = len(exact)
            own = [x - (fsum(exact) - x) / (k - 1) for x in exact] if k > 1 else [mpf(0)]
            assert_close(found[rows], [float(x) for x in own])
            if k > 1:
                assert_close(found[rows], k / (k - 1) * centred[rows])
                assert_close(centred[rows], (k - 1) / k * found[rows])


@pytest.mark.parametrize("gap", [1e-3, 0.5, 2000.0])
def test_i15_a_group_of_two_forgets_the_size_of_the_gap(gap):
    rewards, group = tensor([0.3 + gap, 0.3]), torch.tensor([7, 7])
    half = 1 / math.sqrt(2)
    assert_close(relative_to_group(rewards, group, eps=0.0), [half, -half], 1e-10)
    assert_close(relative_to_group(rewards, group, scale="population", eps=0.0), [1.0, -1.0], 1e-10)


@pytest.mark.parametrize("right, size", [(1, 2), (1, 8), (3, 7), (6, 8)])
def test_i16_binary_rewards(right, size):
    rewards, q = tensor([1.0] * right + [0.0] * (size - right)), right / size
    found = relative_to_group(rewards, torch.zeros(size, dtype=torch.long), scale="population", eps=0.0)
    expected = [math.sqrt((1 - q) / q)] * right + [-math.sqrt(q / (1 - q))] * (size - right)
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.7, 1000.1, -12.3])
def test_equal_rewards_give_exactly_nothing(reward, dtype):
    for size in (1, 2, 3, 7, 64):
        rewards, group = torch.full((size,), reward, dtype=dtype), torch.zeros(size, dtype=torch.long)
        for found in (
            leave_one_out(rewards, group),
            whiten(rewards),
            *(relative_to_group(rewards, group, scale=scale) for scale in ("sample", "population", "none")),
        ):
            assert torch.equal(found, torch.zeros_like(found))
        assert torch.equal(whiten(rewards, shift_mean=False), rewards)


def test_advantages_are_invariant_as_they_should_be():
    rewards, group = groups(1)
    moved = 2.5 * rewards - 7
    assert_close(
        relative_to_group(moved, group, eps=0.0).nan_to_num(), relative_to_group(rewards, group, eps=0.0).nan_to_num()
    )
    assert_close(leave_one_out(moved, group), 2.5 * leave_one_out(rewards, group))
    assert_close(relative_to_group(moved, group, scale="none"), 2.5 * relative_to_group(rewards, group, scale="none"))


def test_a_group_with_a_bad_reward_spoils_no_other():
    rewards, group = tensor([1.0, 2.0, NAN, 4.0]), torch.tensor([0, 0, 1, 1])
    for found in (leave_one_out(rewards, group), relative_to_group(rewards, group)):
        assert torch.isfinite(found[:2]).all()


# --- published code ------------------------------------------------------------------------------------------------

PUBLISHED = 1e-7
"""verl adds 1e-8 to variances and to counts, where this divides by the standard deviation + ε."""


def sample(values):
    """Whitened with the sample's standard deviation, which verl takes."""
    return whiten(values) * math.sqrt((len(values) - 1) / len(values))


@pytest.mark.parametrize("entry", of_rollouts("gae", "returns, and advantages whitened over unmasked tokens"))
def test_gae_of_verl(entry):
    inputs, outputs, h = entry["inputs"], entry["outputs"], entry["hyperparameters"]
    mask = tensor(inputs["mask"]) > 0
    poison = lambda key: tensor(inputs[key]).masked_fill(~mask, NAN)  # noqa: E731
    advantages, returns = gae(poison("rewards"), poison("values"), mask, gamma=h["gamma"], lam=h["lam"])
    assert_close(returns[mask], tensor(outputs["returns"])[mask], PUBLISHED)
    assert_close(sample(advantages[mask]), tensor(outputs["advantages"])[mask], PUBLISHED)


@pytest.mark.parametrize("repo", ["verl", "understand-r1-zero"])
@pytest.mark.parametrize("name, scale", [("grpo", "sample"), ("dr_grpo", "none")])
def test_group_advantages_of_verl_and_of_the_authors_of_dr_grpo(name, scale, repo):
    for entry in of_rollouts(name, "advantage", repo):
        inputs, eps = entry["inputs"], entry["hyperparameters"].get("eps", 0.0)
        found = relative_to_group(tensor(inputs["rewards"]), torch.tensor(inputs["group"]), scale=scale, eps=eps)
        assert_close(found, entry["outputs"]["advantage"], 1e-9)


@pytest.mark.parametrize("entry", of_rollouts("rloo", "advantage"))
def test_rloo_of_verl(entry):
    rewards, group = tensor(entry["inputs"]["rewards"]), torch.tensor(entry["inputs"]["group"])
    alone = (group[:, None] == group).sum(1) == 1
    expected = tensor(entry["outputs"]["advantage"]).masked_fill(alone, 0.0)  # verl keeps the raw score there
    assert_close(leave_one_out(rewards, group), expected, 1e-9)


@pytest.mark.parametrize("entry", of_rollouts("reinforce_pp", "advantage"))
def test_reinforce_pp_of_verl(entry):
    mask, rewards = tensor(entry["inputs"]["mask"]) > 0, tensor(entry["inputs"]["token_rewards"])
    rewards, gamma = rewards.masked_fill(~mask, NAN), entry["hyperparameters"]["gamma"]
    returns, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)
    if gamma == 1:
        assert_close(returns, rewards_to_go(rewards, mask))
    assert_close(returns[mask], tensor(entry["outputs"]["returns"])[mask], PUBLISHED)
    assert_close(sample(returns[mask]), tensor(entry["outputs"]["advantages"])[mask], PUBLISHED)


@pytest.mark.parametrize("entry", of_rollouts("reinforce_pp", "baseline variant advantage"))
def test_reinforce_pp_with_a_baseline_of_verl(entry):
    inputs, mask = entry["inputs"], tensor(entry["inputs"]["mask"]) > 0
    centred = relative_to_group(tensor(inputs["rewards"]), torch.tensor(inputs["group"]), scale="none")
    found = sample(centred[:, None].expand(mask.shape)[mask])
    assert_close(found, tensor(entry["outputs"]["advantages"])[mask], PUBLISHED)
