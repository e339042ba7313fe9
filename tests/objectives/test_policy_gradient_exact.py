"""Expected gradients and optima by full enumeration: every completion of a small policy with its probability.

The policy is a table: logits for every prefix over two or three tokens, the first of which ends the completion, for up
to three steps. Lengths therefore differ, and padding is NaN. Expectations are finite sums, groups are all k-tuples, and
gradients go through the objectives themselves.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from prefopt.core.batches import Completions, Pairs, Rollouts, TokenLogps
from prefopt.core.policy_gradient import kl_estimate
from prefopt.data import TokenizedExample
from prefopt.objectives import get_objective
from prefopt.rollouts import AgainstMixture, BestOf, Group, Rollout, Sample
from prefopt.rollouts.advantages import gae, leave_one_out, relative_to_group, reward_to_tokens, rewards_to_go

NAN = float("nan")
BETA = 0.3
SEEDS = (0, 1, 2)


class Tree:
    """All completions over ``tokens`` tokens, 0 ending them, of at most ``steps``."""

    def __init__(self, tokens: int, steps: int, seed: int = 0) -> None:
        self.tokens, self.steps = tokens, steps
        self.prefixes = [p for t in range(steps) for p in itertools.product(range(1, tokens), repeat=t)]
        self.completions = [
            (*p, last) for p in self.prefixes for last in range(tokens) if last == 0 or len(p) == steps - 1
        ]
        self.mask = torch.zeros(len(self.completions), steps, dtype=torch.bool)
        self.entry = torch.zeros(len(self.completions), steps, dtype=torch.long)
        """[n, t]: the place of a token's logit in the table."""
        for i, completion in enumerate(self.completions):
            for t, token in enumerate(completion):
                self.mask[i, t] = True
                self.entry[i, t] = self.prefixes.index(completion[:t]) * tokens + token
        self.random = torch.Generator().manual_seed(seed)
        self.rewards = self.normal(len(self.completions))

    def __len__(self) -> int:
        return len(self.completions)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def table(self) -> Tensor:
        """Random logits."""
        return self.normal(len(self.prefixes), self.tokens)

    def logps(self, table: Tensor) -> Tensor:
        """log π(y_t | y_<t), [n, t], NaN in the padding."""
        return torch.log_softmax(table, dim=1).flatten()[self.entry].masked_fill(~self.mask, NAN)

    def total(self, table: Tensor) -> Tensor:
        """log π(y), [n]."""
        return torch.where(self.mask, self.logps(table), 0.0).sum(1)

    def probabilities(self, table: Tensor) -> Tensor:
        return self.total(table.detach()).exp()

    def reaching(self, table: Tensor) -> Tensor:
        """The probability that each prefix is reached."""
        p = self.probabilities(table)
        starts = [[c[: len(prefix)] == prefix for c in self.completions] for prefix in self.prefixes]
        return torch.tensor(starts, dtype=torch.float64) @ p

    def table_of(self, logps: Tensor) -> Tensor:
        """The table of a policy that is given by log π(y): the logit of a token is the log-mass behind it."""
        table = torch.full((len(self.prefixes), self.tokens), -torch.inf, dtype=torch.float64)
        for i, prefix in enumerate(self.prefixes):
            for token in range(self.tokens):
                longer = (*prefix, token)
                behind = [k for k, c in enumerate(self.completions) if c[: len(longer)] == longer]
                table[i, token] = logps[behind].logsumexp(0)
        return table

    def value(self, table: Tensor, reference: Tensor, beta: float = BETA) -> Tensor:
        """E r − β KL(π ‖ π_ref), differentiable."""
        log_ratio = self.total(table) - self.total(reference)
        return (self.total(table).exp() * (self.rewards - beta * log_ratio)).sum()

    def rollouts(
        self,
        table: Tensor,
        advantages: Tensor,
        rows: Tensor | None = None,
        old: Tensor | None = None,
        **columns: Tensor,
    ) -> Rollouts:
        """Some completions (all, by default) under a policy; advantages per completion, or per token."""
        rows = torch.arange(len(self)) if rows is None else rows
        mask = self.mask[rows]
        advantages = (advantages if advantages.ndim == 2 else advantages[:, None].expand(mask.shape)).detach()
        reference = columns.pop("reference", None)
        tokens = TokenLogps(
            mask=mask,
            logps=self.logps(table)[rows],
            ref_logps=None if reference is None else self.logps(reference)[rows],
        )
        return Rollouts(
            completions=Completions.from_tokens(tokens),
            old_logps=self.logps((table if old is None else old).detach())[rows],
            advantages=advantages.masked_fill(~mask, NAN),
        )


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def gradient(value: Tensor, table: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, table, retain_graph=True)
    return found


