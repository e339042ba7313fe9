"""Weighted sums of objectives: values, gradients, needs, state, and the text that writes them."""

from dataclasses import replace

import pytest
import torch

from prefopt.core.batches import Completions, Demonstrations, Labelled, Pairs, Ranked
from prefopt.core.counts import global_counts
from prefopt.core.errors import UsageError
from prefopt.core.objective import Combined, Objective, describe
from prefopt.core.registry import REGISTRY
from prefopt.objectives import get_objective


def pairs(n=3, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    values = [-torch.rand(n, dtype=torch.float64, generator=numbers) * 9 for _ in range(4)]
    leaves = [value.requires_grad_() for value in values[:2]]
    lengths = (torch.arange(1, n + 1), torch.arange(n, 0, -1) * 2)
    return Pairs.from_sums(*leaves, *values[2:], lengths=lengths, ids=torch.arange(n)), leaves


def ranked():
    numbers = torch.Generator().manual_seed(1)
    logps = (-torch.rand(7, dtype=torch.float64, generator=numbers) * 9).requires_grad_()
    completions = Completions(logps=logps, ref_logps=logps.detach().flip(0), lengths=torch.arange(1, 8))
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    scores = torch.tensor([0.3, 0.1, 0.9, 0.5, 0.5, -1.0, 2.0], dtype=torch.float64)
    return Ranked(completions=completions, group=group, scores=scores, ids=torch.arange(2)), [logps]


def labelled():
    logps = torch.tensor([-2.0, -1.0, -7.0, -0.5], dtype=torch.float64, requires_grad=True)
    rows = Completions(logps=logps, ref_logps=logps.detach() / 2, lengths=torch.tensor([3, 1, 4, 1]))
    mismatched = Completions(logps=rows.logps.detach() - 1, ref_logps=rows.ref_logps * 3, lengths=rows.lengths)
    desirable = torch.tensor([True, False, True, False])
    return Labelled(completions=rows, desirable=desirable, mismatched=mismatched), [logps]


SUMS = [
    (pairs, "dpo(beta=0.2) + 0.2*sft", [(1.0, "dpo(beta=0.2)"), (0.2, "sft")]),
    (pairs, "0.5*simpo + 2*cpo + orpo", [(0.5, "simpo"), (2.0, "cpo"), (1.0, "orpo")]),
    (pairs, "dpo + 0.3*bco + sft(average=sum)", [(1.0, "dpo"), (0.3, "bco"), (1.0, "sft(average='sum')")]),
    (pairs, "dpo + 0.5*dpo(beta=1.5)", [(1.0, "dpo"), (0.5, "dpo(beta=1.5)")]),
    (pairs, "0.5*beta_dpo + mpo", [(0.5, "beta_dpo"), (1.0, "mpo")]),
    (pairs, "dpo + 0.1*dpo_pl", [(1.0, "dpo"), (0.1, "dpo_pl")]),
    (ranked, "dpo_pl + 0.2*sft + 0.5*dpo", [(1.0, "dpo_pl"), (0.2, "sft"), (0.5, "dpo")]),
    (ranked, "rrhf + 0.7*pro + 0.1*nca(alpha=0.5)", [(1.0, "rrhf"), (0.7, "pro"), (0.1, "nca(alpha=0.5)")]),
    (labelled, "kto + 0.1*sft + 0.4*bco", [(1.0, "kto"), (0.1, "sft"), (0.4, "bco")]),
]


@pytest.mark.parametrize(("make", "text", "parts"), SUMS, ids=[text for _, text, _ in SUMS])
def test_loss_and_gradient_are_the_weighted_sums(make, text, parts):
    batch, leaves = make()
    value = get_objective(text)(batch).mean()
    alone = sum(weight * get_objective(part)(batch).mean() for weight, part in parts)
    torch.testing.assert_close(value, alone, rtol=1e-14, atol=0)
    for leaf in leaves:
        (found,), (expected,) = (torch.autograd.grad(loss, leaf, retain_graph=True) for loss in (value, alone))
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-16)


def test_python_and_text_say_the_same():
    dpo, sft = get_objective("dpo", beta=0.2), get_objective("sft")
    written, made = get_objective("dpo(beta=0.2) + 0.2*sft"), dpo + 0.2 * sft
    assert written == made
    assert describe(made) == made.name == "dpo(beta=0.2) + 0.2*sft"
    assert get_objective(describe(made)) == made
    # Sums of sums are multiplied out.
    assert (0.5 * made + sft).members == ((0.5, dpo), (0.1, sft), (1.0, sft))
    assert [part.key for part in (0.5 * made + sft).parts] == ["dpo", "sft", "sft#2"]
    with pytest.raises(TypeError):
        dpo + 3


