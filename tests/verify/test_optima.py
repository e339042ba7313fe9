"""Minimisers of population losses on enumerable policies against their closed forms, to 1e-8 in every log π."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefopt import get_objective
from prefopt.verify.optimum import (
    NoOptimum,
    Population,
    World,
    minimise,
    on_demonstrations,
    on_labels,
    on_pairs,
    on_rankings,
    optimum,
)

CLOSE = 1e-8
SEEDS = range(3)


def agree(found: Tensor, closed: Tensor) -> None:
    assert float((found - closed).abs().max()) <= CLOSE


def random_preference(seed: int, k: int) -> Tensor:
    """Preferences that no reward explains: p(i ≻ j) + p(j ≻ i) = 1 and nothing more."""
    upper = torch.rand(k, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).triu(1)
    return upper + (1 - upper).triu(1).T + 0.5 * torch.eye(k, dtype=torch.float64)


def two(p: float, reference: float = 0.3) -> World:
    """Two responses, the first preferred with probability p."""
    return World(
        torch.tensor([reference, 1 - reference], dtype=torch.float64).log(),
        torch.tensor([math.log(p / (1 - p)) if 0 < p < 1 else 0.0, 0.0], dtype=torch.float64),
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([1, 1]),
    )


def margin(world: World, policy: Tensor) -> float:
    s = policy - world.reference
    return float(s[0] - s[1])


# --- Bradley–Terry preferences, every full-support μ: π ∝ π_ref exp(score) -------------------------------------------


def dpo(world: World) -> tuple[Population, Tensor]:
    return on_pairs(get_objective("dpo", beta=0.4), world, world.bradley_terry()), world.rewards / 0.4


def robust_dpo(world: World) -> tuple[Population, Tensor]:
    p = world.bradley_terry()
    objective = get_objective("robust_dpo", beta=0.4, label_smoothing=0.2)
    return on_pairs(objective, world, 0.8 * p + 0.2 * p.T), world.rewards / 0.4


def rdpo_length(world: World) -> tuple[Population, Tensor]:
    objective = get_objective("rdpo_length", beta=1.1, alpha=0.15)
    return on_pairs(objective, world, world.bradley_terry()), (world.rewards - 0.15 * world.lengths.double()) / 1.1


def rebel(world: World) -> tuple[Population, Tensor]:
    objective = get_objective("rebel", eta=1.7)
    shape = (len(world), len(world))
    labels = {
        "chosen_score": world.rewards[:, None].expand(shape),
        "rejected_score": world.rewards[None, :].expand(shape),
    }
    return on_pairs(objective, world, torch.full(shape, 0.5, dtype=torch.float64), **labels), 1.7 * world.rewards


def reward_aware_rpo(world: World) -> tuple[Population, Tensor]:
    objective = get_objective("reward_aware_rpo", beta=0.4, eta=1.3)
    shape = (len(world), len(world))
    labels = {
        "chosen_score": world.rewards[:, None].expand(shape),
        "rejected_score": world.rewards[None, :].expand(shape),
    }
    population = on_pairs(objective, world, torch.full(shape, 0.5, dtype=torch.float64), **labels)
    return population, 1.3 * world.rewards / 0.4


def exo(world: World) -> tuple[Population, Tensor]:
    objective = get_objective("exo", beta=0.4, beta_reward=0.7)
    ranking = [list(range(len(world)))]
    return on_rankings(objective, world, ranking, torch.ones(1).double(), scored=True), world.rewards / 0.7 / 0.4


def infonca(world: World) -> tuple[Population, Tensor]:
    objective = get_objective("infonca", beta=0.4, alpha=0.7)
    ranking = [list(range(len(world)))]
    return on_rankings(objective, world, ranking, torch.ones(1).double(), scored=True), world.rewards / 0.7 / 0.4


def dpo_pl(world: World) -> tuple[Population, Tensor]:
    """Rankings of the first three and of the first four responses, drawn from Plackett–Luce."""
    rankings = [*itertools.permutations(range(3)), *itertools.permutations(range(len(world)), 4)]
    weights = torch.stack([plackett_luce(world.rewards[list(ranking)]) for ranking in rankings])
    return on_rankings(get_objective("dpo_pl", beta=0.4), world, rankings, weights / weights.sum()), world.rewards / 0.4


def plackett_luce(rewards: Tensor) -> Tensor:
    return torch.stack([torch.softmax(rewards[k:], 0)[0] for k in range(len(rewards))]).prod()


TILTED = {case.__name__: case for case in (dpo, robust_dpo, rdpo_length, rebel, reward_aware_rpo, exo, infonca, dpo_pl)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", TILTED)
def test_tilts_the_reference(name: str, seed: int) -> None:
    world = World.random(seed)
    population, scores = TILTED[name](world)
    agree(optimum(population, len(world)), world.regularised(scores))


# --- Preferences that are not Bradley–Terry --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_ipo_follows_the_win_rate_against_mu(seed: int) -> None:
    world = World.random(seed)
    p = random_preference(seed, len(world))
    found = optimum(on_pairs(get_objective("ipo", tau=0.6), world, p), len(world))
    agree(found, world.regularised(p @ world.sampling / 0.6))


def test_ipo_on_the_cycle() -> None:
    p = torch.tensor([[1 / 2, 5 / 9, 4 / 9], [4 / 9, 1 / 2, 5 / 9], [5 / 9, 4 / 9, 1 / 2]], dtype=torch.float64)
    third, mu = torch.full((3,), 1 / 3).double(), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    world = World(third.log(), torch.zeros(3).double(), mu, torch.ones(3, dtype=torch.long))
    found = optimum(on_pairs(get_objective("ipo", tau=0.1), world, p), 3).exp()
    assert [round(value, 5) for value in found.tolist()] == [0.36564, 0.24783, 0.38653]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["bco", "bco_pair"])
def test_bco_with_a_free_shift_is_the_ratio_of_marginals(name: str, seed: int) -> None:
    world = World.random(seed)
    p, mu = random_preference(seed, len(world)), world.sampling
    wins = mu * (p @ mu - 0.5 * mu)  # a response does not meet itself
    losses = mu * (p.T @ mu - 0.5 * mu)
    total = (wins + losses).sum()
    objective = get_objective(name, beta=0.4)
    if name == "bco":
        population = on_labels(objective, world, wins / total, losses / total)
    else:
        population = on_pairs(objective, world, p)
    agree(optimum(population, len(world), free=["delta"]), world.regularised((wins / losses).log() / 0.4))


@pytest.mark.parametrize("seed", SEEDS)
def test_sft_is_the_distribution_of_the_data(seed: int) -> None:
    world = World.random(seed)
    for average in ("sum", "token"):
        population = on_demonstrations(get_objective("sft", average=average), world, world.sampling)
        found = optimum(population, len(world))
        agree(found, world.sampling.log())
        if average == "sum":
            entropy = -(world.sampling * world.sampling.log()).sum()
            assert float(population(found, {})) == pytest.approx(float(entropy), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_simpo_without_margin_ignores_the_reference(seed: int) -> None:
    world = World.random(seed)
    world = World(world.reference, world.rewards, world.sampling, torch.full((len(world),), 4))
    found = optimum(on_pairs(get_objective("simpo", beta=2.5, gamma=0.0), world, world.bradley_terry()), len(world))
    agree(found, torch.log_softmax(world.rewards * 4 / 2.5, 0))


@pytest.mark.parametrize("seed", SEEDS)
def test_sppo_on_its_own_samples(seed: int) -> None:
    """y, y' ~ π_t with win rates against π_t: s = η (P(y ≻ π_t) − ½) if s is free; the softmax has to normalise."""
    world = World.random(seed)
    world = World(world.reference, world.rewards, world.reference.exp(), world.lengths)
    win = random_preference(seed, len(world)) @ world.sampling
    shape = (len(world), len(world))
    labels = {"chosen_score": win[:, None].expand(shape), "rejected_score": win[None, :].expand(shape)}
    objective = get_objective("sppo", beta=0.5, win_rate="each")
    population = on_pairs(objective, world, torch.full(shape, 0.5, dtype=torch.float64), **labels)
    found = minimise(lambda policy: population(policy, {}), world.reference)
    agree(found - world.reference, (win - 0.5) / 0.5)


