"""Facts that pin the pairwise objectives down. Values and gradients everywhere else are certified."""

import math
from dataclasses import replace
from types import SimpleNamespace

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from references import reference

from prefopt.core.batches import Completions, Pairs, TokenLogps
from prefopt.core.errors import UsageError
from prefopt.core.registry import lookup
from prefopt.objectives import get_objective
from prefopt.verify.leaves import leaves, with_leaves

# What the certificates hardly draw: a hyperparameter at or next to the end of its range, where a formula changes.
EDGES = [
    ("cdpo", {"label_smoothing": 0.0}),
    ("exo_pair", {"label_smoothing": 0.01, "normalised": False}),
    ("fdpo", {"divergence": "alpha", "alpha": 1e-9, "beta": 0.4}),
    ("ld_dpo", {"alpha": 0.0}),
    ("alphapo", {"alpha": 0.0}),
    ("alphapo", {"alpha": 1e-9}),
]

# Per-token log-probabilities: chosen, its reference, rejected, its reference; then preference and the two scores.
THREE = [
    ([-0.3, -1.7, -0.05], [-0.8, -1.1, -0.2], [-2.2, -0.4], [-1.3, -0.9], 0.8, 1.5, 0.25),
    ([-4.1], [-2.6], [-0.6, -0.7, -1.9, -0.01, -3.3], [-0.9, -0.2, -2.4, -0.6, -1.1], 0.35, -0.4, 0.6),
    ([-0.9, -0.6], [-1.2, -2.9], [-1.4, -2.3], [-0.1, -1.6], 1.0, 2.0, -1.0),
]
ONE = [([-0.02, -5.5, -1.0, -0.4], [-0.6, -2.5, -1.3, -0.2], [-0.7], [-3.2], 0.1, 0.3, 0.9)]
FAR = [
    ([-90.0, -40.0], [-70.0, -33.0], [-3.0, -2.5, -8.0], [-9.0, -31.0, -6.5], 0.6, 4.0, -3.0),
    ([-1e-8], [-25.0], [-60.0, -1e-8], [-29.0, -17.0], 0.9, -7.0, 5.0),
]


def pairs(rows, dtype=torch.float64) -> Pairs:
    """The rows as a batch, right-padded with NaN."""

    def side(policy, reference):
        width = max(len(row[policy]) for row in rows) + 1

        def pad(i):
            return torch.tensor([row[i] + [math.nan] * (width - len(row[i])) for row in rows], dtype=dtype)

        logps = pad(policy)
        return Completions.from_tokens(TokenLogps(mask=~logps.isnan(), logps=logps, ref_logps=pad(reference)))

    labels = {
        name: torch.tensor([row[i] for row in rows], dtype=dtype)
        for i, name in ((4, "preference"), (5, "chosen_score"), (6, "rejected_score"))
    }
    return Pairs(chosen=side(0, 1), rejected=side(2, 3), **labels)


def sums(s_w, s_l, lengths=(4, 4), **labels) -> Pairs:
    """Pairs with given log-ratios; log π is arbitrary."""
    s_w, s_l = torch.as_tensor(s_w, dtype=torch.float64), torch.as_tensor(s_l, dtype=torch.float64)
    ref_w, ref_l = -7.0 - torch.arange(len(s_w)).double(), -4.0 - 2 * torch.arange(len(s_l)).double()
    tokens = tuple(torch.full((len(s_w),), n) for n in lengths)
    return Pairs.from_sums(s_w + ref_w, s_l + ref_l, ref_w, ref_l, lengths=tokens, **labels)


def examples(rows):
    """The rows as the namespaces that references take."""

    def one(row):
        exact = [[mpf(x) for x in part] for part in row[:4]] + [mpf(x) for x in row[4:]]
        chosen = SimpleNamespace(logps=exact[0], ref_logps=exact[1])
        rejected = SimpleNamespace(logps=exact[2], ref_logps=exact[3])
        labels = dict(zip(("preference", "chosen_score", "rejected_score"), exact[4:], strict=True))
        return SimpleNamespace(chosen=chosen, rejected=rejected, **labels)

    return [one(row) for row in rows]


def exact_loss(objective, rows):
    """The reference's value at the objective's hyperparameters."""
    one = reference(type(objective).name)
    return one.module.loss(examples(rows), **one.arguments(objective, {}))


def value(objective, batch) -> float:
    return float(objective(batch).mean())


