"""The ranked container, and facts that pin down objectives on ranked lists. Their values are certified."""

import math
from dataclasses import replace

import pytest
import torch

from prefopt.core.batches import Completions, Demonstrations, Pairs, Ranked, TokenLogps
from prefopt.core.errors import UsageError
from prefopt.core.numerics import masked_logsumexp
from prefopt.objectives import get_objective

NAMES = ["dpo_pl", "rrhf", "pro", "infonca", "nca", "exo"]

# Groups of (log-probabilities, under the reference, score); the last has a tie and a single best.
GROUPS = [
    [([-0.3, -1.7, -0.05], [-0.8, -1.1, -0.2], 0.4), ([-2.2], [-1.3], 1.5), ([-0.9, -0.6], [-1.2, -0.1], -0.7)],
    [([-4.1], [-2.6], 0.3), ([-0.6, -0.7, -1.9, -0.01], [-0.9, -0.2, -2.4, -0.6], 0.1)],
    [([-0.9], [-1.2], 0.2), ([-1.4, -2.3], [-0.1, -1.6], 0.2), ([-3.3], [-3.0], 1.1), ([-0.2, -0.4], [-0.5, -1.0], -2)],
]


def flat(groups=GROUPS):
    """Log-probabilities, reference, scores and group of all completions, as sums in float64, and their lengths."""
    rows = [(g, *row) for g, group in enumerate(groups) for row in group]
    sums = [[math.fsum(row[i]) for row in rows] for i in (1, 2)]
    logps, ref_logps, scores = (
        torch.tensor(v, dtype=torch.float64).requires_grad_() for v in (*sums, [r[3] for r in rows])
    )
    lengths = torch.tensor([len(row[1]) for row in rows])
    return Ranked(
        completions=Completions(logps=logps, ref_logps=ref_logps, lengths=lengths),
        group=torch.tensor([row[0] for row in rows]),
        scores=scores,
    )


def test_scores_are_read_where_they_should_be():
    for name, read in [("dpo_pl", False), ("rrhf", False), ("pro", True), ("infonca", True), ("exo", True)]:
        batch, options = flat(), {"alpha": 0.5} if name == "infonca" else {}
        bent = replace(batch, scores=batch.scores.detach() ** 3)
        objective = get_objective(name, **options)
        same = torch.equal(objective(batch).mean(), objective(bent).mean())
        assert same is not read, name


def test_rows_may_come_in_any_order():
    batch, order = flat(), torch.tensor([4, 0, 8, 6, 2, 5, 3, 7, 1])
    shuffled = replace(
        batch, completions=batch.completions[order], group=batch.group[order], scores=batch.scores[order]
    )
    for name in NAMES:
        objective = get_objective(name)
        torch.testing.assert_close(objective(shuffled).mean(), objective(batch).mean(), rtol=1e-12, atol=0)


# Values at the reference, and identities.


def at_reference(sizes=(2, 3, 5), scores=None):
    n = sum(sizes)
    logps = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 3
    return Ranked(
        completions=Completions(logps=logps, ref_logps=logps.clone(), lengths=torch.full((n,), 4)),
        group=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        scores=torch.arange(n, 0, -1, dtype=torch.float64) / 7 if scores is None else scores,
    )


def test_values_at_the_reference():
    batch = at_reference()
    factorials = (math.log(2) + math.log(6) + math.log(120)) / 3
    assert float(get_objective("dpo_pl")(batch).mean()) == pytest.approx(factorials, rel=1e-14)
    assert float(get_objective("nca", alpha=0.5)(batch).mean()) == pytest.approx(2 * math.log(2), rel=1e-14)
    log_sizes = (math.log(2) + math.log(3) + math.log(5)) / 3
    assert float(get_objective("infonca", alpha=0.5)(batch).mean()) == pytest.approx(log_sizes, rel=1e-14)
    equal = at_reference(scores=torch.zeros(10, dtype=torch.float64))
    assert float(get_objective("exo")(equal).mean()) == pytest.approx(0, abs=1e-15)


def test_pairs_are_rankings_of_two():
    pairs = Pairs(
        chosen=Completions(logps=torch.tensor([-3.0, -9.0]), ref_logps=torch.zeros(2), lengths=torch.tensor([2, 6])),
        rejected=Completions(logps=torch.tensor([-4.0, -2.0]), ref_logps=torch.ones(2), lengths=torch.tensor([1, 3])),
        chosen_score=torch.tensor([5.0, 2.0]),
        rejected_score=torch.tensor([3.0, 1.5]),
    )
    dpo, pl = get_objective("dpo"), get_objective("dpo_pl")
    assert torch.equal(dpo(pairs).mean(), pl(pairs).mean())
    # PRO: −log σ(d (m_1 − m_2)), d = 2 and ½.
    scaled = torch.tensor([2 * (-1.5 + 4.0), 0.5 * (-1.5 + 2 / 3)])
    ranking = get_objective("pro", sft_weight=0)(pairs).mean()
    torch.testing.assert_close(ranking, -torch.nn.functional.logsigmoid(scaled).mean())
    # Hard targets: InfoNCA is DPO, NCA is NCA on pairs.
    torch.testing.assert_close(get_objective("infonca", beta=0.1)(pairs).mean(), dpo(pairs).mean())
    torch.testing.assert_close(get_objective("nca")(pairs).mean(), get_objective("nca_pair")(pairs).mean())


