"""Facts that pin down objectives with a memory, a random draw or token statistics. Their values are certified."""

import math
from dataclasses import replace

import pytest
import torch

from prefopt.core.batches import Completions, Pairs, TokenLogps
from prefopt.core.counts import global_counts
from prefopt.core.errors import UsageError
from prefopt.core.numerics import keyed_uniform
from prefopt.objectives import get_objective
from prefopt.objectives.sampo import positions

NAMES = ["bco_pair", "tdpo1", "tdpo2", "wpo", "wpo_weighted", "beta_dpo", "sampo", "mpo"]
FIELDS = ("logps", "ref_logps", "kl", "log_sum_p2")

# Per token: log-probability, that of the reference, KL, log Σp².
CHOSEN = [
    [(-0.3, -0.8, 0.2, -0.9), (-1.7, -1.1, 0.05, -1.4), (-0.05, -0.2, 0.6, -0.1)],
    [(-4.1, -2.6, 1.1, -3.0)],
    [(-0.9, -1.2, 0.0, -0.2), (-0.6, -2.9, 2.0, -0.3)],
]
REJECTED = [
    [(-2.2, -1.3, 0.4, -2.1), (-0.4, -0.9, 0.1, -0.6)],
    [(-0.6, -0.9, 0.3, -1.0), (-0.7, -0.2, 0.2, -0.5), (-1.9, -2.4, 0.7, -1.1), (-0.01, -0.6, 0.0, -0.02)],
    [(-1.4, -0.1, 0.9, -0.8), (-2.3, -1.6, 0.5, -2.0)],
]
IDS = [11, 5, 830]


def completions(rows, padding=0, fill=math.nan):
    width = max(map(len, rows)) + padding
    columns = torch.full((4, len(rows), width), fill, dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        mask[i, : len(row)] = True
        columns[:, i, : len(row)] = torch.tensor(row, dtype=torch.float64).T
    return {"mask": mask, **{name: column.requires_grad_() for name, column in zip(FIELDS, columns, strict=True)}}


def pairs(chosen=CHOSEN, rejected=REJECTED, ids=IDS, **options):
    leaves = {"chosen": completions(chosen, **options), "rejected": completions(rejected, **options)}
    parts = {side: Completions.from_tokens(TokenLogps(**columns)) for side, columns in leaves.items()}
    return Pairs(**parts, ids=torch.tensor(ids)), leaves


def step_state(objective, batch):
    return objective.prepare(objective.init_state(), objective.observe(batch.detach()))


# β-DPO.


def test_beta_dpo_becomes_dpo():
    batch, _ = pairs()
    plain = get_objective("beta_dpo", a=0.0, filter_ratio=0.0)(batch).mean()
    torch.testing.assert_close(plain, get_objective("dpo")(batch).mean(), rtol=1e-15, atol=0)
    same = Pairs.from_sums(*[torch.ones(5, dtype=torch.float64)] * 4, ids=torch.arange(5))
    assert float(get_objective("beta_dpo")(same).mean()) == pytest.approx(math.log(2), rel=1e-15)


def test_beta_dpo_in_evaluation_is_dpo_and_learns_nothing():
    batch, _ = pairs()
    objective = get_objective("beta_dpo")
    state = step_state(objective, batch)
    frozen = objective.prepare(state, objective.observe(batch), frozen=True)
    torch.testing.assert_close(objective(batch, frozen).mean(), get_objective("dpo")(batch).mean())
    assert all(frozen[key] is state[key] for key in objective.init_state())


def test_beta_dpo_draws_by_id_and_by_step():
    n = 40
    batch = Pairs.from_sums(*(torch.randn(n, dtype=torch.float64) for _ in range(4)), ids=torch.arange(n) * 3)
    objective = get_objective("beta_dpo")
    # A wide σ, so that all pairs are about as likely.
    start = {**objective.init_state(), "std": torch.tensor(50.0, dtype=torch.float64)}
    first = objective.prepare(start, objective.observe(batch))
    assert len(first["dropped"]) == 8
    order = torch.randperm(n)
    shuffled = replace(batch, chosen=batch.chosen[order], rejected=batch.rejected[order], ids=batch.ids[order])
    again = objective.prepare(start, objective.observe(shuffled))
    assert set(again["dropped"].tolist()) == set(first["dropped"].tolist())
    second = objective.prepare(first, objective.observe(batch))
    assert set(second["dropped"].tolist()) != set(first["dropped"].tolist())
    with pytest.raises(UsageError, match="ids"):
        objective(replace(batch, ids=None))


def test_beta_dpo_draws_with_the_stated_weights():
    """Of two pairs one is kept: the first with probability w_1/(w_1 + w_2)."""
    objective = get_objective("beta_dpo", filter_ratio=0.5)
    z, kept = torch.tensor([0.0, 1.3], dtype=torch.float64), 0
    for i in range(1500):
        kept += int(objective._draw(z, torch.tensor([2 * i, 2 * i + 1]), torch.tensor(3))[0])
    expected = 1 / (1 + math.exp(-0.5 * 1.3**2))
    assert kept / 1500 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 1500))