def test_brackets_alone_make_a_plain_objective():
    assert get_objective("dpo(beta=0.3)") == get_objective("dpo", beta=0.3)
    assert get_objective("ipo(average=true, tau=0.2)") == get_objective("ipo", tau=0.2, average=True)
    assert get_objective("sigmoid(beta=1)").beta == 1


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("dpo + ", {}, "cannot read"),
        ("dpo - sft", {}, "'dpo - sft' takes one loss from another: weights are at least 0"),
        ("dpo(beta=0.2) - 0.5*sft", {}, "weights are at least 0"),
        ("dpo + sft - ipo", {}, "weights are at least 0"),
        ("apo-zero", {}, "Did you mean 'apo_zero'"),
        ("dpo * sft", {}, "cannot read"),
        ("dpo + 0.2*(sft", {}, "cannot read"),
        ("dpo(0.2)", {}, "cannot read"),
        ("dpo(beta=__import__('os'))", {}, "cannot read"),
        ("dpo + 0.2*stf", {}, "Did you mean"),
        ("dpo(betta=0.2) + sft", {}, "Did you mean 'beta'"),
        ("dpo(beta=0.2)", {"beta": 0.3}, "twice"),
        ("dpo + sft", {"beta": 0.3}, r"in brackets, \(beta=0.3\)"),
        ("dpo + tdpo", {}, "'tdpo1' or 'tdpo2'"),
    ],
)
def test_what_cannot_be_read_is_said(text, options, says):
    with pytest.raises(UsageError, match=says):
        get_objective(text, **options)


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf"), True])
def test_weights(weight):
    with pytest.raises(UsageError, match="weight of sft"):
        Combined(members=((weight, get_objective("sft")),))


def test_a_weight_of_zero_leaves_the_other_part():
    batch, _ = pairs()
    torch.testing.assert_close(get_objective("dpo + 0*sft")(batch).mean(), get_objective("dpo")(batch).mean())


# Needs.


def test_needs_are_the_union():
    needs = get_objective("ld_dpo + wpo + 0.1*simpo + rebel + bco_pair").needs
    assert needs.batch is Pairs and needs.reference and needs.lengths and needs.tokens and not needs.coupled
    assert needs.statistics == {"log_sum_p2"} and needs.observes == {"rows"}
    assert needs.labels == ("chosen_score", "rejected_score")
    assert get_objective("tdpo1 + wpo").needs.statistics == {"kl", "log_sum_p2"}
    assert get_objective("kto + bco").needs.observes == {"mismatched", "rows"}
    assert get_objective("dpo + aot_paired").needs.coupled
    assert not get_objective("simpo + sft").needs.reference


@pytest.mark.parametrize(
    ("text", "container"),
    [
        ("dpo + sft", Pairs),
        ("sft + dpo", Pairs),
        ("bco + dpo", Pairs),
        ("kto + sft", Labelled),
        ("dpo + dpo_pl", Ranked),
        ("sft + 0.1*rrhf", Ranked),
        ("0.3*sft", Demonstrations),
        ("bco + rrhf", Pairs),
    ],
)
def test_container(text, container):
    assert get_objective(text).needs.batch is container


def test_labels_are_those_of_the_container():
    assert get_objective("dpo_pl + rebel").needs.labels == ("scores",)
    assert get_objective("pro + bco").needs.labels == ("chosen_score", "rejected_score")


def test_impossible_sums_are_refused():
    with pytest.raises(UsageError, match=r"kto needs completions scored after another prompt.*pairs"):
        get_objective("dpo + kto")


def test_each_part_checks_its_own_needs():
    batch, _ = pairs()
    unmeasured = Pairs.from_sums(batch.chosen.logps, batch.rejected.logps, batch.chosen.ref_logps, batch.chosen.logps)
    with pytest.raises(UsageError, match="simpo normalises by length"):
        get_objective("dpo + simpo")(unmeasured)
    with pytest.raises(UsageError, match="'scores'"):
        get_objective("dpo + pro")(batch)


def test_nothing_is_lost_on_the_way_to_a_part():
    """Soft labels have no place in a ranking, so a sum with a ranked part must see the pairs themselves."""
    batch, _ = pairs()
    soft = replace(batch, preference=torch.tensor([0.6, 0.9, 0.5], dtype=torch.float64))
    both = get_objective("cdpo + dpo_pl")
    expected = get_objective("cdpo")(soft).mean() + get_objective("dpo_pl")(soft).mean()
    torch.testing.assert_close(both(soft).mean(), expected)
    assert not torch.isclose(both(soft).mean(), both(batch).mean())


