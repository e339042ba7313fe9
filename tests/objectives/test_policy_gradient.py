"""Policy-gradient losses and the critic's: published numbers, the KL estimators, clipping, and what is logged.

Where published code departs from the catalogue (verl's dual clip, its cut of k3, HALOs' ratio to the reference) the
test writes the difference down.
"""

import pytest
import torch
from mpmath import exp, mp, mpf
from published import of_rollouts, tensor

from prefopt.core.batches import Completions, Rollouts, TokenLogps
from prefopt.core.errors import UsageError
from prefopt.core.policy_gradient import bounded_exp, kl_estimate
from prefopt.objectives import get_objective
from prefopt.rollouts.advantages import gae, whiten

NAN = float("nan")
CLIPPED = ("ppo", "grpo", "dr_grpo", "dapo")


def assert_close(found, expected, tolerance=1e-7):
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def rollouts(logps, mask=None, **columns):
    """A batch with NaN wherever the mask is False; advantages may be given per completion."""
    mask = torch.ones_like(logps, dtype=torch.bool) if mask is None else mask
    columns = {"old_logps": logps.detach(), "advantages": torch.zeros_like(logps), **columns}
    columns = {
        name: (x if x.ndim == 2 else x[:, None].expand(mask.shape)).masked_fill(~mask, NAN)
        for name, x in columns.items()
    }
    reference = columns.pop("ref_logps", None)
    tokens = TokenLogps(mask=mask, logps=logps.masked_fill(~mask, NAN), ref_logps=reference)
    return Rollouts(completions=Completions.from_tokens(tokens), **columns)


class Published:
    """An entry as a batch, with the leaf that gradients are taken for."""

    def __init__(self, entry, policy="log_prob"):
        self.entry, inputs = entry, entry["inputs"]
        self.mask = tensor(inputs["mask"]) > 0 if "mask" in inputs else None
        self.leaf = tensor(inputs[policy]).requires_grad_()
        self.mask = torch.ones_like(self.leaf, dtype=torch.bool) if self.mask is None else self.mask

    def column(self, name):
        return tensor(self.entry["inputs"][name])

    def check(self, loss, gradient="grad_log_prob", tolerance=1e-7):
        outputs = self.entry["outputs"]
        assert_close(loss, outputs["loss"], tolerance)
        (found,) = torch.autograd.grad(loss, self.leaf, retain_graph=True)
        assert_close(found, torch.where(self.mask, tensor(outputs[gradient]), 0.0), tolerance)


VARIANTS = {
    "ppo": "policy loss, token-mean",
    "grpo": "policy loss, seq-mean-token-mean",
    "dr_grpo": "policy loss, seq-mean-token-sum-norm",
    "dapo": "policy loss, token-mean",
    "gspo": "policy loss",
    "cispo": "policy loss, clip on both sides",
}


def objective_of(entry, name):
    h = entry["hyperparameters"]
    if name in ("dapo", "gspo", "cispo"):
        return get_objective(name, epsilon_low=h["eps_low"], epsilon_high=h["eps_high"])
    options = {"grpo": {"beta": 0.0}, "dr_grpo": {"max_length": h.get("constant", 1)}}.get(name, {})
    return get_objective(name, epsilon=h["eps_low"], **options)


@pytest.mark.parametrize("name, i", [(name, i) for name in VARIANTS for i in range(12)])
def test_policy_losses_of_verl(name, i):
    entry = of_rollouts(name, VARIANTS[name])[i]
    case, objective = Published(entry), objective_of(entry, name)
    batch = rollouts(case.leaf, case.mask, old_logps=case.column("old_log_prob"), advantages=case.column("advantages"))
    if entry["agrees"]:
        return case.check(objective(batch).mean())
    # verl bounds the loss of a token with A < 0 by c|A|: the dual clip, c = 3.
    tokens, advantages = objective.clipped(batch), objective.advantages(batch)
    bound = -entry["hyperparameters"]["dual_clip"] * advantages
    assert bool(((advantages < 0) & (tokens > bound)).any())
    bounded = torch.where(advantages < 0, torch.minimum(tokens, bound), tokens)
    total, length = batch.tokens.sum(bounded), batch.completions.lengths
    divided = {"grpo": (total / length).mean(), "dr_grpo": (total / entry["hyperparameters"].get("constant", 1)).mean()}
    return case.check(divided.get(name, total.sum() / length.sum()))