def rows_of(objective, batch) -> torch.Tensor:
    """The loss of each row; every term must be a mean over examples."""
    terms = objective(batch).terms.values()
    assert all(term.per == "example" for term in terms)
    return sum(term.weight * term.values for term in terms)


def gradient(objective, batch, name) -> torch.Tensor:
    leaf = leaves(batch)[name].clone().requires_grad_()
    objective(with_leaves(batch, {name: leaf})).mean().backward()
    return leaf.grad


@pytest.mark.parametrize("rows", [THREE, ONE, FAR], ids=["three", "one", "far"])
@pytest.mark.parametrize(("name", "setting"), EDGES)
def test_value(name, setting, rows):
    objective = get_objective(name, **setting)
    with mp.workdps(50):
        expected = exact_loss(objective, rows)
        found = objective(pairs(rows)).mean()
        assert found.dtype == torch.float64
        assert abs(mpf(float(found)) - expected) <= mpf("2e-13") * max(abs(expected), 1)


@pytest.mark.parametrize(("name", "setting"), EDGES)
def test_gradient(name, setting):
    rows = [
        ([-0.3, -1.7], [-0.8, -1.1], [-2.2, -0.4, -0.6], [-1.3, -0.9, -0.1], 0.8, 1.5, 0.25),
        ([-2.1], [-1.6], [-0.6], [-0.9], 0.35, -0.4, 0.6),
    ]
    objective, batch = get_objective(name, **setting), pairs(rows)
    parts = ("chosen.tokens.logps", "chosen.tokens.ref_logps", "rejected.tokens.logps", "rejected.tokens.ref_logps")
    for i, path in enumerate((*parts, "preference", "chosen_score", "rejected_score")):
        tensor = leaves(batch)[path].clone().requires_grad_()
        loss = objective(with_leaves(batch, {path: tensor})).mean()
        # A leaf that the loss does not read has no gradient, and its derivative is 0.
        grad = torch.autograd.grad(loss, tensor, allow_unused=True)[0] if loss.requires_grad else None
        grad = torch.zeros_like(tensor) if grad is None else grad
        for r, row in enumerate(rows):
            for t in range(len(row[i]) if i < 4 else 1):

                def moved(x, i=i, r=r, t=t):
                    changed = [list(row) for row in rows]
                    changed[r][i] = [x if k == t else y for k, y in enumerate(rows[r][i])] if i < 4 else x
                    return exact_loss(objective, changed)

                with mp.workdps(50):
                    exact = mpmath.diff(moved, mpf(row[i][t] if i < 4 else row[i]))
                found = float(grad[r, t] if i < 4 else grad[r])
                assert found == pytest.approx(float(exact), rel=1e-11, abs=1e-13), (path, r, t)


AT_REFERENCE = {
    ("cdpo",): math.log(2),
    ("robust_dpo",): math.log(2),
    ("hinge",): 1.0,
    ("exo_pair",): 2.761230709097915,
    ("nca_pair",): 2 * math.log(2),
    ("sppo_hard", "beta", 0.05): 200.0,
    ("sppo_hard", "beta", 0.05, "halve", True): 100.0,
    ("apo_zero",): 1.0,
    ("apo_down",): 1.0,
    ("aot_paired",): math.log(2),
    ("aot_unpaired",): math.log(2),
    ("discopop",): 0.5 * math.log(2) + 0.5,
    ("fdpo", "divergence", "reverse_kl"): math.log(2),
    ("fdpo", "divergence", "forward_kl"): math.log(2),
    ("js_dpo",): math.log(2),
    ("alpha_div_dpo", "alpha", 0.3): math.log(2),
    ("dpop",): math.log(2),
    ("dpo_norm",): math.log(2),
    ("ld_dpo",): math.log(2),
    ("cal_dpo", "beta", 0.05): math.log(2) + 200.0,
    ("cal_dpo", "beta", 0.05, "weight", 0.5): math.log(2) + 100.0,
}


def settings(key):
    return key[0], dict(zip(key[1::2], key[2::2], strict=True))


@pytest.mark.parametrize("key", AT_REFERENCE, ids=lambda key: "-".join(map(str, key)))
def test_value_at_the_reference(key):
    at_reference = pairs([(row[0], row[0], row[2], row[2], *row[4:]) for row in THREE])
    if key[0] == "cdpo":
        at_reference = replace(at_reference, preference=None)
    name, setting = settings(key)
    assert value(get_objective(name, **setting), at_reference) == pytest.approx(AT_REFERENCE[key], rel=1e-14)