def test_beta_dpo_of_one_pair():
    objective = get_objective("beta_dpo")
    batch = Pairs.from_sums(*(torch.randn(1) for _ in range(4)), ids=torch.tensor([4]))
    state = step_state(objective, batch)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert torch.isfinite(objective(batch, state).mean())


@pytest.mark.parametrize("name", ["beta_dpo", "sampo", "bco_pair", "mpo"])
def test_micro_batches_change_nothing(name):
    objective, (batch, _) = get_objective(name), pairs()
    state = step_state(objective, batch)
    parts = [
        replace(batch, chosen=batch.chosen[rows], rejected=batch.rejected[rows], ids=batch.ids[rows])
        for rows in (slice(0, 1), slice(1, 3))
    ]
    observed = [objective.observe(part.detach()) for part in parts]
    together = {key: torch.cat([values[key] for values in observed]) for key in observed[0]}
    for key, value in objective.prepare(objective.init_state(), together).items():
        torch.testing.assert_close(value, state[key])
    counts = global_counts([objective.counts(part) for part in parts], lambda own: own)
    total = sum(objective(part, state).reduce(counts) for part in parts)
    torch.testing.assert_close(total, objective(batch, state).mean(), rtol=1e-14, atol=0)


# SamPO.


def test_sampo_at_equal_lengths_is_dpo():
    batch, _ = pairs(REJECTED, REJECTED[::-1])
    equal = replace(batch, chosen=batch.chosen[[0, 2]], rejected=batch.rejected[[0, 2]], ids=batch.ids[[0, 2]])
    torch.testing.assert_close(get_objective("sampo")(equal).mean(), get_objective("dpo")(equal).mean())


def test_sampo_at_the_reference():
    batch, _ = pairs()
    same = [
        Completions.from_tokens(replace(part.tokens, ref_logps=part.tokens.logps))
        for part in (batch.chosen, batch.rejected)
    ]
    value = get_objective("sampo")(Pairs(chosen=same[0], rejected=same[1], ids=batch.ids)).mean()
    assert float(value.detach()) == pytest.approx(math.log(2), rel=1e-15)


def test_sampo_is_not_changed_by_padding_or_by_steps_of_evaluation():
    objective, (batch, _), (wide, _) = get_objective("sampo"), pairs(), pairs(padding=4, fill=-5.0)
    assert torch.equal(objective(batch).mean(), objective(wide).mean())
    # Padding on the left: the same tokens stand in other columns.
    left = [
        Completions.from_tokens(TokenLogps(**{k: v.roll(3, 1) for k, v in vars(part.tokens).items()}))
        for part in (wide.chosen, wide.rejected)
    ]
    shifted = replace(wide, chosen=left[0], rejected=left[1])
    torch.testing.assert_close(objective(batch).mean(), objective(shifted).mean(), rtol=1e-15, atol=0)
    state = objective.init_state()
    for _ in range(3):
        state = objective.prepare(state, {})
    assert int(state["draw"]) == 3
    assert int(objective.prepare(state, {}, frozen=True)["draw"]) == 0


def test_sampo_positions_are_uniform_subsets():
    n, draw = 6000, torch.tensor(1)
    mask = torch.ones(n, 5, dtype=torch.bool)
    mask[:, 1] = False
    tokens = TokenLogps(mask=mask, logps=torch.zeros(n, 5))
    picked = positions(tokens, torch.full((n,), 2), torch.arange(n), draw, 0)
    assert torch.equal(picked.sum(dim=1), torch.full((n,), 2)) and not picked[:, 1].any()
    subsets = (picked.long() * torch.tensor([1, 0, 2, 4, 8])).sum(dim=1).unique(return_counts=True)[1]
    # Six subsets of two, 1000 each on average, standard deviation 29.
    assert len(subsets) == 6 and int(subsets.min()) > 880 and int(subsets.max()) < 1120
    again = positions(tokens, torch.full((n,), 2), torch.arange(n), draw, 1)
    assert not torch.equal(picked, again)


def test_keyed_uniform():
    ids = torch.arange(20000)
    draws = torch.stack([keyed_uniform(ids, key) for key in (0, 1)])
    assert float(draws.min()) > 0 and float(draws.max()) < 1
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.006)
    assert abs(float(torch.corrcoef(draws)[0, 1])) < 0.03
    assert torch.equal(keyed_uniform(ids, 1)[7:9], keyed_uniform(torch.tensor([7, 8]), 1))
    # splitmix64 from the state 0: its first output is 0xE220A8397B1DCDAF.
    assert float(keyed_uniform(0)) == ((0xE220A8397B1DCDAF >> 12) + 0.5) / 2**52


# TDPO.