def expected(objective, batch: Rollouts, weights: Tensor) -> Tensor:
    """The expected sum of a loss over the rows of one sample, of which each has its weight; no normalisation."""
    (term,) = objective(batch).terms.values()
    return term.weight * (weights * term.values).sum()


def setting(tokens: int, steps: int, seed: int) -> tuple[Tree, Tensor, Tensor]:
    """A tree, the table of a policy with gradient, and that of a reference."""
    tree = Tree(tokens, steps, seed)
    return tree, tree.table().requires_grad_(), tree.table()


def exact(tree: Tree, table: Tensor, reference: Tensor, beta: float = BETA) -> Tensor:
    """∇(E r − β KL)."""
    return gradient(tree.value(table, reference, beta), table)


def test_the_tree_is_a_policy() -> None:
    for tokens, steps, size in ((2, 3, 4), (3, 2, 7), (3, 3, 15)):
        tree, table, _ = setting(tokens, steps, 0)
        assert len(tree) == size and sorted({len(c) for c in tree.completions}) == list(range(1, steps + 1))
        assert_close(tree.probabilities(table).sum(), torch.tensor(1.0, dtype=torch.float64))
        assert_close(tree.total(tree.table_of(tree.total(table.detach()))), tree.total(table.detach()))


# --- PPO, REINFORCE ------------------------------------------------------------------------------------------------


def shaped(tree: Tree, table: Tensor, reference: Tensor) -> Tensor:
    """−β·k1 at every token, the reward at the last."""
    log_ratio = tree.logps(table.detach()) - tree.logps(reference)
    return reward_to_tokens(tree.rewards, tree.mask, BETA * kl_estimate(log_ratio, "k1"))


def critic(tree: Tree, table: Tensor, rewards: Tensor) -> Tensor:
    """What is still to come, on average, at each prefix: [n, t]."""
    p, ahead = tree.probabilities(table), rewards_to_go(rewards, tree.mask)
    prefix = tree.entry // tree.tokens
    values = torch.zeros(len(tree.prefixes), dtype=torch.float64)
    for i in range(len(tree.prefixes)):
        here = (prefix == i) & tree.mask
        values[i] = (p[:, None] * ahead)[here].sum() / p[here.any(1)].sum()
    return values[prefix]