@pytest.mark.parametrize("entry", of_rollouts("ppo", "clipped value loss, token mean"))
def test_the_value_loss_of_verl(entry):
    case = Published(entry, "values")
    objective = get_objective("value", epsilon_value=entry["hyperparameters"]["eps_value"])
    columns = {name: case.column(name) for name in ("old_values", "returns")}
    loss = objective(rollouts(torch.zeros_like(case.leaf), case.mask, values=case.leaf, **columns)).mean()
    case.check(loss, "grad_values")


def test_a_value_inside_its_bounds_stays_as_it_is():
    """The old value plus the difference would lose what is small beside the old value."""
    small = torch.tensor([[7.5e-54]], dtype=torch.float64)
    columns = {"values": small, "old_values": torch.full_like(small, 0.25), "returns": small}
    mask = torch.ones(1, 1, dtype=torch.bool)
    objective = get_objective("value", epsilon_value=0.4)
    assert objective(rollouts(torch.zeros_like(small), mask, **columns)).mean() == 0


@pytest.mark.parametrize("entry", of_rollouts("ppo", "whole minibatch loss (GAE, whitening, policy, value)"))
def test_the_whole_minibatch_loss_of_openai(entry):
    h, case = entry["hyperparameters"], Published(entry)
    rewards = case.column("rewards")
    if h["whiten_rewards"]:
        rewards = whiten(rewards.flatten(), shift_mean=False).reshape(rewards.shape)
    advantages, returns = gae(rewards, case.column("old_values"), case.mask, gamma=h["gamma"], lam=h["lam"])
    white = whiten(advantages.flatten()).reshape(advantages.shape)
    values = case.column("values").requires_grad_()
    batch = rollouts(
        case.leaf,
        old_logps=case.column("old_log_prob"),
        advantages=white,
        values=values,
        old_values=case.column("old_values"),
        returns=returns,
    )
    policy = get_objective("ppo", epsilon=h["cliprange"])(batch).mean()
    value = get_objective("value", epsilon_value=h["cliprange_value"])(batch).mean()
    outputs = entry["outputs"]
    near = 1e-6  # 1e-8 is added to variances there, to standard deviations here, and the rewards vary little
    assert_close(policy, outputs["policy_loss"], near)
    assert_close(value, outputs["value_loss"], near)
    case.check(policy + h["vf_coef"] * value, tolerance=near)
    (found,) = torch.autograd.grad(h["vf_coef"] * value, values)
    assert_close(found, outputs["grad_values"], near)


@pytest.mark.parametrize("entry", of_rollouts("grpo", "loss, ratio against the reference, token mean"))
def test_grpo_of_halos_is_dapo_with_a_kl_whose_old_policy_is_the_reference(entry):
    h, case = entry["hyperparameters"], Published(entry)
    objective = get_objective("dapo", epsilon_low=h["eps_low"], epsilon_high=h["eps_high"], beta=h["beta"])
    reference = case.column("ref_log_prob")
    columns = {"old_logps": reference, "ref_logps": reference, "advantages": case.column("advantages")}
    case.check(objective(rollouts(case.leaf, case.mask, **columns)).mean(), tolerance=1e-9)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimates_of_verl(kind):
    (entry,) = of_rollouts(f"kl_{kind}", "per token")
    logps = tensor(entry["inputs"]["log_prob"]).requires_grad_()
    found = kl_estimate(logps - tensor(entry["inputs"]["ref_log_prob"]), kind)
    (gradient,) = torch.autograd.grad(found.sum(), logps)
    expected, slope = tensor(entry["outputs"]["loss"]), tensor(entry["outputs"]["grad_log_prob"])
    cut = expected == 10  # verl cuts k3 there, and its gradient with it
    assert cut.sum() == (2 if kind == "k3" else 0) and bool((found[cut] > 10).all())
    assert_close(found[~cut], expected[~cut], 1e-9)
    assert_close(gradient[~cut], slope[~cut], 1e-9)