def test_values_at_the_reference_that_depend_on_more():
    at_reference = sums([0.0], [0.0], lengths=(9, 4))
    expected = -math.log(1 / (1 + math.exp(-0.3 * 5)))
    assert value(get_objective("rdpo_length", alpha=0.3), at_reference) == pytest.approx(expected, rel=1e-14)
    scored = replace(at_reference, chosen_score=torch.tensor([1.5]), rejected_score=torch.tensor([-1.0]))
    assert value(get_objective("rebel"), scored) == pytest.approx(6.25, rel=1e-14)
    judged = replace(at_reference, preference=torch.tensor([0.75]))
    assert value(get_objective("sppo", beta=0.1), judged) == pytest.approx(2 * 2.5**2, rel=1e-14)
    # Only the policy reweighted: the longer response seems to have fallen.
    rows = [([-1.0, -2.0], [-1.0, -2.0], [-1.0], [-1.0], 1.0, 0.0, 0.0)]
    biased = get_objective("ld_dpo", alpha=0.5, beta=1.0, reweight_reference=False)
    assert value(biased, pairs(rows)) == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-14)


def test_apo_gradients_at_the_reference():
    batch = sums([0.0], [0.0])
    for name, chosen, rejected in (("apo_zero", -0.05, 0.05), ("apo_down", 0.0, 0.05)):
        objective = get_objective(name, beta=0.2)
        assert gradient(objective, batch, "chosen.logps").item() == pytest.approx(chosen, abs=1e-16)
        assert gradient(objective, batch, "rejected.logps").item() == pytest.approx(rejected, abs=1e-16)


H_W = [3.5, -1.25, 0.0, -40.0, 12.0]
H_L = [-2.0, 4.5, 0.5, 7.0, 11.0]
BATCH = sums(H_W, H_L)


def same(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_smoothed_losses_are_dpo_plus_a_line():
    dpo, z = rows_of(get_objective("dpo", beta=0.4), BATCH), 0.4 * BATCH.margin
    same(rows_of(get_objective("cdpo", beta=0.4, label_smoothing=0.2), BATCH), dpo + 0.2 * z)
    same(rows_of(get_objective("robust_dpo", beta=0.4, label_smoothing=0.2), BATCH), dpo - 0.2 / 0.6 * z)
    for name in ("cdpo", "robust_dpo"):
        same(rows_of(get_objective(name, beta=0.4, label_smoothing=0.0), BATCH), dpo)


def test_robust_dpo_is_unbiased_under_flips():
    robust = get_objective("robust_dpo", beta=0.4, label_smoothing=0.2)
    flipped = Pairs(chosen=BATCH.rejected, rejected=BATCH.chosen)
    same(0.8 * rows_of(robust, BATCH) + 0.2 * rows_of(robust, flipped), rows_of(get_objective("dpo", beta=0.4), BATCH))


def test_cdpo_reads_a_preference_where_there_is_one():
    soft = torch.tensor([0.7, math.nan, 0.0, 1.0, math.nan], dtype=torch.float64)
    found = rows_of(get_objective("cdpo", beta=0.4, label_smoothing=0.2), replace(BATCH, preference=soft))
    for i, p in enumerate([0.7, 0.8, 0.0, 1.0, 0.8]):
        z = mpf(0.4) * mpf(float(BATCH.margin[i]))
        expected = mpf(p) * mpmath.log1p(mpmath.exp(-z)) + (1 - mpf(p)) * mpmath.log1p(mpmath.exp(z))
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-13)
    # A missing preference must not spoil the gradient of its neighbours, or its own.
    assert gradient(get_objective("cdpo"), replace(BATCH, preference=soft), "chosen.logps").isfinite().all()
    given = replace(BATCH, preference=torch.full_like(soft, 0.7))
    same(rows_of(get_objective("cdpo", label_smoothing=0.1), given), rows_of(get_objective("cdpo"), given))


def test_cdpo_is_least_at_the_entropy_of_its_label():
    best = sums([math.log(0.8 / 0.2) / 0.5], [0.0])
    objective = get_objective("cdpo", beta=0.5, label_smoothing=0.2)
    assert value(objective, best) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), rel=1e-13)
    assert abs(gradient(objective, best, "chosen.logps").item()) < 1e-15


def test_exo_pair_is_zero_at_its_target_and_non_negative():
    objective = get_objective("exo_pair", beta=0.5, label_smoothing=0.2)
    best = sums([math.log(0.8 / 0.2) / 0.5], [0.0])
    assert abs(value(objective, best)) < 1e-15
    assert abs(gradient(objective, best, "chosen.logps").item()) < 1e-15
    assert (rows_of(objective, BATCH) > 0).all()