@pytest.mark.parametrize("name", ["ppo", "dapo", "cispo", "reinforce"])
@pytest.mark.parametrize("lam, right", [(1.0, False), (1.0, True), (0.95, True), (0.0, True)])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_expected_gradient_at_ratio_1_is_the_policy_gradient(name: str, lam: float, right: bool, seed: int) -> None:
    """With λ = 1 for any critic, with λ < 1 for the right one."""
    tree, table, reference = setting(3, 3, seed)
    rewards = shaped(tree, table, reference)
    values = critic(tree, table, rewards) if right else tree.normal(len(tree.prefixes))[tree.entry // tree.tokens]
    advantages, _ = gae(rewards, values.masked_fill(~tree.mask, NAN), tree.mask, gamma=1.0, lam=lam)
    loss = expected(get_objective(name), tree.rollouts(table, advantages), tree.probabilities(table))
    assert_close(gradient(loss, table), -exact(tree, table, reference))


def test_with_a_wrong_critic_and_lambda_below_1_it_is_not() -> None:
    tree, table, reference = setting(3, 3, 0)
    values = tree.normal(len(tree.prefixes))[tree.entry // tree.tokens]
    advantages, _ = gae(shaped(tree, table, reference), values, tree.mask, gamma=1.0, lam=0.5)
    loss = expected(get_objective("ppo"), tree.rollouts(table, advantages), tree.probabilities(table))
    assert float((gradient(loss, table) + exact(tree, table, reference)).norm()) > 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_of_the_whole_completion_for_every_token_will_do_too(seed: int) -> None:
    tree, table, reference = setting(3, 3, seed)
    worth = tree.rewards - BETA * (tree.total(table.detach()) - tree.total(reference))
    loss = expected(get_objective("reinforce"), tree.rollouts(table, worth), tree.probabilities(table))
    assert_close(gradient(loss, table), -exact(tree, table, reference))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_in_the_reward_contributes_nothing_at_the_reference(seed: int) -> None:
    tree, table, _ = setting(3, 3, seed)
    here = table.detach()
    assert_close(exact(tree, table, here), exact(tree, table, here, beta=0.0))
    worth = rewards_to_go(shaped(tree, table, here), tree.mask)
    loss = expected(get_objective("ppo"), tree.rollouts(table, worth), tree.probabilities(table))
    assert_close(gradient(loss, table), -exact(tree, table, here, beta=0.0))


# --- groups --------------------------------------------------------------------------------------------------------


def tuples(tree: Tree, table: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """All groups of k samples: which completion each row is, its group, and the group's probability."""
    groups = torch.tensor(list(itertools.product(range(len(tree)), repeat=k)))
    weights = tree.probabilities(table)[groups].prod(dim=1)
    return groups.flatten(), torch.arange(len(groups)).repeat_interleave(k), weights.repeat_interleave(k)


GROUPS = [(2, 3, 2), (2, 3, 3), (3, 2, 2), (3, 2, 3), (3, 3, 2)]


@pytest.mark.parametrize("tokens, steps, k", GROUPS)
def test_rloo_is_unbiased(tokens: int, steps: int, k: int) -> None:
    tree, table, reference = setting(tokens, steps, 7)
    rows, group, weights = tuples(tree, table, k)
    worth = tree.rewards - BETA * (tree.total(table.detach()) - tree.total(reference))
    batch = tree.rollouts(table, leave_one_out(worth[rows], group), rows)
    loss = expected(get_objective("reinforce"), batch, weights / k)
    assert_close(gradient(loss, table), -exact(tree, table, reference))


@pytest.mark.parametrize("tokens, steps, k", GROUPS)
def test_dr_grpo_is_k_minus_1_over_k_of_it(tokens: int, steps: int, k: int) -> None:
    tree, table, reference = setting(tokens, steps, 8)
    rows, group, weights = tuples(tree, table, k)
    batch = tree.rollouts(table, relative_to_group(tree.rewards[rows], group, scale="none"), rows)
    loss = expected(get_objective("dr_grpo", max_length=5.0), batch, weights / k)
    assert_close(gradient(loss, table), -(k - 1) / k / 5 * exact(tree, table, reference, beta=0.0))


def test_grpo_and_length_normalisation_are_no_multiple_of_it() -> None:
    tree, table, reference = setting(3, 2, 8)
    rows, group, weights = tuples(tree, table, 2)
    advantages = relative_to_group(tree.rewards[rows], group, scale="none")
    loss = expected(get_objective("grpo", beta=0.0), tree.rollouts(table, advantages, rows), weights / 2)
    found, right = gradient(loss, table).flatten(), -exact(tree, table, reference, beta=0.0).flatten()
    assert float(found @ right / found.norm() / right.norm()) < 0.999


# --- KL in the loss ------------------------------------------------------------------------------------------------


def divergence(tree: Tree, table: Tensor, reference: Tensor, forward: bool) -> Tensor:
    """The KL of the next token, averaged over the prefixes that π reaches, as constants."""
    own, other = torch.log_softmax(table, 1), torch.log_softmax(reference, 1)
    p, log_ratio = (other, other - own) if forward else (own, own - other)
    return (tree.reaching(table) * (p.exp() * log_ratio).sum(1)).sum()


CASES = [("k1", False, None), ("k2", False, False), ("k3", False, True), ("k3", True, False), ("k1", True, False)]


@pytest.mark.parametrize("kl, ratio, forward", CASES)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["reinforce", "ppo", "dapo", "cispo", "dr_grpo"])
def test_expected_gradients_of_the_estimators(
    name: str, steps: int, kl: str, ratio: bool, forward: bool | None
) -> None:
    """E∇k1 = 0, E∇k2 = ∇KL(π‖π_ref), E∇k3 = ∇KL(π_ref‖π), E∇(ρ·k3) = E∇(ρ·k1) = ∇KL(π‖π_ref)."""
    tree, table, reference = setting(3, steps, 3)
    options = {"max_length": 1.0} if name == "dr_grpo" else {}
    objective = get_objective(name, beta=0.7, kl=kl, kl_ratio=ratio, **options)
    batch = tree.rollouts(table, torch.zeros(len(tree), dtype=torch.float64), reference=reference)
    found = gradient(expected(objective, batch, tree.probabilities(table)), table) / 0.7
    right = torch.zeros_like(table) if forward is None else gradient(divergence(tree, table, reference, forward), table)
    assert_close(found, right)


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_the_same_of_completions_of_one_token_in_means_over_tokens(name: str) -> None:
    tree, table, reference = setting(3, 1, 4)
    for kl, ratio, forward in CASES[1:]:
        objective = get_objective(name, beta=0.7, kl=kl, kl_ratio=ratio)
        batch = tree.rollouts(table, torch.zeros(len(tree), dtype=torch.float64), reference=reference)
        found = gradient(expected(objective, batch, tree.probabilities(table)), table) / 0.7
        assert_close(found, gradient(divergence(tree, table, reference, forward), table))


def test_the_kl_of_one_token_is_that_of_the_policy_and_that_of_several_is_not() -> None:
    for steps in (1, 3):
        tree, table, reference = setting(3, steps, 5)
        whole = gradient((tree.total(table).exp() * (tree.total(table) - tree.total(reference))).sum(), table)
        by_token = gradient(divergence(tree, table, reference, forward=False), table)
        assert bool(torch.allclose(whole, by_token, atol=1e-12)) == (steps == 1)


@pytest.mark.parametrize("kl, unbiased", [("k1", True), ("k2", False), ("k3", True)])
def test_which_estimates_are_unbiased(kl: str, unbiased: bool) -> None:
    tree, table, reference = setting(3, 3, 6)
    batch = tree.rollouts(table, torch.zeros(len(tree), dtype=torch.float64), reference=reference)
    logged = get_objective("reinforce", beta=1.0, kl=kl)(batch).metrics["kl"]
    p = tree.probabilities(table)
    kl_of_completions = (p * (tree.total(table.detach()) - tree.total(reference))).sum()
    assert bool(torch.isclose((p * logged).sum(), kl_of_completions, rtol=1e-12)) == unbiased


def test_the_coefficient_of_grpo_at_the_sampling_policy() -> None:
    """∇L = −(A + β(π_ref/π − 1)) ∇log π at every token."""
    tree, table, reference = setting(3, 3, 9)
    advantages = tree.normal(len(tree))
    logps = tree.logps(table.detach()).requires_grad_()
    tokens = TokenLogps(mask=tree.mask, logps=logps, ref_logps=tree.logps(reference))
    batch = Rollouts(
        completions=Completions.from_tokens(tokens),
        old_logps=logps.detach(),
        advantages=advantages[:, None].expand(tree.mask.shape),
    )
    (found,) = torch.autograd.grad(get_objective("grpo", beta=0.04)(batch).mean(), logps)
    coefficient = advantages[:, None] + 0.04 * (torch.exp(tokens.ref_logps - logps.detach()) - 1)
    share = len(tree) * tree.mask.sum(1, keepdim=True)
    assert_close(found, torch.where(tree.mask, -coefficient / share, 0.0))


# --- relatives -----------------------------------------------------------------------------------------------------


def test_gspo_at_the_sampling_policy_is_grpo_without_its_kl() -> None:
    tree, table, _ = setting(3, 3, 10)
    batch = tree.rollouts(table, tree.normal(len(tree)))
    own, other = get_objective("gspo")(batch).mean(), get_objective("grpo", beta=0.0)(batch).mean()
    assert_close(own, other)
    assert_close(gradient(own, table), gradient(other, table))
    moved = tree.rollouts(table, tree.normal(len(tree)), old=tree.table())
    own, other = get_objective("gspo")(moved).mean(), get_objective("grpo", beta=0.0)(moved).mean()
    assert float((gradient(own, table) - gradient(other, table)).norm()) > 1e-3


def test_cispo_has_the_gradient_of_dapo_where_nothing_is_clipped() -> None:
    tree, table, _ = setting(3, 3, 11)
    old = table.detach() + 0.03 * tree.table()
    batch = tree.rollouts(table, tree.normal(len(tree)), old=old)
    dapo = get_objective("dapo")(batch)
    assert (
        not dapo.metrics["policy/clip_fraction"].any() and float((dapo.metrics["policy/ratio"] - 1).abs().max()) > 0.01
    )
    cispo = get_objective("cispo")(batch)
    assert_close(gradient(cispo.mean(), table), gradient(dapo.mean(), table))
    assert abs(float((cispo.mean() - dapo.mean()).detach())) > 1e-3  # the values differ
    far = tree.rollouts(table, tree.normal(len(tree)), old=tree.table())
    both = [gradient(get_objective(name)(far).mean(), table) for name in ("cispo", "dapo")]
    assert float((both[0] - both[1]).norm()) > 1e-3


def test_dapo_is_grpo_where_all_lengths_match() -> None:
    tree, table, _ = setting(3, 3, 12)
    old, advantages = tree.table(), tree.normal(len(tree))
    dapo, grpo = get_objective("dapo", epsilon_high=0.2), get_objective("grpo", beta=0.0)
    longest = (tree.mask.sum(1) == 3).nonzero().flatten()
    same = tree.rollouts(table, advantages[longest], longest, old=old)
    assert_close(dapo(same).mean(), grpo(same).mean())
    assert_close(gradient(dapo(same).mean(), table), gradient(grpo(same).mean(), table))
    mixed = tree.rollouts(table, advantages, old=old)
    assert abs(float((dapo(mixed).mean() - grpo(mixed).mean()).detach())) > 1e-3


# --- optima --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_the_optimum_of_regularised_rl(seed: int) -> None:
    """π_ref·exp(r/β) with value β log Z: no gradient there, no better policy, and gradient ascent arrives."""
    tree, _, reference = setting(3, 3, seed)
    unnormalised = tree.total(reference) + tree.rewards / BETA
    best = tree.table_of(unnormalised - unnormalised.logsumexp(0))
    assert_close(tree.value(best, reference), BETA * unnormalised.logsumexp(0))
    assert all(tree.value(best + 0.3 * tree.table(), reference) < tree.value(best, reference) for _ in range(5))

    def ascent(table: Tensor) -> Tensor:
        table = table.detach().requires_grad_()
        advantages = rewards_to_go(shaped(tree, table, reference), tree.mask)
        loss = expected(get_objective("ppo"), tree.rollouts(table, advantages), tree.probabilities(table))
        return -gradient(loss, table)

    assert_close(ascent(best), torch.zeros_like(best))
    table = reference
    for _ in range(45):  # along the natural gradient: the Fisher matrix of a row is P(prefix)·(diag p − p pᵀ)
        p = torch.softmax(table, 1)
        natural = ascent(table) / tree.reaching(table)[:, None] / p
        table = table + 0.5 / BETA * (natural - natural.mean(1, keepdim=True))
    assert_close(tree.total(table), tree.total(best), 1e-9)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_best_of_n(n: int) -> None:
    """The law of the best of n, over all n-tuples, is F^n − F⁻^n, and its KL is below log n − (n−1)/n."""
    tree, table, _ = setting(2, 3, 13)
    p, found = tree.probabilities(table), torch.zeros(len(tree), dtype=torch.float64)
    prompt = TokenizedExample(id=0, prompt=np.zeros(1, dtype=np.int32), completions=())
    samples = [Sample(ids=np.array(completion), text="", ended=True) for completion in tree.completions]
    for drawn in itertools.product(range(len(tree)), repeat=n):
        rewards = tree.rewards[list(drawn)]
        group = Group(prompt, [samples[i] for i in drawn], rewards.tolist())
        (kept,) = BestOf().of_group(group)
        found[tree.completions.index(tuple(kept.completions[0].tolist()))] += p[list(drawn)].prod()
    at_most = torch.tensor([float(p[tree.rewards <= r].sum()) for r in tree.rewards], dtype=torch.float64)
    below = torch.tensor([float(p[tree.rewards < r].sum()) for r in tree.rewards], dtype=torch.float64)
    assert_close(found, at_most**n - below**n)
    kl = float((found * (found / p).log()).sum())
    assert 0 < kl <= math.log(n) - (n - 1) / n


# --- pairs of own samples ------------------------------------------------------------------------------------------


def ordered_pairs(tree: Tree, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, second = torch.cartesian_prod(torch.arange(len(tree)), torch.arange(len(tree))).T
    p = tree.probabilities(table)
    return first, second, p[first] * p[second]


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("on_rewards", [False, True])
def test_i17_rebel_starts_along_rloo_of_two(eta: float, on_rewards: bool) -> None:
    tree, table, _ = setting(3, 2, 14)
    first, second, weights = ordered_pairs(tree, table)
    total, here = tree.total(table), tree.total(table.detach())
    r = tree.rewards
    pairs = Pairs.from_sums(
        total[first], total[second], here[first], here[second], chosen_score=r[first], rejected_score=r[second]
    )
    rebel = get_objective("rebel", eta=eta, eta_on_rewards=on_rewards)(pairs).terms["regression"].values
    scale = 2 * eta if on_rewards else 2 / eta
    slopes = (r[first] - r[second]) * (total[first] - total[second])
    rows, group, probability = tuples(tree, table, 2)
    rloo = tree.rollouts(table, leave_one_out(r[rows], group), rows)
    for one in (0, 5, 13):  # every single pair
        assert_close(gradient(rebel[one], table), -scale * gradient(slopes[one], table))
    expected_rloo = gradient(expected(get_objective("reinforce"), rloo, probability / 2), table)
    assert_close(gradient((weights * rebel).sum(), table), 2 * scale * expected_rloo)


def preferences(tree: Tree) -> Tensor:
    """[i, j]: p(i ≻ j), of no reward."""
    upper = torch.sigmoid(2 * tree.normal(len(tree), len(tree))).triu(1)
    return upper + (1 - upper.T).tril(-1) + 0.5 * torch.eye(len(tree), dtype=torch.float64)


def online_ipo(tree: Tree, table: Tensor, reference: Tensor, preference: Tensor, tau: float) -> Tensor:
    """The expected loss of ordered pairs of own samples, labelled by a judge."""
    first, second, weights = ordered_pairs(tree, table)
    total, ref = tree.total(table), tree.total(reference)
    pairs = Pairs.from_sums(total[first], total[second], ref[first], ref[second])
    swapped = Pairs.from_sums(total[second], total[first], ref[second], ref[first])
    objective, p = get_objective("ipo", tau=tau), preference[first, second]
    values = [next(iter(objective(batch).terms.values())).values for batch in (pairs, swapped)]
    return (weights * (p * values[0] + (1 - p) * values[1])).sum()


@pytest.mark.parametrize("tau", [0.1, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
def test_online_ipo_is_self_play(tau: float, seed: int) -> None:
    """Its expected gradient is −(4/τ) times that of E[∇log π(y) (p(y ≻ π) − ½ − τ log π/π_ref)]."""
    tree, table, reference = setting(3, 2, seed)
    preference, p = preferences(tree), tree.probabilities(table)
    log_ratio = tree.total(table.detach()) - tree.total(reference)
    self_play = (p * (preference @ p - 0.5 - tau * log_ratio) * tree.total(table)).sum()
    found = gradient(online_ipo(tree, table, reference, preference, tau), table)
    assert_close(found, -4 / tau * gradient(self_play, table), 1e-11)


@pytest.mark.parametrize("seed", SEEDS)
def test_online_ipo_stands_still_at_the_nash_equilibrium(seed: int) -> None:
    tree, _, reference = setting(3, 2, seed)
    preference, tau, ref = preferences(tree), 0.5, tree.total(reference)
    logps = equilibrium(ref, preference, tau)
    table = tree.table_of(logps).requires_grad_()
    assert_close(gradient(online_ipo(tree, table, reference, preference, tau), table), torch.zeros_like(table), 1e-10)
    away = (table.detach() + 0.1 * tree.table()).requires_grad_()
    assert float(gradient(online_ipo(tree, away, reference, preference, tau), away).norm()) > 1e-3

    def payoff(own: Tensor, other: Tensor) -> Tensor:
        kl = lambda x: (x.exp() * (x - ref)).sum()  # noqa: E731
        return own.exp() @ preference @ other.exp() - tau * kl(own) + tau * kl(other)

    for _ in range(20):  # nobody gains by leaving it
        other = torch.log_softmax(logps + tree.normal(len(tree)), 0)
        assert payoff(other, logps) < 0.5 < payoff(logps, other)


def equilibrium(reference: Tensor, preference: Tensor, tau: float) -> Tensor:
    """log π of the Nash equilibrium of the game with KL to the reference: π ∝ π_ref exp(p(y ≻ π)/τ), with damping."""
    logps = reference
    for _ in range(500):
        logps = torch.log_softmax(0.5 * logps + 0.5 * (reference + preference @ logps.exp() / tau), 0)
    return logps


@pytest.mark.parametrize("seed", SEEDS)
def test_nash_md_begins_a_step_of_mirror_descent(seed: int) -> None:
    """Its expected gradient, times η, is at π = π_t that of η p(π ≻ π_t^μ) − KL(π ‖ π_t^μ).

    π_t^μ ∝ π_t^{1−ητ} μ^{ητ} is the policy that it samples its opponents from.
    """
    tree, table, reference = setting(5, 1, seed)
    tau, eta = 0.4, 0.7
    own, mu = tree.total(table), tree.total(reference)
    mixed = torch.log_softmax((1 - eta * tau) * own.detach() + eta * tau * mu, 0)
    prompt = TokenizedExample(0, np.array([1], dtype=np.int32), ())
    first, second = torch.cartesian_prod(torch.arange(len(tree)), torch.arange(len(tree))).T
    groups = []
    for pair in zip(first.tolist(), second.tolist(), strict=True):
        samples = [Sample(np.array(tree.completions[i], dtype=np.int32), "", True) for i in pair]
        tokens = [{"old_logps": own.detach()[[i]].numpy(), "ref_logps": mu[[i]].numpy()} for i in pair]
        groups.append(Group(prompt, samples, tree.rewards[list(pair)].tolist(), tokens))
    examples = AgainstMixture(tau=tau, mixture=eta * tau)(Rollout(groups, max_new_tokens=1))
    advantages = torch.tensor(np.stack([example.labels["advantages"] for example in examples])).double()
    batch = tree.rollouts(table, advantages, first)
    weights = own.detach().exp()[first] * mixed.exp()[second]
    found = -gradient(expected(get_objective("reinforce"), batch, weights), table)
    wins = torch.sigmoid(tree.rewards[:, None] - tree.rewards) @ mixed.exp()
    step = (own.exp() * (eta * wins - (own - mixed))).sum()
    assert_close(eta * found, gradient(step, table), 1e-6)
    assert gradient(step, table).norm() > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_the_iterates_of_nash_md_obey_the_published_bound(seed: int) -> None:
    """KL(π* ‖ π_T) ≤ 8/(τ²(T + 1)) with η_t = 2/(τ(t + 2)), for preferences of no reward (2312.00886)."""
    tree, _, reference = setting(3, 2, seed)
    preference, mu, tau = preferences(tree), tree.total(reference), 0.5
    best = equilibrium(mu, preference, tau)

    def distances(pull: float) -> list[float]:
        """KL(π* ‖ π_T) for T from 1; with a pull of 1 the opponent is the published mixture, with 0 the policy."""
        logps, found = mu, []
        for t in range(300):
            eta = 2 / (tau * (t + 2))
            mixed = torch.log_softmax((1 - pull * eta * tau) * logps + pull * eta * tau * mu, 0)
            logps = torch.log_softmax(mixed + eta * preference @ mixed.exp(), 0)
            found.append(float((best.exp() * (best - logps)).sum()))
        return found

    bound = [8 / (tau**2 * (t + 2)) for t in range(300)]
    assert all(kl <= most for kl, most in zip(distances(1.0), bound, strict=True))
    assert distances(0.0)[-1] > bound[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_xpo_is_online_dpo_and_a_push_away_from_the_reference(seed: int) -> None:
    """One sample of the policy against one of the reference: the bonus is −α(KL(π_ref ‖ π) + H(π_ref)) on average."""
    tree, table, reference = setting(3, 2, seed)
    preference, alpha = preferences(tree), 0.3
    own, other = torch.cartesian_prod(torch.arange(len(tree)), torch.arange(len(tree))).T
    weights = tree.probabilities(table)[own] * tree.probabilities(reference)[other]

    def loss(name: str, table: Tensor, **options: float) -> Tensor:
        total, ref = tree.total(table), tree.total(reference)
        found = torch.zeros((), dtype=torch.float64)
        for won, lost, p in ((own, other, preference[own, other]), (other, own, preference[other, own])):
            by_reference = torch.full(own.shape, won is other)
            pairs = Pairs.from_sums(total[won], total[lost], ref[won], ref[lost], sampled_by_reference=by_reference)
            terms = get_objective(name, beta=0.2, **options)(pairs).terms.values()
            found = found + sum(term.weight * (weights * p * term.values).sum() for term in terms)
        return found

    bonus = -alpha * (tree.probabilities(reference) * -tree.total(table)).sum()
    both = loss("dpo", table) + bonus
    assert_close(loss("xpo", table, alpha=alpha), both)
    assert_close(gradient(loss("xpo", table, alpha=alpha), table), gradient(both, table))
    kl = (tree.probabilities(reference) * (tree.total(reference) - tree.total(table))).sum()
    entropy = -(tree.probabilities(reference) * tree.total(reference)).sum()
    assert_close(bonus, -alpha * (kl + entropy))
    still = reference.clone().requires_grad_()
    difference = loss("xpo", still, alpha=alpha) - loss("dpo", still)
    assert_close(gradient(difference, still), torch.zeros_like(still))