def test_exo_is_zero_with_no_gradient_at_its_optimum():
    batch = flat()
    objective = get_objective("exo", beta=0.4, beta_reward=0.7)
    shift = torch.tensor([3.0, -1.0, 0.2], dtype=torch.float64)[batch.group]
    logps = (batch.completions.ref_logps + batch.scores * 0.4**-1 / 0.7 + shift).detach().requires_grad_()
    value = objective(replace(batch, completions=replace(batch.completions, logps=logps))).mean()
    assert abs(float(value)) < 1e-14
    (gradient,) = torch.autograd.grad(value, logps)
    assert gradient.abs().max() < 1e-14


def test_nca_optimum_is_log_k_t():
    batch, beta, alpha = flat(), 0.4, 0.9
    weights = torch.exp(batch.scores / alpha).detach()
    target = weights / (batch.same * weights).sum(dim=1)
    logps = (torch.log(batch.sizes * target) / beta).requires_grad_()
    completions = replace(batch.completions, logps=logps, ref_logps=torch.zeros_like(logps))
    value = get_objective("nca", beta=beta, alpha=alpha)(replace(batch, completions=completions)).mean()
    (gradient,) = torch.autograd.grad(value, logps)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize(("name", "invariant"), [("dpo_pl", True), ("infonca", True), ("exo", True), ("nca", False)])
def test_shift_of_a_prompt(name, invariant):
    batch, objective = flat(), get_objective(name, **({"alpha": 0.5} if "nca" in name else {}))
    shift = torch.tensor([3.0, -1.0, 0.2], dtype=torch.float64)[batch.group]
    other = replace(batch, completions=replace(batch.completions, logps=batch.completions.logps + shift))
    change = float((objective(batch).mean() - objective(other).mean()).abs())
    assert (change < 1e-13) is invariant


def test_rrhf_has_no_margin():
    scores = torch.tensor([3.0, 2.0, 1.0])
    ordered = Completions(logps=torch.tensor([-1.0, -1.0, -1.2], requires_grad=True), lengths=torch.tensor([1, 1, 1]))
    batch = Ranked(completions=ordered, group=torch.zeros(3, dtype=torch.int64), scores=scores)
    loss = get_objective("rrhf")(batch)
    assert float(loss.terms["ranking"].values.sum()) == 0
    (gradient,) = torch.autograd.grad(loss.mean(), ordered.logps)
    assert gradient.tolist() == [-1.0, 0.0, 0.0]


def test_ties_do_not_compete():
    logps = torch.tensor([-1.0, -5.0, -2.0], requires_grad=True)
    completions = Completions(logps=logps, ref_logps=torch.zeros(3), lengths=torch.tensor([1, 2, 3]))
    tied = Ranked(completions=completions, group=torch.zeros(3, dtype=torch.int64), ranks=torch.tensor([1, 1, 1]))
    assert float(get_objective("dpo_pl")(tied).mean()) == 0
    assert len(tied.as_pairs().chosen) == 0
    assert float(get_objective("rrhf")(tied).terms["ranking"].values.sum()) == 0
    scored = replace(tied, ranks=None, scores=torch.tensor([2.0, 2.0, 1.0]))
    # Each of the two best is compared with the last alone: −log σ(m_k − m_3).
    mean = completions.mean.detach()
    expected = -torch.nn.functional.logsigmoid(mean[:2] - mean[2]).sum()
    torch.testing.assert_close(get_objective("pro", sft_weight=0)(scored).mean().detach(), expected)


def test_a_group_of_one():
    """Nothing to compare with: what is left is NCA's noise term and the likelihood of the only completion."""
    s = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    alone = Ranked(
        completions=Completions(logps=s, ref_logps=torch.zeros_like(s), lengths=torch.tensor([3])),
        group=torch.tensor([0]),
        scores=torch.tensor([1.5], dtype=torch.float64),
    )
    for name in ("dpo_pl", "infonca", "exo", "pro"):
        value = get_objective(name)(alone).mean()
        value.backward()
        assert float(value.detach()) == 0 and float(s.grad) == 0, name
    nca = -torch.nn.functional.logsigmoid(0.01 * s) - torch.nn.functional.logsigmoid(-0.01 * s)
    torch.testing.assert_close(get_objective("nca")(alone).mean(), nca.sum())
    assert float(get_objective("rrhf")(alone).mean().detach()) == -2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_finite_for_large_margins(name, dtype):
    logps = torch.tensor([-1e4, -1e-8, 0.0, -1e4, -5e3], dtype=dtype, requires_grad=True)
    reference_logps = torch.tensor([-1e-8, -1e4, -1e4, -1e4, 0.0], dtype=dtype)
    batch = Ranked(
        completions=Completions(logps=logps, ref_logps=reference_logps, lengths=torch.ones(5, dtype=torch.int64)),
        group=torch.zeros(5, dtype=torch.int64),
        scores=torch.tensor([5.0, 4.0, 4.0, 1.0, -30.0], dtype=dtype),
    )
    value = get_objective(name)(batch).mean()
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logps.grad).all()