def test_tdpo_values():
    batch, leaves = pairs()
    dpo, one, two = get_objective("dpo"), get_objective("tdpo1"), get_objective("tdpo2", alpha=1.0)
    torch.testing.assert_close(get_objective("tdpo2", alpha=0.0)(batch).mean(), dpo(batch).mean())
    torch.testing.assert_close(two(batch).mean(), one(batch).mean())
    chosen, rejected = leaves["chosen"]["kl"], leaves["rejected"]["kl"]
    first = torch.autograd.grad(one(batch).mean(), (chosen, rejected), retain_graph=True)
    second = torch.autograd.grad(two(batch).mean(), (chosen, rejected), allow_unused=True)
    assert second[0] is None or not second[0].any()
    assert (first[0][~first[0].isnan()] <= 0).all() and first[0].nansum() < 0
    torch.testing.assert_close(first[1], second[1])


def test_tdpo_reward_margin_is_what_the_loss_sees():
    batch, _ = pairs()
    for name in ("tdpo1", "tdpo2"):
        loss = get_objective(name)(batch)
        expected = -torch.nn.functional.logsigmoid(loss.metrics["rewards/margins"])
        torch.testing.assert_close(loss.terms["preference"].values.detach(), expected)


def test_tdpo_alone_is_refused():
    with pytest.raises(UsageError, match="'tdpo1' or 'tdpo2'"):
        get_objective("tdpo")


def test_missing_statistics_are_named():
    batch, _ = pairs()
    bare = [replace(part, tokens=replace(part.tokens, kl=None)) for part in (batch.chosen, batch.rejected)]
    with pytest.raises(UsageError, match="'kl'"):
        get_objective("tdpo2")(Pairs(chosen=bare[0], rejected=bare[1]))


# WPO.


def test_wpo_with_unit_weights_is_its_base():
    batch, _ = pairs()
    even = [
        replace(part, tokens=replace(part.tokens, log_sum_p2=part.tokens.logps.detach()))
        for part in (batch.chosen, batch.rejected)
    ]
    flat = Pairs(chosen=even[0], rejected=even[1], ids=batch.ids)
    for one, other in [
        (get_objective("wpo", beta=0.1), get_objective("dpo")),
        (get_objective("wpo_weighted", base="simpo(gamma=0.3)"), get_objective("simpo", gamma=0.3)),
        (get_objective("wpo_weighted", base="orpo"), get_objective("orpo")),
        (get_objective("wpo_weighted", base="bco_pair"), get_objective("bco_pair")),
        (get_objective("wpo_weighted", base="mpo(nll=token)"), get_objective("mpo", nll="token")),
    ]:
        torch.testing.assert_close(one(flat).mean(), other(flat).mean())


def test_wpo_weighs_dpo_like_any_other_base():
    batch, _ = pairs()
    for clamp in (False, True):
        one = get_objective("wpo", beta=0.3, clamp=clamp)(batch)
        other = get_objective("wpo_weighted", base="dpo(beta=0.3)", clamp=clamp)(batch)
        assert torch.equal(one.mean(), other.mean())
        assert torch.equal(one.metrics["weight"], other.metrics["weight"])
    weights = get_objective("wpo")(batch).metrics["weight"]
    assert weights.max() > 1 and get_objective("wpo", clamp=True)(batch).metrics["weight"].max() == 1
    reference_free = get_objective("wpo_weighted", base="simpo")
    assert not reference_free.needs.reference and reference_free.needs.lengths


def test_wpo_per_token_weight_is_one_on_average_on_policy():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    log_sum_p2 = (probabilities**2).sum().log().reshape(1, 1)
    weights = []
    for p in probabilities:
        tokens = TokenLogps(
            mask=torch.ones(1, 1).bool(), logps=p.log().reshape(1, 1), ref_logps=log_sum_p2, log_sum_p2=log_sum_p2
        )
        # The other response has weight 1.
        neutral = replace(tokens, logps=log_sum_p2)
        sides = [Completions.from_tokens(one) for one in (tokens, neutral)]
        weights.append(get_objective("wpo")(Pairs(chosen=sides[0], rejected=sides[1])).metrics["weight"])
    assert float((probabilities * torch.cat(weights)).sum()) == pytest.approx(1, rel=1e-14)


def test_wpo_refuses_bases_that_it_cannot_weigh():
    for base in ("sft", "aot_paired", "kto"):
        with pytest.raises(UsageError, match="one pair at a time"):
            get_objective("wpo_weighted", base=base)
    with pytest.raises(UsageError, match="no objective 'dop'"):
        get_objective("wpo_weighted", base="dop")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_finite_for_large_margins(name, dtype):
    extremes = torch.tensor([[-1e4], [-1e-8], [0.0]], dtype=dtype)
    leaves = [extremes.clone().requires_grad_(), extremes.flip(0).clone().requires_grad_()]
    sides = [
        Completions.from_tokens(
            TokenLogps(
                mask=torch.ones(3, 1).bool(),
                logps=leaf,
                ref_logps=extremes.flip(0) if side else extremes.roll(1, 0),
                kl=torch.full((3, 1), 1e4, dtype=dtype),
                log_sum_p2=torch.full((3, 1), -11.0, dtype=dtype),
            )
        )
        for side, leaf in enumerate(leaves)
    ]
    value = get_objective(name)(Pairs(chosen=sides[0], rejected=sides[1], ids=torch.arange(3))).mean()
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