def test_nca_pair_draws_the_chosen_reward_to_log_2():
    best = sums([math.log(2.0) / 0.3], [-1e4])
    objective = get_objective("nca_pair", beta=0.3)
    assert value(objective, best) == pytest.approx(0.9547712524422192, rel=1e-12)
    assert abs(gradient(objective, best, "chosen.logps").item()) < 1e-15


def test_sppo_hard_is_half_ipo_plus_half_of_the_squared_sum():
    total = BATCH.chosen.log_ratio + BATCH.rejected.log_ratio
    hard = rows_of(get_objective("sppo_hard", beta=0.4), BATCH)
    same(hard, 0.5 * (BATCH.margin - 1 / 0.4) ** 2 + 0.5 * total**2)
    same(hard, 0.5 * rows_of(get_objective("ipo", tau=0.2), BATCH) + 0.5 * total**2)
    same(2 * rows_of(get_objective("sppo_hard", beta=0.4, halve=True), BATCH), hard)


def test_sppo_with_certain_wins_is_hard():
    sure = replace(BATCH, preference=torch.ones(5).double())
    hard = rows_of(get_objective("sppo_hard", beta=0.4), BATCH)
    same(rows_of(get_objective("sppo", beta=0.4), sure), hard)
    each = replace(BATCH, chosen_score=torch.ones(5).double(), rejected_score=torch.zeros(5).double())
    same(rows_of(get_objective("sppo", beta=0.4, win_rate="each"), each), hard)


def test_sppo_says_which_win_probabilities_it_lacks():
    with pytest.raises(UsageError, match="preference"):
        get_objective("sppo")(BATCH)
    with pytest.raises(UsageError, match="chosen_score"):
        get_objective("sppo", win_rate="each")(replace(BATCH, preference=torch.ones(5).double()))


def test_apo_zero_is_twice_kto_without_a_reference_point():
    kto = get_objective("kto", beta=0.4)(BATCH, {"z0": torch.tensor(0.0)})
    assert value(get_objective("apo_zero", beta=0.4), BATCH) == pytest.approx(2 * float(kto.mean()), rel=1e-13)


@pytest.mark.parametrize("name", ["aot_paired", "aot_unpaired"])
def test_aot_is_at_most_cdpo(name):
    for epsilon in (0.0, 0.2):
        aot = get_objective(name, beta=0.4, label_smoothing=epsilon)
        cdpo = get_objective("cdpo", beta=0.4, label_smoothing=epsilon)
        assert value(aot, BATCH) < value(cdpo, BATCH) - 0.01
        single = sums(H_W[:1], H_L[:1])
        assert value(aot, single) == pytest.approx(value(cdpo, single), rel=1e-14)


def test_aot_forgets_which_row_is_which():
    assert get_objective("aot_paired").needs.coupled and get_objective("aot_unpaired").needs.coupled
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = Pairs(chosen=BATCH.chosen, rejected=BATCH.rejected[order])
    unpaired, dpo = get_objective("aot_unpaired", beta=0.4), get_objective("dpo", beta=0.4)
    assert value(unpaired, shuffled) == pytest.approx(value(unpaired, BATCH), rel=1e-14)
    assert abs(value(dpo, shuffled) - value(dpo, BATCH)) > 1e-3
    # Paired: the policy's margins may be permuted against those of the reference.
    chosen, rejected = BATCH.chosen, BATCH.rejected
    shuffled = Pairs(
        chosen=replace(chosen, logps=chosen.logps[order]), rejected=replace(rejected, logps=rejected.logps[order])
    )
    paired = get_objective("aot_paired", beta=0.4)
    assert value(paired, shuffled) == pytest.approx(value(paired, BATCH), rel=1e-14)
    assert abs(value(dpo, shuffled) - value(dpo, BATCH)) > 1e-3


def test_discopop_has_its_printed_extremes():
    objective = get_objective("discopop")
    for z, height in ((-0.11857, 0.785924), (0.07201, 0.878290)):
        batch = sums([z / 0.05], [0.0])
        assert value(objective, batch) == pytest.approx(height, abs=1e-6)
        assert abs(gradient(objective, batch, "chosen.logps").item()) < 1e-5
    far = sums([-1e4, 1e4], [0.0, 0.0])
    assert rows_of(objective, far).isfinite().all() and rows_of(objective, far)[1] < 1e-100
    with pytest.raises(UsageError, match="tau"):
        get_objective("discopop", tau=1.5)