# --- KL estimators -------------------------------------------------------------------------------------------------

POINTS = (0.0, 1e-12, -1e-8, 1e-4, -0.0099, 0.00999, 0.0101, -0.02, 0.3, -2.0, 5.0, 39.0, -39.0, 300.0)
EXACT = {
    "k1": (lambda x: x, lambda x: mpf(1)),
    "k2": (lambda x: x**2 / 2, lambda x: x),
    "k3": (lambda x: exp(-x) - 1 + x, lambda x: 1 - exp(-x)),
}


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 2e-13), (torch.float32, 1e-5)])
def test_kl_estimates(kind, dtype, tolerance):
    x = torch.tensor(POINTS, dtype=dtype, requires_grad=True)
    found = kl_estimate(x, kind)
    (slope,) = torch.autograd.grad(found.sum(), x)
    value, derivative = EXACT[kind]
    with mp.workdps(50):
        exact = [mpf(point) for point in x.detach().double().tolist()]
        expected = [float(value(point)) for point in exact], [float(derivative(point)) for point in exact]
    for got, wanted in zip((found, slope), expected, strict=True):
        torch.testing.assert_close(got.double(), tensor(wanted), rtol=tolerance, atol=0.0)


def test_k2_and_k3_are_never_negative():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.cat([torch.linspace(-0.05, 0.05, 4001), torch.logspace(-12, 4, 500), -torch.logspace(-12, 4, 500)])
        for kind in ("k2", "k3"):
            found = kl_estimate(x.to(dtype), kind)
            assert bool(torch.isfinite(found).all()) and bool((found >= 0).all())


def test_the_exponent_is_cut():
    with mp.workdps(50):
        expected = float(exp(mpf(40)))
    assert_close(bounded_exp(tensor([40.0, 41.0, 1e4])), [expected] * 3, 1e-14)
    assert_close(kl_estimate(tensor([-1e4]), "k3"), [expected - 1 - 1e4], 1e-14)


def test_another_estimator_is_refused():
    with pytest.raises(UsageError, match="choose k1, k2 or k3"):
        kl_estimate(tensor([0.0]), "k4")


# --- clipping (8.1) ------------------------------------------------------------------------------------------------


def gradient(objective, batch_of, leaf):
    leaf = leaf.detach().requires_grad_()
    (found,) = torch.autograd.grad(objective(batch_of(leaf)).mean(), leaf)
    return found


OPTIONS = {"grpo": {"beta": 0.0}, "dr_grpo": {"max_length": 3.0}}


@pytest.mark.parametrize("name", CLIPPED)
def test_where_clipping_stops_the_gradient(name):
    objective = get_objective(name, **OPTIONS.get(name, {}))
    low, high = objective.bounds
    ratios = tensor([[1 - low - 0.1, 1.0, 1 + high + 0.1], [1 - low - 0.1, 1.0, 1 + high + 0.1]])
    advantages = tensor([1.5, -1.5])
    old = torch.full_like(ratios, -2.0)
    make = lambda logps: rollouts(logps, old_logps=old, advantages=advantages)  # noqa: E731
    found = gradient(objective, make, old + ratios.log())
    # A > 0 and ρ > 1 + ε, or A < 0 and ρ < 1 − ε: nothing. Everywhere else −ρA, divided by 6 tokens (or 2 rows of 3).
    expected = -ratios * advantages[:, None] / 6
    expected[0, 2] = expected[1, 0] = 0.0
    assert_close(found, expected, 1e-12)
    clip_fraction = objective(make(old + ratios.log())).metrics["policy/clip_fraction"]
    assert clip_fraction.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("name", CLIPPED)
def test_at_ratio_1_the_loss_is_minus_the_mean_advantage(name):
    logps = -torch.rand(3, 4, dtype=torch.float64)
    advantages = torch.randn(3, 4, dtype=torch.float64)
    objective = get_objective(name, **{**OPTIONS.get(name, {}), **({"max_length": 4.0} if name == "dr_grpo" else {})})
    make = lambda leaf: rollouts(leaf, old_logps=logps, advantages=advantages)  # noqa: E731
    assert_close(objective(make(logps)).mean(), -advantages.mean(), 1e-12)
    assert_close(gradient(objective, make, logps), -advantages / 12, 1e-12)
    white = whiten(advantages.flatten()).reshape(3, 4)
    assert abs(float(objective(rollouts(logps, advantages=white)).mean())) < 1e-12


