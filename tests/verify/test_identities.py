"""Identities (I1–I17), values at π = π_ref, limits and invariances of the objectives, each of them also negative."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prefopt import get_objective
from prefopt.core.batches import Completions, Labelled, Pairs, Ranked
from prefopt.core.needs import Needs
from prefopt.core.objective import Objective
from prefopt.verify.cases import Seeded, draw
from prefopt.verify.evaluation import evaluate, loss_of, state_of
from prefopt.verify.leaves import leaves, with_leaves
from prefopt.verify.optimum import World

ALL = Needs(
    batch=Pairs,
    reference=True,
    tokens=True,
    statistics=frozenset({"kl", "log_sum_p2"}),
    labels=("chosen_score",),
)
SEEDS = range(6)


def pairs(seed: int, **options) -> Pairs:
    """Random pairs with everything that any loss of pairs reads (but no soft labels)."""
    batch = draw(Seeded(seed), ALL, rows=4, **{"regime": "ordinary", **options}).build()
    return Pairs(
        chosen=batch.chosen,
        rejected=batch.rejected,
        ids=batch.ids,
        chosen_score=batch.chosen_score,
        rejected_score=batch.rejected_score,
    )


def at_reference(seed: int) -> Pairs:
    batch = pairs(seed, regime="reference")
    kl = {path: torch.zeros_like(value) for path, value in leaves(batch).items() if path.endswith("kl")}
    # Any weight per token will do but WPO's own average of 1.
    p2 = {path: leaves(batch)[path.replace("log_sum_p2", "logps")] for path in leaves(batch) if path.endswith("p2")}
    return with_leaves(batch, {**kl, **p2})


def rows(objective: Objective, batch: Pairs) -> Tensor:
    """The loss of each pair, where all terms are means over examples."""
    loss = objective(batch, state_of(objective, batch))
    assert all(term.per == "example" for term in loss.terms.values())
    return torch.stack([term.weight * term.values for term in loss.terms.values()]).sum(0)


def of(name: str, batch: Pairs, **hyperparameters) -> Tensor:
    return rows(get_objective(name, **hyperparameters), batch)


def swapped(batch: Pairs) -> Pairs:
    return Pairs(chosen=batch.rejected, rejected=batch.chosen, ids=batch.ids)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def same_loss(a: Objective, b: Objective, batch: Pairs, tolerance: float = 1e-12) -> None:
    """Value and every gradient."""
    first, second = (evaluate(loss_of(one), batch, state_of(one, batch)).flat() for one in (a, b))
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


# --- Identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
class TestIdentities:
    def test_i1_swapping_the_pair_adds_z(self, seed: int) -> None:
        batch = pairs(seed)
        same(of("dpo", swapped(batch), beta=0.3), of("dpo", batch, beta=0.3) + 0.3 * batch.margin)

    def test_i2_cdpo_is_dpo_plus_epsilon_z(self, seed: int) -> None:
        batch = pairs(seed)
        smoothed = of("cdpo", batch, beta=0.3, label_smoothing=0.2)
        same(smoothed, of("dpo", batch, beta=0.3) + 0.2 * 0.3 * batch.margin)

    def test_i3_robust_dpo_is_dpo_minus_its_share_of_z(self, seed: int) -> None:
        batch = pairs(seed)
        robust = of("robust_dpo", batch, beta=0.3, label_smoothing=0.2)
        same(robust, of("dpo", batch, beta=0.3) - 0.2 / 0.6 * 0.3 * batch.margin)

    def test_i4_robust_dpo_is_unbiased_under_flips(self, seed: int) -> None:
        batch, settings = pairs(seed), {"beta": 0.3, "label_smoothing": 0.2}
        kept, flipped = of("robust_dpo", batch, **settings), of("robust_dpo", swapped(batch), **settings)
        same(0.8 * kept + 0.2 * flipped, of("dpo", batch, beta=0.3))

    def test_i5_sppo_is_ipo_plus_the_square_of_the_sum(self, seed: int) -> None:
        batch = pairs(seed)
        total = batch.chosen.log_ratio + batch.rejected.log_ratio
        same(of("sppo_hard", batch, beta=0.3), 0.5 * of("ipo", batch, tau=0.15) + 0.5 * total**2)

    def test_i6_apo_zero_is_twice_kto_without_a_reference_point(self, seed: int) -> None:
        batch = pairs(seed)
        kto = get_objective("kto", beta=0.3)
        loss = kto(batch, {"z0": torch.zeros((), dtype=torch.float64)}).mean()
        same(of("apo_zero", batch, beta=0.3).mean(), 2 * loss)

    def test_i7_bco_is_never_below_dpo(self, seed: int) -> None:
        batch, objective = pairs(seed), get_objective("bco_pair", beta=0.3)
        for delta in (-2.0, 0.0, 1.0):
            state = {**state_of(objective, batch), "delta": torch.tensor(delta, dtype=torch.float64)}
            assert bool((objective(batch, state).terms["quality"].values >= of("dpo", batch, beta=0.3)).all())

    def test_i8_aot_is_never_above_cdpo(self, seed: int) -> None:
        batch = pairs(seed)
        for name in ("aot_paired", "aot_unpaired"):
            settings = {"beta": 0.3, "label_smoothing": 0.1}
            assert float(of(name, batch, **settings).mean()) <= float(of("cdpo", batch, **settings).mean()) + 1e-12
            one = first_row(batch)
            same(of(name, one, **settings), of("cdpo", one, **settings))

    def test_i9_dpop_is_never_below_dpo(self, seed: int) -> None:
        batch = pairs(seed)
        dpop, dpo = of("dpop", batch, beta=0.3), of("dpo", batch, beta=0.3)
        held = batch.chosen.log_ratio >= 0
        same(dpop[held], dpo[held])
        assert bool((dpop[~held] > dpo[~held]).all())

    def test_i10_plackett_luce_of_two_is_dpo(self, seed: int) -> None:
        batch = pairs(seed)
        plain = Pairs(chosen=batch.chosen, rejected=batch.rejected, ids=batch.ids)
        same(get_objective("dpo_pl", beta=0.3)(plain).mean(), of("dpo", batch, beta=0.3).mean())

    def test_i11_pro_of_two_is_a_logistic_loss_of_the_gap(self, seed: int) -> None:
        batch = pairs(seed)
        gap = batch.chosen_score - batch.rejected_score
        clear = gap > 1e-6
        if not clear.all():
            return
        pro = get_objective("pro", sft_weight=0.0)(batch).mean()
        logits = gap * (batch.chosen.mean - batch.rejected.mean)
        same(pro, -torch.nn.functional.logsigmoid(logits).mean())

    @pytest.mark.parametrize(
        ("name", "hyperparameters"),
        [
            ("ld_dpo", {"alpha": 1.0}),
            ("rdpo_length", {"alpha": 0.0}),
            ("tdpo2", {"alpha": 0.0}),
            ("dpop", {"lam": 0.0}),
            ("rpo_nll", {"alpha": 0.0}),
            ("cdpo", {"label_smoothing": 0.0}),
            ("robust_dpo", {"label_smoothing": 0.0}),
            ("fdpo", {"divergence": "reverse_kl"}),
        ],
    )
    def test_i12_is_dpo(self, seed: int, name: str, hyperparameters: dict) -> None:
        same_loss(get_objective(name, beta=0.3, **hyperparameters), get_objective("dpo", beta=0.3), pairs(seed))

    def test_i13_alphapo_without_alpha_is_simpo(self, seed: int) -> None:
        settings = {"beta": 2.0, "gamma": 0.5}
        same_loss(get_objective("alphapo", alpha=0.0, **settings), get_objective("simpo", **settings), pairs(seed))

    def test_i17_rebel_at_its_start_follows_the_reward_gap(self, seed: int) -> None:
        batch, eta = at_reference(seed), 0.7
        objective = get_objective("rebel", eta=eta)
        summed = plain(batch)
        gradient = evaluate(loss_of(objective), summed, {}).gradient
        gap = batch.chosen_score - batch.rejected_score
        same(gradient["chosen.logps"], -(2 / eta) * gap / len(gap))
        same(gradient["rejected.logps"], (2 / eta) * gap / len(gap))

    def test_sums_of_known_losses(self, seed: int) -> None:
        batch = pairs(seed)
        objective = get_objective
        simpo = {"beta": 2.0, "gamma": 0.5}
        sum_ = objective("simpo", **simpo) + 0.7 * objective("sft")
        same_loss(objective("cpo_simpo", **simpo, alpha=0.7, nll="token"), sum_, batch)
        mixed = 0.8 * objective("dpo", beta=0.3) + 0.2 * objective("bco_pair", beta=0.3)
        mixed = mixed + objective("sft", average="sequence")
        same_loss(objective("mpo", beta=0.3), mixed, batch)
        same_loss(objective("wpo_weighted", base="dpo(beta=0.3)"), objective("wpo", beta=0.3), batch)
        logistic = objective("dpo", beta=1.0) + 0.5 * objective("sppo_hard", beta=0.3)
        same_loss(objective("cal_dpo", beta=0.3, weight=0.5), logistic, batch)


def first_row(batch: Pairs) -> Pairs:
    one = torch.tensor([0])
    return Pairs(chosen=batch.chosen[one], rejected=batch.rejected[one], ids=batch.ids[one])


def plain(batch: Pairs) -> Pairs:
    """The batch without per-token values."""

    def bare(rows: Completions) -> Completions:
        return Completions(logps=rows.logps, lengths=rows.lengths, ref_logps=rows.ref_logps)

    scores = {"chosen_score": batch.chosen_score, "rejected_score": batch.rejected_score}
    return Pairs(chosen=bare(batch.chosen), rejected=bare(batch.rejected), ids=batch.ids, **scores)


# --- Limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_limits(seed: int) -> None:
    batch = pairs(seed)
    dpo, near = get_objective("dpo", beta=0.3), 1e-6
    alpha = get_objective("fdpo", beta=0.3, divergence="alpha", alpha=near)
    same_loss(alpha, dpo, batch, tolerance=1e-4)
    alpha = get_objective("fdpo", beta=0.3, divergence="alpha", alpha=1 - near)
    same_loss(alpha, get_objective("fdpo", beta=0.3, divergence="forward_kl"), batch, tolerance=1e-2)
    simpo = get_objective("simpo", beta=2.0, gamma=0.5)
    for small in (near, -near):
        same_loss(get_objective("alphapo", beta=2.0, gamma=0.5, alpha=small), simpo, batch, tolerance=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_lengths(seed: int) -> None:
    """Where all responses have L tokens, length-normalised DPO is DPO at β/L, and length terms vanish."""
    batch = plain(pairs(seed))
    four = torch.full((4,), 4)
    sides = [Completions(logps=x.logps, lengths=four, ref_logps=x.ref_logps) for x in (batch.chosen, batch.rejected)]
    equal = Pairs(chosen=sides[0], rejected=sides[1], ids=batch.ids)
    same_loss(get_objective("dpo_norm", beta=1.2), get_objective("dpo", beta=0.3), equal)
    same_loss(get_objective("rdpo_length", beta=0.3, alpha=0.9), get_objective("dpo", beta=0.3), equal)
    same(of("ipo", equal, tau=0.5, average=True) * 16, of("ipo", equal, tau=0.125))


# --- Values at π = π_ref ---------------------------------------------------------------------------------------------

LOG2 = math.log(2)
AT_REFERENCE = {
    "dpo": (LOG2, {}),
    "cdpo": (LOG2, {}),
    "robust_dpo": (LOG2, {}),
    "aot_paired": (LOG2, {}),
    "aot_unpaired": (LOG2, {}),
    "tdpo1": (LOG2, {}),
    "tdpo2": (LOG2, {}),
    "dpop": (LOG2, {}),
    "js_dpo": (LOG2, {}),
    "forward_kl_dpo": (LOG2, {}),
    "alpha_div_dpo": (LOG2, {}),
    "dpo_norm": (LOG2, {}),
    "ld_dpo": (LOG2, {}),
    "sampo": (LOG2, {}),
    "wpo": (LOG2, {}),
    "ipo": (1 / (2 * 0.3) ** 2, {"tau": 0.3}),
    "hinge": (1.0, {}),
    "nca_pair": (2 * LOG2, {}),
    "bco_pair": (2 * LOG2, {}),
    "sppo_hard": (1 / (2 * 0.3**2), {"beta": 0.3}),
    "apo_zero": (1.0, {}),
    "apo_down": (1.0, {}),
    "discopop": (0.5 * LOG2 + 0.5, {}),
    "exo_pair": (-LOG2 - 0.5 * math.log(1e-3 * (1 - 1e-3)), {"label_smoothing": 1e-3}),
    "cal_dpo": (LOG2 + 1 / (4 * 0.3**2), {"beta": 0.3, "weight": 0.5}),
}


@pytest.mark.parametrize("name", AT_REFERENCE)
def test_value_at_reference(name: str) -> None:
    value, hyperparameters = AT_REFERENCE[name]
    for seed in SEEDS:
        found = of(name, at_reference(seed), **hyperparameters)
        torch.testing.assert_close(found, torch.full_like(found, value), rtol=1e-12, atol=1e-12)


def test_values_at_reference_that_depend_on_the_batch() -> None:
    for seed in SEEDS:
        batch = at_reference(seed)
        longer = (batch.chosen.lengths - batch.rejected.lengths).double()
        same(of("rdpo_length", batch, alpha=0.2), -torch.nn.functional.logsigmoid(0.2 * longer))
        same(of("rebel", batch, eta=1.0), (batch.chosen_score - batch.rejected_score) ** 2)
        # β-DPO drops some pairs and averages over the others.
        assert float(get_objective("beta_dpo")(batch).mean()) == pytest.approx(LOG2, abs=1e-12)


@pytest.mark.parametrize(("good", "bad"), [(1.0, 1.0), (0.5, 2.0)])
def test_kto_at_reference(good: float, bad: float) -> None:
    world = World.random(0)
    rows_ = torch.arange(5)
    desirable = torch.tensor([True, False, False, True, True])
    completions = world.pick(world.reference, rows_)
    batch = Labelled(completions=completions, desirable=desirable, mismatched=completions)
    objective = get_objective("kto", desirable_weight=good, undesirable_weight=bad)
    same(objective(batch).terms["value"].values, torch.where(desirable, good / 2, bad / 2).double())


@pytest.mark.parametrize("k", [2, 3, 4])
def test_lists_at_reference(k: int) -> None:
    world = World.random(0, k)
    completions = world.pick(world.reference, torch.arange(k))
    batch = Ranked(completions=completions, group=torch.zeros(k, dtype=torch.long), scores=world.rewards)
    assert float(get_objective("dpo_pl")(batch).mean()) == pytest.approx(math.log(math.factorial(k)), abs=1e-12)
    assert float(get_objective("infonca")(batch).mean()) == pytest.approx(math.log(k), abs=1e-12)
    assert float(get_objective("nca")(batch).mean()) == pytest.approx(2 * LOG2, abs=1e-12)


# --- Invariances, and what must not be invariant ---------------------------------------------------------------------

SHIFT_INVARIANT = (
    *("dpo", "cdpo", "robust_dpo", "ipo", "hinge", "exo_pair", "aot_paired"),
    *("rdpo_length", "discopop", "dpo_pl", "rebel", "tdpo1", "tdpo2", "reward_aware_rpo"),
)
NOT_SHIFT_INVARIANT = (
    *("nca_pair", "sppo_hard", "apo_zero", "apo_down", "dpop", "cal_dpo", "js_dpo"),
    *("forward_kl_dpo", "dpo_norm", "bco_pair"),
)


def shifted(batch: Pairs, change: Callable[[Completions, Tensor], Tensor]) -> Pairs:
    """s moved by its own constant for each prompt."""
    constant = torch.tensor([0.7, -1.3, 2.1, 0.4], dtype=torch.float64)
    paths = ("chosen.tokens.logps", "rejected.tokens.logps")
    moved = {}
    for path in paths:
        side: Completions = getattr(batch, path.split(".")[0])
        moved[path] = change(side, constant)
    return with_leaves(batch, moved)


def on_one_token(side: Completions, constant: Tensor) -> Tensor:
    first = side.tokens.mask.cumsum(1) == 1
    return side.tokens.logps + torch.where(first, constant[:, None], 0.0)


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_prompt_shift_changes_nothing(name: str) -> None:
    for seed in SEEDS:
        batch = pairs(seed)
        objective = get_objective(name)
        before, after = objective(batch).mean(), objective(shifted(batch, on_one_token)).mean()
        torch.testing.assert_close(before, after, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NOT_SHIFT_INVARIANT)
def test_prompt_shift_changes_the_loss(name: str) -> None:
    batch, objective = pairs(1), get_objective(name)
    state = state_of(objective, batch)
    before, after = objective(batch, state).mean(), objective(shifted(batch, on_one_token), state).mean()
    assert abs(float(before - after)) > 1e-7 * abs(float(before))


def test_kto_and_bco_are_invariant_if_their_reference_point_shifts_too() -> None:
    batch = plain(pairs(2))
    up = {f"{side}.logps": getattr(batch, side).logps + 0.9 for side in ("chosen", "rejected")}
    moved = with_leaves(batch, up)
    for name, key, unit in (("kto", "z0", 1.0), ("bco_pair", "delta", 0.3)):
        objective = get_objective(name, beta=0.3)
        state = {key: torch.tensor(0.4, dtype=torch.float64)}
        also = {key: torch.tensor(0.4 + unit * 0.9, dtype=torch.float64)}
        same(objective(batch, state).mean(), objective(moved, also).mean())
        assert abs(float(objective(batch, state).mean() - objective(moved, state).mean())) > 1e-5


def test_dpo_depends_on_beta_times_s() -> None:
    batch = plain(pairs(3))
    doubled = with_leaves(batch, {path: 2 * value for path, value in leaves(batch).items() if "logps" in path})
    same(of("dpo", batch, beta=0.4), of("dpo", doubled, beta=0.2))


@pytest.mark.parametrize(("name", "cancels"), [("dpo", True), ("cpo", False), ("simpo", False), ("orpo", False)])
def test_a_shared_prefix_cancels_in_sums_only(name: str, cancels: bool) -> None:
    """Five tokens that both responses have in common, as likely under the reference."""
    batch = plain(pairs(4))
    prefix = torch.tensor([-1.0, -2.0, -3.0, -0.5], dtype=torch.float64)

    def longer(side: Completions) -> Completions:
        return Completions(logps=side.logps + prefix, lengths=side.lengths + 5, ref_logps=side.ref_logps + 0.5 * prefix)

    objective = get_objective(name)
    before = objective(batch).mean()
    after = objective(Pairs(chosen=longer(batch.chosen), rejected=longer(batch.rejected), ids=batch.ids)).mean()
    assert (abs(float(before - after)) < 1e-12) == cancels


# --- Signs: which way each response is pushed ------------------------------------------------------------------------


UP_AND_DOWN = (
    *("dpo", "robust_dpo", "simpo", "dpo_norm", "apo_zero", "js_dpo"),
    *("forward_kl_dpo", "rdpo_length", "wpo", "ld_dpo", "bco_pair", "dpo_pl"),
)


@pytest.mark.parametrize("name", UP_AND_DOWN)
def test_chosen_is_pushed_up_and_rejected_down(name: str) -> None:
    for seed in SEEDS:
        batch, objective = pairs(seed), get_objective(name)
        gradient = evaluate(loss_of(objective), batch, state_of(objective, batch)).gradient
        for path, sign in (("chosen.tokens.logps", -1), ("rejected.tokens.logps", 1)):
            assert bool((sign * gradient[path] >= 0).all())
            assert bool((sign * gradient[path] > 0).any())


def test_apo_at_reference_moves_what_it_says() -> None:
    batch = plain(at_reference(0))
    n = len(batch.chosen)
    for name, up in (("apo_zero", -0.1 / 4), ("apo_down", 0.0)):
        gradient = evaluate(loss_of(get_objective(name, beta=0.1)), batch, {}).gradient
        same(gradient["chosen.logps"], torch.full((n,), up / n, dtype=torch.float64))
        same(gradient["rejected.logps"], torch.full((n,), 0.1 / 4 / n, dtype=torch.float64))