# --- f-divergences ---------------------------------------------------------------------------------------------------

SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda u: u.log(),
    "js": lambda u: (2 * u / (1 + u)).log(),
    "forward_kl": lambda u: -1 / u,
    "alpha": lambda u: (1 - u**-0.3) / 0.3,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("divergence", SLOPES)
def test_fdpo_is_the_regularised_optimum(divergence: str, seed: int) -> None:
    """f'(u(y)) − f'(u(y')) = (r(y) − r(y'))/β, and no policy has a higher E r − β D_f."""
    # JS bounds the score above by log 2, so rewards must be moderate for an interior optimum.
    world = World.random(seed, 4)
    world = World(world.reference, 0.2 * world.rewards, world.sampling, world.lengths)
    alpha = {"alpha": 0.3} if divergence == "alpha" else {}
    objective = get_objective("fdpo", beta=0.8, divergence=divergence, **alpha)
    found = optimum(on_pairs(objective, world, world.bradley_terry()), len(world))
    slope = SLOPES[divergence]((found - world.reference).exp()) - world.rewards / 0.8
    agree(slope, slope.mean().expand(len(world)))


# --- Two responses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.35, 0.8])
def test_two_responses(p: float) -> None:
    world = two(p)
    logit = math.log(p / (1 - p))
    preference = torch.tensor([[0.5, p], [1 - p, 0.5]], dtype=torch.float64)

    def h(name: str, **hyperparameters: float) -> float:
        return margin(world, optimum(on_pairs(get_objective(name, **hyperparameters), world, preference), 2))

    assert h("dpo", beta=0.4) == pytest.approx(logit / 0.4, abs=CLOSE)
    smoothed = 0.9 * p + 0.1 * (1 - p)
    closed = math.log(smoothed / (1 - smoothed)) / 0.4
    assert h("cdpo", beta=0.4, label_smoothing=0.1) == pytest.approx(closed, abs=CLOSE)
    assert h("ipo", tau=0.2) == pytest.approx((p - 0.5) / 0.2, abs=CLOSE)
    gamma, b = 0.7, 1 - 2 * p
    e_z = (-b + math.sqrt(b * b + 4 * p * (1 - p) * math.exp(-2 * gamma))) / (2 * (1 - p) * math.exp(-gamma))
    found = optimum(on_pairs(get_objective("simpo", beta=1.5, gamma=gamma), world, preference), 2)
    assert 1.5 * float(found[0] - found[1]) == pytest.approx(math.log(e_z), abs=CLOSE)