def test_fdpo_limits():
    dpo = rows_of(get_objective("dpo", beta=0.1), BATCH)
    same(rows_of(get_objective("fdpo", divergence="reverse_kl"), BATCH), dpo)
    near = sums([1.5, -2.0, 0.3], [0.5, 1.0, 0.1])
    alpha = [rows_of(get_objective("alpha_div_dpo", alpha=a), near) for a in (1e-7, 1 - 1e-9)]
    same(alpha[0], rows_of(get_objective("dpo"), near), 1e-6)
    same(alpha[1], rows_of(get_objective("forward_kl_dpo"), near), 1e-7)
    assert (get_objective("js_dpo", beta=1.0).reward(BATCH.chosen) <= math.log(2)).all()


def test_fdpo_clamps_and_says_how_often():
    batch = sums([-81.0, -79.0, 5.0, 3.0], [1.0, 1.0, -79.0, -500.0])
    loss = get_objective("forward_kl_dpo")(batch)
    assert loss.metrics["clamped"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert loss.terms["preference"].values.isfinite().all()
    clamped = gradient(get_objective("forward_kl_dpo"), batch, "chosen.logps")
    assert clamped[0] == 0 and clamped[1] < 0
    half = get_objective("alpha_div_dpo", alpha=0.5)(batch)
    assert half.metrics["clamped"].tolist() == [0.0, 0.0, 0.0, 1.0]
    early = get_objective("alpha_div_dpo", alpha=0.5, max_exponent=10.0)(batch)
    assert early.metrics["clamped"].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert "clamped" not in get_objective("js_dpo")(batch).metrics


def test_fdpo_refuses_what_it_would_not_read():
    with pytest.raises(UsageError, match=r"alpha=0\.3 has no effect"):
        get_objective("fdpo", divergence="forward_kl", alpha=0.3)
    with pytest.raises(UsageError, match=r"max_exponent=10\.0 has no effect"):
        get_objective("fdpo", divergence="js", max_exponent=10.0)
    with pytest.raises(UsageError, match="forward_kl_dpo fixes alpha"):
        get_objective("forward_kl_dpo", alpha=0.3)
    assert get_objective("forward_kl_dpo", max_exponent=11.0).max_exponent == 11.0


def test_length_terms_vanish_where_they_should():
    dpo = get_objective("dpo", beta=0.4)
    same(rows_of(get_objective("rdpo_length", beta=0.4, alpha=0.3), BATCH), rows_of(dpo, BATCH))
    uneven = sums(H_W, H_L, lengths=(9, 4))
    same(rows_of(get_objective("rdpo_length", beta=0.4, alpha=0.0), uneven), rows_of(dpo, uneven))
    same(rows_of(get_objective("dpo_norm", beta=4 * 0.4), BATCH), rows_of(dpo, BATCH))
    tokens = pairs(THREE)
    same(rows_of(get_objective("ld_dpo", beta=0.4, alpha=1.0), tokens), rows_of(dpo, tokens))
    even = pairs(THREE[2:])
    same(rows_of(get_objective("ld_dpo", beta=0.4, alpha=0.2), even), rows_of(dpo, even))


def test_rdpo_length_pulls_less_for_a_longer_winner():
    objective = get_objective("rdpo_length", alpha=0.3)
    pull = [
        -gradient(objective, sums([0.0], [0.0], lengths=n), "chosen.logps").item() for n in ((9, 4), (4, 4), (4, 9))
    ]
    assert 0 < pull[0] < pull[1] < pull[2]


def test_ld_dpo_counts_over_holes_in_the_mask():
    rows = [([-0.5, -1.5, -2.5], [-1.0, -1.0, -1.0], [-0.2, -0.4], [-0.3, -0.9], 1.0, 0.0, 0.0)]
    dense = pairs(rows)
    tokens = dense.chosen.tokens

    def spread(values):
        hole = torch.full((1, 1), math.nan, dtype=values.dtype)
        return torch.cat([values[:, :1], hole, values[:, 1:]], dim=1)

    mask = torch.cat([tokens.mask[:, :1], torch.zeros(1, 1, dtype=torch.bool), tokens.mask[:, 1:]], dim=1)
    holed = TokenLogps(mask=mask, logps=spread(tokens.logps), ref_logps=spread(tokens.ref_logps))
    batch = Pairs(chosen=Completions.from_tokens(holed), rejected=dense.rejected)
    objective = get_objective("ld_dpo", alpha=0.2, beta=1.0)
    same(rows_of(objective, batch), rows_of(objective, dense))


def test_ld_dpo_names_missing_reference_tokens():
    batch = pairs(THREE)
    bare = [replace(side, tokens=replace(side.tokens, ref_logps=None)) for side in (batch.chosen, batch.rejected)]
    batch = Pairs(chosen=bare[0], rejected=bare[1])
    with pytest.raises(UsageError, match="reweight_reference=False"):
        get_objective("ld_dpo")(batch)
    assert rows_of(get_objective("ld_dpo", reweight_reference=False), batch).isfinite().all()


def test_dpop_penalises_a_fallen_winner_only():
    dpop, dpo = get_objective("dpop", beta=0.4, lam=5.0), get_objective("dpo", beta=0.4)
    found, plain = rows_of(dpop, BATCH), rows_of(dpo, BATCH)
    fallen = torch.tensor(H_W) < 0
    same(found[~fallen], plain[~fallen])
    assert (found[fallen] > plain[fallen] + 1).all()
    same(rows_of(get_objective("dpop", beta=0.4, lam=0.0), BATCH), plain)


def test_likelihood_terms_are_what_is_added():
    uneven = pairs(THREE)
    per_token = -uneven.chosen.logps.sum() / uneven.chosen.lengths.sum()
    per_sequence = -(uneven.chosen.logps / uneven.chosen.lengths).mean()
    uniform = Pairs.from_sums(
        uneven.chosen.logps, uneven.rejected.logps, torch.zeros(3).double(), torch.zeros(3).double()
    )
    dpo, simpo = get_objective("dpo", beta=0.1)(uniform).mean(), get_objective("simpo")(uneven).mean()
    same(get_objective("cpo")(uneven).mean(), dpo + per_token)
    same(get_objective("cpo", nll="sum")(uneven).mean(), dpo - uneven.chosen.logps.mean())
    same(get_objective("cpo", nll="sequence")(uneven).mean(), dpo + per_sequence)
    same(get_objective("cpo_simpo", alpha=0.3)(uneven).mean(), simpo + 0.3 * per_token)
    same(get_objective("cpo_simpo", alpha=0.0)(uneven).mean(), simpo)
    plain = get_objective("dpo")(uneven).mean()
    same(get_objective("rpo_nll", alpha=0.3)(uneven).mean(), plain + 0.3 * per_sequence)
    same(get_objective("rpo_nll", alpha=0.3, nll="token")(uneven).mean(), plain + 0.3 * per_token)


def test_slic_is_free_of_the_reference():
    batch = Pairs.from_sums(torch.tensor([-3.0, -9.0]).double(), torch.tensor([-5.5, -2.0]).double())
    same(
        rows_of(get_objective("slic", delta=4.0, lam=0.1), batch),
        torch.tensor([1.5 + 0.3, 11.0 + 0.9], dtype=torch.float64),
    )
    # δ = 1/γ: without the supervised term, RSO's hinge on a uniform reference times δ.
    uniform = replace(
        batch,
        chosen=replace(batch.chosen, ref_logps=torch.zeros(2).double()),
        rejected=replace(batch.rejected, ref_logps=torch.zeros(2).double()),
    )
    hinge = rows_of(get_objective("hinge", gamma=0.25), uniform)
    same(rows_of(get_objective("slic", delta=4.0, lam=0.0), batch), 4.0 * hinge)


def test_cal_dpo_is_a_logistic_loss_plus_sppo():
    logistic = rows_of(get_objective("dpo", beta=1.0), BATCH)
    hard = rows_of(get_objective("sppo_hard", beta=0.4), BATCH)
    same(rows_of(get_objective("cal_dpo", beta=0.4, weight=0.3), BATCH), logistic + 0.3 * hard)


def test_reward_aware_rpo_is_zero_where_the_margins_agree():
    scored = replace(
        BATCH, chosen_score=0.2 * BATCH.chosen.log_ratio + 3, rejected_score=0.2 * BATCH.rejected.log_ratio + 3
    )
    for distance in ("backward_kl", "forward_kl", "squared"):
        objective = get_objective("reward_aware_rpo", beta=0.4, eta=2.0, distance=distance)
        same(rows_of(objective, scored), torch.zeros(5).double())
        assert (rows_of(get_objective("reward_aware_rpo", beta=0.4, distance=distance), scored)[:2] > 1e-3).all()


def test_reward_aware_rpo_backward_is_cdpo_with_soft_labels():
    gap = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    scored = replace(BATCH, chosen_score=gap, rejected_score=torch.zeros(5).double())
    p = torch.sigmoid(gap)
    entropy = -p * p.log() - (1 - p) * (1 - p).log()
    soft = rows_of(get_objective("cdpo", beta=0.4), replace(BATCH, preference=p))
    same(rows_of(get_objective("reward_aware_rpo", beta=0.4), scored), soft - entropy)


def test_rebel_is_ipo_for_a_constant_gap_and_symmetric():
    scored = replace(BATCH, chosen_score=torch.full((5,), 5.0).double(), rejected_score=torch.zeros(5).double())
    # η (r_w − r_l) = 1/(2τ): 0.5 · 5 = 1/(2 · 0.2)
    ipo = rows_of(get_objective("ipo", tau=0.2), BATCH)
    same(rows_of(get_objective("rebel", eta=0.5), scored), ipo / 0.25)
    same(rows_of(get_objective("rebel", eta=0.5, eta_on_rewards=True), scored), ipo)
    swapped = Pairs(
        chosen=scored.rejected,
        rejected=scored.chosen,
        chosen_score=scored.rejected_score,
        rejected_score=scored.chosen_score,
    )
    same(rows_of(get_objective("rebel", eta=0.5), swapped), rows_of(get_objective("rebel", eta=0.5), scored))


def test_alphapo_becomes_simpo():
    uneven = pairs(THREE)
    simpo = rows_of(get_objective("simpo", beta=2.5, gamma=0.1), uneven)
    same(rows_of(get_objective("alphapo", alpha=0.0), uneven), simpo)
    for alpha in (1e-8, -1e-8):
        same(rows_of(get_objective("alphapo", alpha=alpha), uneven), simpo, 1e-6)
    assert (rows_of(get_objective("alphapo", alpha=0.5), uneven) - simpo).abs().min() > 1e-3


def test_alphapo_clamps_and_says_how_often():
    # α = 0.25: cut where a token is on average less likely than e^(−320).
    n = torch.ones(3, dtype=torch.long)
    batch = Pairs.from_sums(
        torch.tensor([-321.0, -319.0, -1.0]).double(), torch.tensor([-1.0, -1.0, -1e4]).double(), lengths=(n, n)
    )
    loss = get_objective("alphapo")(batch)
    assert loss.metrics["clamped"].tolist() == [1.0, 0.0, 1.0]
    assert loss.terms["preference"].values.isfinite().all()
    grad = gradient(get_objective("alphapo"), batch, "chosen.logps")
    assert grad[0] == 0 and grad[1] < 0


def test_gradients_keep_their_digits_far_away():
    """e^x − 1 must not lose the gradient e^x of a very negative x."""
    found = gradient(get_objective("forward_kl_dpo", beta=0.1), sums([30.0], [0.5]), "chosen.logps").item()
    z = 0.1 * (math.exp(-0.5) - math.exp(-30.0))
    assert found == pytest.approx(-0.1 * math.exp(-30.0) / (1 + math.exp(z)), rel=1e-12, abs=0)
    n = torch.ones(1, dtype=torch.long)
    batch = Pairs.from_sums(torch.tensor([-60.0]).double(), torch.tensor([-1.0]).double(), lengths=(n, n))
    found = gradient(get_objective("alphapo", alpha=-0.7), batch, "chosen.logps").item()
    z = 2.5 / 0.7 * (math.exp(-42.0) - math.exp(-0.7)) - 0.1
    assert found == pytest.approx(-2.5 * math.exp(-42.0) / (1 + math.exp(z)), rel=1e-12, abs=0)


@pytest.mark.parametrize("alpha", [0.25, -0.7])
def test_alphapo_reward_increases_with_probability(alpha):
    n = torch.tensor([4, 4, 4, 4])
    completions = Completions(logps=torch.tensor([-1e-8, -1.0, -9.0, -60.0]).double(), lengths=n)
    reward = get_objective("alphapo", alpha=alpha).reward(completions)
    assert (reward.diff() < 0).all()


# The implicit reward of a completion with log π = −6, log π_ref = −10 and 5 tokens.
REWARDS = {
    ("cdpo", "beta", 0.3): 1.2,
    ("aot_paired", "beta", 0.3): 1.2,
    ("sppo_hard", "beta", 0.3): 1.2,
    ("reward_aware_rpo", "beta", 0.3): 1.2,
    ("hinge", "gamma", 0.3): 1.2,
    ("slic",): -6.0,
    ("rdpo_length", "beta", 0.3, "alpha", 0.2): 2.2,
    ("dpo_norm", "beta", 0.3): 0.24,
    ("rebel", "eta", 0.5): 8.0,
    ("cpo", "beta", 0.3): -1.8,
    ("cpo_simpo", "beta", 0.3): -0.36,
    ("alphapo", "beta", 0.3, "alpha", 0.0): -0.36,
    ("alphapo", "beta", 0.3, "alpha", 0.5): 0.6 * (1 - math.exp(0.6)),
    ("fdpo", "beta", 0.3, "divergence", "reverse_kl"): 1.2,
    ("js_dpo", "beta", 0.3): 0.3 * math.log(2 / (1 + math.exp(-4))),
    ("forward_kl_dpo", "beta", 0.3): 0.3 * (1 - math.exp(-4)),
    ("alpha_div_dpo", "beta", 0.3): 0.6 * (1 - math.exp(-2)),
}


@pytest.mark.parametrize("key", REWARDS, ids=lambda key: "-".join(map(str, key)))
def test_reward(key):
    name, setting = settings(key)
    logps, ref_logps = torch.tensor([-6.0]).double(), torch.tensor([-10.0]).double()
    completions = Completions(logps=logps, ref_logps=ref_logps, lengths=torch.tensor([5]))
    reward = get_objective(name, **setting).reward(completions)
    assert reward.dtype == torch.float64
    assert reward.item() == pytest.approx(REWARDS[key], rel=1e-13)


SHIFTED = {
    **dict.fromkeys(
        ("cdpo", "robust_dpo", "hinge", "exo_pair", "discopop", "rdpo_length", "rebel", "reward_aware_rpo"), True
    ),
    **dict.fromkeys(("nca_pair", "sppo_hard", "sppo", "apo_zero", "apo_down", "dpop", "cal_dpo", "js_dpo"), False),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_shift_of_a_prompt(name):
    labels = dict.fromkeys(("chosen_score", "rejected_score"), torch.tensor([0.5, -0.25, 0.75]).double())
    labels["preference"] = torch.tensor([0.9, 0.2, 0.6]).double()
    one = sums([0.6, -1.5, -2.0], [0.2, 0.4, 1.0], **labels)
    other = sums([0.6 - 3, -1.5 + 2, -2.0 + 5], [0.2 - 3, 0.4 + 2, 1.0 + 5], **labels)
    objective = get_objective(name, **({} if name in ("hinge", "rebel") else {"beta": 0.5}))
    difference = (rows_of(objective, one) - rows_of(objective, other)).abs()
    assert (difference < 1e-12).all() if SHIFTED[name] else (difference > 1e-4).all()


ALIASES = {
    "cdpo": ("conservative_dpo", "dpo_label_smoothing"),
    "robust_dpo": ("robust", "rdpo_robust"),
    "hinge": ("rso_hinge", "hinge_norm"),
    "slic": ("slic_hf",),
    "discopop": ("lrml",),
    "rdpo_length": ("r_dpo", "length_dpo"),
    "dpop": ("dpo_positive", "smaug"),
    "rpo_nll": ("dpo_nll", "irpo"),
    "dpo_norm": ("sigmoid_norm",),
}


@pytest.mark.parametrize("name", ALIASES)
def test_aliases(name):
    for alias in ALIASES[name]:
        assert lookup(alias) is lookup(name)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("apo", ("apo_zero", "apo_down")),
        ("aot", ("aot_paired", "aot_unpaired")),
        ("aot_pair", ("aot_paired", "aot_unpaired")),
        ("rdpo", ("robust_dpo", "rdpo_length")),
        ("rpo", ("rpo_nll", "reward_aware_rpo")),
    ],
)
def test_ambiguous_names_are_refused(name, choices):
    with pytest.raises(UsageError, match="several losses") as error:
        get_objective(name)
    assert all(repr(choice) in str(error.value) for choice in choices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "setting"), EDGES)
def test_finite_at_the_ends(name, setting, dtype):
    ends = [0.0, -1e-8, -1e4]
    rows = [([a], [b], [c], [d], 0.5, 1.0, -1.0) for a in ends for b in ends for c in ends for d in ends]
    batch, objective = pairs(rows, dtype), get_objective(name, **setting)
    for path in ("chosen.tokens.logps", "rejected.tokens.logps"):
        grad = gradient(objective, batch, path)
        assert grad[:, 0].isfinite().all()
    assert all(term.values.isfinite().all() for term in objective(batch).terms.values())