# The container.


def ranked(**changes):
    tokens = TokenLogps(mask=torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0], [1, 1]]).bool(), logps=-torch.rand(5, 2))
    given = {
        "completions": Completions.from_tokens(tokens),
        "group": torch.tensor([0, 1, 0, 1, 0]),
        "scores": torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]),
        "ids": torch.tensor([40, 41]),
    }
    return Ranked(**{**given, **changes})


def test_counts():
    assert ranked().counts() == {"example": 2, "group": 2, "completion": 5, "token": 8, "best_token": 3}
    unscored = replace(ranked(), completions=Completions.unscored(torch.tensor([2, 1, 2, 1, 2])))
    assert unscored.counts() == ranked().counts()


def test_assemble_and_order():
    labels = {"group": torch.tensor([0, 0, 0]), "scores": torch.tensor([1.0, 2.0, 3.0]), "ids": torch.tensor([3])}
    rows = ranked().completions[:3]
    batch = Ranked.assemble(rows, labels)
    assert batch.best.tolist() == [False, False, True]
    by_rank = Ranked.assemble(rows, {**labels, "ranks": torch.tensor([1, 2, 3])})
    assert by_rank.best.tolist() == [True, False, False]
    assert torch.equal(by_rank.above, torch.ones(3, 3).triu(diagonal=1).bool())
    with pytest.raises(UsageError, match="scores or ranks"):
        Ranked.assemble(rows, {"group": labels["group"]})


def test_as_pairs():
    batch = ranked()
    pairs = batch.as_pairs()
    # 2 ≻ 0 and 2 ≻ 4; everything else is tied or of another group.
    assert torch.equal(pairs.chosen.logps, batch.completions.logps[[2, 2]])
    assert torch.equal(pairs.rejected.logps, batch.completions.logps[[0, 4]])
    assert torch.equal(pairs.chosen.tokens.mask, batch.completions.tokens.mask[[2, 2]])
    assert pairs.chosen_score.tolist() == [3, 3] and pairs.rejected_score.tolist() == [1, 1]
    assert len(set(pairs.ids.tolist())) == 2
    # Ids depend on the group alone, not on what else is in the batch.
    alone = Ranked(
        completions=batch.completions[[0, 2, 4]],
        group=torch.zeros(3, dtype=torch.int64),
        scores=batch.scores[[0, 2, 4]],
        ids=torch.tensor([40]),
    )
    assert torch.equal(alone.as_pairs().ids, pairs.ids)


def test_best_as_demonstrations():
    batch = ranked()
    best = batch.view(Demonstrations)
    assert torch.equal(best.completions.logps, batch.completions.logps[[1, 2]])
    assert best.ids.tolist() == [41, 40]


def test_pairs_and_back():
    batch = ranked(group=torch.tensor([0, 1, 0, 1, 1]), scores=torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0]))
    pairs = batch.as_pairs()
    again = pairs.as_ranked().as_pairs()
    assert torch.equal(again.chosen.logps, pairs.chosen.logps)
    assert torch.equal(again.rejected.logps, pairs.rejected.logps)
    assert torch.equal(again.chosen_score, pairs.chosen_score)


def test_scores_are_asked_for():
    batch = ranked(scores=None, ranks=torch.tensor([1, 2, 3, 2, 1]))
    with pytest.raises(UsageError, match="'scores'"):
        get_objective("pro")(batch)


def test_metrics_compare_all_pairs():
    metrics = get_objective("dpo_pl")(flat()).metrics
    assert metrics["rewards/accuracies"].shape == (3 + 1 + 5,)


def test_log_sum_exp_of_thousands_keeps_the_digits_of_its_gradient():
    """Three alike and one that does not count, in float32, where a sum near 2,500 has four digits behind the point."""
    values = torch.tensor([[-2500.0, -2500.0, -2500.0, 7.0]], requires_grad=True)
    total = masked_logsumexp(values, torch.tensor([[True, True, True, False]]))
    assert total.item() == pytest.approx(-2500 + math.log(3), rel=1e-7)
    total.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[1.0, 1.0, 1.0, 0.0]]) / 3, rtol=1e-6, atol=0)