@pytest.mark.parametrize("p", [0.1, 0.35, 0.8])
def test_cpo_of_two_one_token_responses_is_the_preference(p: float) -> None:
    preference = torch.tensor([[0.5, p], [1 - p, 0.5]], dtype=torch.float64)
    found = optimum(on_pairs(get_objective("cpo", beta=1.0), two(p), preference), 2)
    assert float(found[0].exp()) == pytest.approx(p, abs=CLOSE)


def certain() -> Tensor:
    return torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)


def test_deterministic_preferences() -> None:
    """Where DPO runs away, IPO, cDPO and EXO stop at a finite margin."""
    world = two(1.0)
    with pytest.raises(NoOptimum):
        bounded_optimum("dpo", beta=0.1)
    assert bounded_optimum("ipo", tau=0.2) == pytest.approx(1 / (2 * 0.2), abs=CLOSE)
    assert bounded_optimum("cdpo", beta=0.5, label_smoothing=0.1) == pytest.approx(math.log(9) / 0.5, abs=CLOSE)
    assert bounded_optimum("exo_pair", beta=0.5, label_smoothing=0.1) == pytest.approx(math.log(9) / 0.5, abs=CLOSE)
    population = on_pairs(get_objective("exo_pair", beta=0.5, label_smoothing=0.1), world, certain())
    assert float(population(optimum(population, 2), {})) == pytest.approx(0.0, abs=1e-12)


def bounded_optimum(name: str, **hyperparameters: float) -> float:
    """The optimal margin; a margin beyond 200 nats counts as running away."""
    world = two(1.0)
    found = margin(world, optimum(on_pairs(get_objective(name, **hyperparameters), world, certain()), 2))
    if abs(found) > 200:
        raise NoOptimum(f"the margin runs away: {found}")
    return found


def test_nca_draws_rewards_to_log_k_t() -> None:
    """r_i = log(K t_i) where the responses are a few among many, so that their likelihoods are free."""
    scores = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    world = World(torch.tensor([-5.0, -6.0, -7.0]).double(), scores, torch.ones(3).double(), torch.ones(3).long())
    population = on_rankings(
        get_objective("nca", beta=0.4, alpha=0.7), world, [[0, 1, 2]], torch.ones(1).double(), True
    )
    found = minimise(lambda policy: population(policy, {}), world.reference)
    agree(0.4 * (found - world.reference), (3 * torch.softmax(scores / 0.7, 0)).log())


# --- Bang-bang -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "weights"), [(0.7, (1.0, 1.0)), (0.4, (1.0, 1.0)), (0.4, (2.0, 1.0)), (0.7, (1.0, 3.0))])
def test_kto_is_bang_bang(q: float, weights: tuple[float, float]) -> None:
    """The loss falls in s everywhere if λ_D q > λ_U (1 − q), and rises everywhere if not."""
    world = two(0.5)
    one = World(world.reference[:1], world.rewards[:1], world.sampling[:1], world.lengths[:1])
    objective = get_objective("kto", beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])
    population = on_labels(objective, one, torch.tensor([q]).double(), torch.tensor([1 - q]).double())
    state = {"z0": torch.tensor(0.2, dtype=torch.float64)}
    s = torch.linspace(-20, 20, 81, dtype=torch.float64)
    values = torch.stack([population(one.reference + shift, state) for shift in s])
    falls = weights[0] * q > weights[1] * (1 - q)
    assert bool((values.diff() < 0).all()) == falls
    assert bool((values.diff() > 0).all()) != falls


@pytest.mark.parametrize("win", [0.7, 0.4])
def test_apo_zero_is_bang_bang(win: float) -> None:
    """A response that wins more than half of its pairs is pushed up without end, another one down."""
    world = two(win)
    preference = torch.tensor([[0.5, win], [1 - win, 0.5]], dtype=torch.float64)
    population = on_pairs(get_objective("apo_zero", beta=0.3), world, preference)
    other = world.reference[1:]
    s = torch.linspace(-20, 20, 81, dtype=torch.float64)
    values = torch.stack([population(torch.cat([world.reference[:1] + shift, other]), {}) for shift in s])
    assert bool((values.diff() < 0).all()) == (win > 0.5)
    assert bool((values.diff() > 0).all()) == (win < 0.5)