def test_the_clipped_value_loss_is_never_below_the_plain_one():
    torch.manual_seed(0)
    columns = {name: torch.randn(50, 6, dtype=torch.float64) for name in ("values", "old_values", "returns")}
    batch = rollouts(torch.zeros(50, 6, dtype=torch.float64), **columns)
    plain = 0.5 * (columns["values"] - columns["returns"]) ** 2
    found = get_objective("value")(batch).terms["value"].values
    assert bool((found >= plain.sum(1) - 1e-12).all()) and bool((found > plain.sum(1) + 1e-6).any())
    wide = get_objective("value", epsilon_value=100.0)(batch)
    assert_close(wide.mean(), plain.mean(), 1e-12)


def test_cispo_drops_no_token():
    old = torch.full((2, 3), -3.0, dtype=torch.float64)
    logps, advantages = old + tensor([[-2.0, 0.0, 2.5], [-2.0, 0.0, 2.5]]), tensor([1.0, -1.0])
    make = lambda leaf: rollouts(leaf, old_logps=old, advantages=advantages)  # noqa: E731
    found = gradient(get_objective("cispo", epsilon_low=0.2, epsilon_high=4.0), make, logps)
    weights = tensor([[0.8, 1.0, 5.0]])
    assert_close(found, -weights * advantages[:, None] / 6, 1e-12)


# --- what is logged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "reinforce"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
@pytest.mark.parametrize("kl_ratio", [False, True])
def test_the_logged_kl_is_the_one_that_is_trained_on(name, kl, kl_ratio):
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, True, True], [True, False, True, False], [True, False, False, False]])
    logps, old, ref = (-torch.rand(3, 4, dtype=torch.float64) for _ in range(3))
    batch = rollouts(logps, mask, old_logps=old, ref_logps=ref)  # no advantages: the loss is the KL's part alone
    options = {"max_length": 1.0} if name == "dr_grpo" else {}
    loss = get_objective(name, beta=0.3, kl=kl, kl_ratio=kl_ratio, **options)(batch)
    (term,) = loss.terms.values()
    divisor = batch.completions.lengths if name in ("grpo", "gspo") else 1
    assert_close(term.values, 0.3 * loss.metrics["kl"] / divisor, 1e-12)
    if kl != "k1":
        assert bool((loss.metrics["kl"] >= 0).all())


def test_the_logged_distance_from_the_sampling_policy():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    old = -torch.rand(2, 3, dtype=torch.float64)
    still = get_objective("ppo")(rollouts(old, mask)).metrics
    assert still["policy/approx_kl"].tolist() == [0.0] * 3 and still["policy/ratio"].tolist() == [1.0] * 3
    moved = get_objective("ppo")(rollouts(old + 0.1, mask, old_logps=old)).metrics
    assert_close(moved["policy/ratio"], tensor([0.1] * 3).exp(), 1e-12)
    # E_old[ρ − 1 − log ρ] = KL(π_old ‖ π).
    assert_close(moved["policy/approx_kl"], tensor([0.1] * 3).expm1() - 0.1, 1e-12)
    assert "kl" not in moved and "kl" in get_objective("grpo")(rollouts(old, mask, ref_logps=old)).metrics


def test_what_is_missing_is_said():
    batch = rollouts(torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(UsageError, match="grpo needs reference log-probabilities"):
        get_objective("grpo")(batch)
    get_objective("grpo", beta=0.0)(batch)
    with pytest.raises(UsageError, match="value trains a critic"):
        get_objective("value")(batch)
    bare = Completions(logps=torch.zeros(1), lengths=torch.tensor([2]))
    with pytest.raises(UsageError, match="ppo needs per-token log-probabilities"):
        get_objective("ppo")(Rollouts(completions=bare, old_logps=torch.zeros(1, 2), advantages=torch.zeros(1, 2)))