def test_labelled_rows_are_imitated_where_desirable():
    batch, _ = labelled()
    view = batch.view(Demonstrations)
    assert view.completions.logps.tolist() == [-2.0, -7.0]
    assert float(get_objective("sft")(batch).mean().detach()) == 9 / 7


# State, counts, metrics.


def test_state_is_kept_part_by_part():
    batch, _ = pairs()
    both = get_objective("bco_pair(beta=0.5) + 0.5*bco(beta=0.1) + beta_dpo")
    state = both.init_state()
    assert set(state) == {
        *("bco_pair/delta", "bco_pair/seen", "bco/delta", "bco/seen"),
        *("beta_dpo/mean", "beta_dpo/std", "beta_dpo/steps"),
    }
    after = both.prepare(state, both.observe(batch.detach()))
    for text in ("bco_pair(beta=0.5)", "bco(beta=0.1)", "beta_dpo"):
        part = get_objective(text)
        expected = part.prepare(part.init_state(), part.observe(part.view(batch).detach()))
        for key, value in expected.items():
            assert torch.equal(after[f"{part.name}/{key}"], value), (text, key)
    frozen = both.prepare(after, both.observe(batch.detach()), frozen=True)
    assert all(torch.equal(frozen[key], after[key]) for key in state)


def test_micro_batches_change_nothing():
    batch, _ = pairs(5)
    both = get_objective("dpo + 0.2*sft + 0.3*bco + mpo(nll=token)")
    state = both.prepare(both.init_state(), both.observe(batch.detach()))
    parts = [
        replace(batch, chosen=batch.chosen[rows], rejected=batch.rejected[rows], ids=batch.ids[rows])
        for rows in (slice(0, 1), slice(1, 5))
    ]
    counts = global_counts([both.counts(part) for part in parts], lambda own: own)
    total = sum(both(part, state).reduce(counts) for part in parts)
    torch.testing.assert_close(total, both(batch, state).mean(), rtol=1e-14, atol=0)


def test_counts_are_known_before_scoring():
    batch, _ = pairs()
    blank = Pairs(
        chosen=Completions.unscored(batch.chosen.lengths), rejected=Completions.unscored(batch.rejected.lengths)
    )
    both = get_objective("dpo + sft + mpo")
    assert both.counts(blank) == both(batch).counts
    assert both.counts(blank)["sft/token"] == 6 and both.counts(blank)["dpo/token"] == 18
    assert set(both(batch).terms) == {"dpo/preference", "sft/nll", "mpo/dpo/preference"} | {
        "mpo/bco_pair/quality",
        "mpo/sft/nll",
    }


def test_reward_and_metrics():
    batch, _ = pairs()
    dpo, both = get_objective("dpo(beta=0.4)"), get_objective("dpo(beta=0.4) + bco_pair + sft")
    assert torch.equal(both.reward(batch.chosen), dpo.reward(batch.chosen))
    metrics, own = both(batch).metrics, dpo(batch).metrics
    assert all(torch.equal(metrics[key], own[key]) for key in own)
    assert {"dpo/rewards/margins", "bco_pair/delta", "sft/logps"} <= set(metrics)
    assert not any(value.requires_grad for value in metrics.values())


# MPO.


def test_mpo_is_its_sum():
    batch, leaves = pairs()
    parts = "0.8*dpo(beta=0.1) + 0.2*bco_pair(beta=0.1) + sft(average={})"
    for average in ("sequence", "token"):
        mpo, both = get_objective("mpo", nll=average), get_objective(parts.format(average))
        torch.testing.assert_close(mpo(batch).mean(), both(batch).mean(), rtol=1e-15, atol=0)
        for leaf in leaves:
            found, expected = (torch.autograd.grad(one(batch).mean(), leaf)[0] for one in (mpo, both))
            torch.testing.assert_close(found, expected)
    for weights, name in [((1, 0, 0), "dpo"), ((0, 1, 0), "bco_pair"), ((0, 0, 1), "sft")]:
        keys = ("preference_weight", "quality_weight", "generation_weight")
        alone = get_objective(name, **({"average": "sequence"} if name == "sft" else {"beta": 0.1}))
        mpo = get_objective("mpo", **dict(zip(keys, weights, strict=True)))
        torch.testing.assert_close(mpo(batch).mean(), alone(batch).mean())


def test_mpo_declares_what_its_parts_need():
    made = get_objective("mpo")
    cls = REGISTRY["mpo"].cls
    assert cls.needs == made.needs
    assert issubclass(cls, Objective)
