"""Planted mistakes of every kind that `verify` once passed or met with a traceback: each is caught, by the right check.

Losses that are right although they look unusual are not blamed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.core.batches import Labelled, Pairs, Ranked, Rollouts
from prefopt.core.errors import UsageError
from prefopt.core.loss import State, Term
from prefopt.core.needs import About, Needs
from prefopt.core.objective import Objective
from prefopt.core.policy_gradient import MAX_EXPONENT
from prefopt.core.settings import parameter
from prefopt.verify import verify
from prefopt.verify.results import Finding
from prefopt.verify.verifier import GRADIENT, contract_of, probes_of, search_all

FEW = 4


@dataclass(frozen=True, kw_only=True)
class Own(Objective[Pairs]):
    """DPO. What is derived from it is wrong in one place."""

    about = About(title="a test", year=2024, formula="")
    needs = Needs(batch=Pairs, reference=True)
    beta: float = parameter(0.1, "strength", above=0)

    def rows(self, batch: Pairs) -> Tensor:
        return -F.logsigmoid(self.beta * batch.margin)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(self.rows(batch))}


def look(cls: type[Objective], check: str) -> Finding:
    """What one of the checks of `verify` finds, without looking for a smaller counterexample."""
    checks = contract_of()
    if check in checks:
        return search_all({check: checks[check]}, cls, {}, 0, False)[0]
    return next(finding for finding in probes_of(cls, {}) if finding.check == check)


def caught(cls: type[Objective], check: str, words: str = "") -> None:
    finding = look(cls, check)
    assert not finding
    assert words in finding.detail


def passes(cls: type[Objective]) -> str:
    report = verify(cls, examples=1)
    assert report, str(report)
    return str(report)


# --- The gradient is not that of the value ---------------------------------------------------------------------------


class Detached(Own):
    def rows(self, batch):
        return super().rows(batch).detach()


class WithoutGradient(Own):
    def rows(self, batch):
        with torch.no_grad():
            return super().rows(batch)


class OfData(Own):
    def rows(self, batch):
        return -F.logsigmoid(self.beta * batch.margin.data)


class OfNumbers(Own):
    def rows(self, batch):
        return torch.tensor(super().rows(batch).tolist(), dtype=batch.chosen.logps.dtype)


class Constant(Own):
    """The loss is what `prepare` made of the log-probs."""

    needs = Needs(batch=Pairs, reference=True, observes="rows", detaches="everything")

    def observe(self, batch):
        return {"loss": self.rows(batch)}

    def prepare(self, state, observed, *, frozen=False):
        return {"loss": observed["loss"].mean()}

    def terms(self, batch, state):
        return {"preference": Term(0 * batch.margin.detach() + state["loss"].to(batch.margin.dtype))}


class DeclaredAndDetached(Detached):
    needs = Needs(batch=Pairs, reference=True, detaches="all of it")


class HalfDetached(Own):
    def rows(self, batch):
        return -F.logsigmoid(self.beta * (batch.chosen.log_ratio.detach() - batch.rejected.log_ratio))


class ThreeTimes(Own):
    def rows(self, batch):
        u = super().rows(batch)
        return u + 2 * (u - u.detach())


class ByHook(Own):
    def rows(self, batch):
        u = super().rows(batch)
        if u.requires_grad:
            u.register_hook(lambda gradient: 3 * gradient)
        return u


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class ByFunction(Own):
    def rows(self, batch):
        return Tripled.apply(super().rows(batch))


class ByState(Own):
    needs = Needs(batch=Pairs, reference=True, observes="rows")

    def observe(self, batch):
        return {"loss": self.rows(batch)}

    def prepare(self, state, observed, *, frozen=False):
        return {"loss": observed["loss"].mean()}

    def terms(self, batch, state):
        return {"preference": Term(3 * self.rows(batch) - 2 * state["loss"].to(batch.margin.dtype))}


class FarOut(Own):
    """Only where the margin is large."""

    def rows(self, batch):
        u = super().rows(batch)
        return torch.where(batch.margin.abs() > 6, u + 2 * (u - u.detach()), u)


class OfBigBatches(Own):
    def rows(self, batch):
        u = super().rows(batch)
        return u + 2 * (u - u.detach()) if len(u) > 2 else u


class Weighted(Own):
    """Weights without gradient, of which needs says nothing."""

    def rows(self, batch):
        return torch.sigmoid(self.beta * batch.margin).detach() * super().rows(batch)


class WithTheScale(Own):
    def rows(self, batch):
        h = self.beta * batch.margin
        return super().rows(batch) * torch.exp(h - h.detach())


GRADIENTS = [Detached, WithoutGradient, OfData, OfNumbers, HalfDetached, ThreeTimes, ByHook, ByFunction, ByState]
GRADIENTS += [FarOut, OfBigBatches, Weighted, WithTheScale]


@pytest.mark.parametrize("cls", GRADIENTS)
def test_a_gradient_that_is_not_the_values(cls: type[Objective]) -> None:
    caught(cls, GRADIENT, "must be declared: Needs(detaches='the weights')")


@pytest.mark.parametrize("cls", [Detached, WithoutGradient, OfData, OfNumbers, Constant, DeclaredAndDetached])
def test_no_gradient_at_all(cls: type[Objective]) -> None:
    caught(cls, "a gradient", "everything is detached")


class Declared(Weighted):
    needs = Needs(batch=Pairs, reference=True, detaches="the weights")


class DeclaredButWrong(Declared):
    """A detach that is declared does not excuse another gradient."""

    def rows(self, batch):
        return Tripled.apply(super().rows(batch))


def test_a_declared_detach_is_taken_on_trust_and_named() -> None:
    said = passes(Declared)
    assert "Taken on trust: that the paper's gradient holds the weights constant" in said
    caught(DeclaredButWrong, GRADIENT, "held still")


# --- The two phases of a step ----------------------------------------------------------------------------------------


class Centered(Own):
    """Margins from their mean over the step."""

    needs = Needs(batch=Pairs, reference=True, observes="rows", detaches="the mean margin")

    def observe(self, batch):
        return {"margin": batch.margin}

    def prepare(self, state, observed, *, frozen=False):
        return {"mean": observed["margin"].mean()}

    def terms(self, batch, state):
        return {"preference": Term(-F.logsigmoid(self.beta * (batch.margin - state["mean"].to(batch.margin.dtype))))}


class NotDeclared(Centered):
    needs = Needs(batch=Pairs, reference=True, detaches="the mean margin")


class PreparesAlone(Own):
    def prepare(self, state, observed, *, frozen=False):
        return {"mean": observed["margin"].mean()}


class ShowsNothing(Own):
    needs = Needs(batch=Pairs, reference=True, observes="rows")


class ShowsANumber(Centered):
    def observe(self, batch):
        return {"margin": batch.margin.mean()}


class Forgets(Centered):
    def init_state(self):
        return {"seen": torch.zeros(())}


class KeepsANumber(Centered):
    def prepare(self, state, observed, *, frozen=False):
        return {"mean": observed["margin"].mean(), "seen": 3.0}


class Misspells(Centered):
    def prepare(self, state, observed, *, frozen=False):
        return {"mean": observed["margins"].mean()}


@dataclass(frozen=True, kw_only=True)
class ReadsRows(Objective[Labelled]):
    """Observes rows, and asks for mismatched completions alone."""

    about = About(title="a test", year=2024, formula="")
    needs = Needs(batch=Labelled, reference=True, observes="mismatched", detaches="the mean")
    beta: float = parameter(0.1, "strength", above=0)

    def observe(self, batch):
        return {"ratio": batch.completions.logps, "other": batch.mismatched.log_ratio}

    def prepare(self, state, observed, *, frozen=False):
        return {"mean": observed["ratio"].mean() + observed["other"].mean()}

    def terms(self, batch, state):
        sign = torch.where(batch.desirable, 1.0, -1.0)
        return {"value": Term(-sign * self.beta * (batch.completions.log_ratio - state["mean"]))}


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (NotDeclared, "observe shows 'margin', but a trainer asks only where needs says so: Needs(observes='rows')"),
        (PreparesAlone, "prepare asks for 'margin', which neither observe shows nor init_state has"),
        (ShowsNothing, "needs says that 'rows' is observed, and observe shows nothing"),
        (ShowsANumber, "observe shows 'margin' as one number"),
        (Forgets, "prepare loses 'seen' of the state"),
        (KeepsANumber, "the state 'seen' is a float"),
        (Misspells, "prepare asks for 'margins'"),
        (ReadsRows, "mismatched completions alone are observed"),
    ],
)
def test_the_phases_of_a_step(cls: type[Objective], words: str) -> None:
    caught(cls, "phases of a step", words)


def test_a_right_step_passes() -> None:
    passes(Centered)


@pytest.mark.parametrize("given", [{"observes": "row"}, {"statistics": frozenset({"kls"})}])
def test_misspelt_needs_are_refused_where_they_are_written(given: dict) -> None:
    with pytest.raises(UsageError, match="choose"):
        Needs(batch=Pairs, **given)


# --- Averages --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Good(Objective[Labelled]):
    """The negative log-likelihood of desirable rows, a mean over their tokens."""

    about = About(title="a test", year=2024, formula="")
    needs = Needs(batch=Labelled, lengths=True)
    unit = "desirable_token"

    def reward(self, completions):
        return completions.logps

    def values(self, batch):
        return -batch.completions.logps[batch.desirable]

    def terms(self, batch, state):
        return {"nll": Term(self.values(batch), self.unit)}


class PerAnyToken(Good):
    unit = "token"


class PerAnyTokenWithZeros(Good):
    unit = "token"

    def values(self, batch):
        return torch.where(batch.desirable, -batch.completions.logps, 0.0)


class PerAnyRow(Good):
    unit = "example"


class PerUndesirableToken(Good):
    unit = "undesirable_token"


class AllPerDesirable(Good):
    unit = "desirable"

    def values(self, batch):
        return torch.where(batch.desirable, 1.0, -1.0) * -batch.completions.logps


@dataclass(frozen=True, kw_only=True)
class OnPairs(Objective[Pairs]):
    """The negative log-likelihood of chosen completions, a mean over tokens."""

    about = About(title="a test", year=2024, formula="")
    needs = Needs(batch=Pairs, lengths=True)
    unit = "chosen_token"

    def reward(self, completions):
        return completions.logps

    def terms(self, batch, state):
        return {"nll": Term(-batch.chosen.logps, self.unit)}


class PerTokenOfBoth(OnPairs):
    unit = "token"


class PerRejectedToken(OnPairs):
    unit = "rejected_token"


@dataclass(frozen=True, kw_only=True)
class OnGroups(Objective[Ranked]):
    """The negative log-likelihood of the best completions, a mean over their tokens."""

    about = About(title="a test", year=2024, formula="")
    needs = Needs(batch=Ranked, lengths=True)
    unit = "best_token"

    def reward(self, completions):
        return completions.logps

    def terms(self, batch, state):
        return {"nll": Term(-batch.completions.logps[batch.best], self.unit)}


class PerTokenOfAll(OnGroups):
    unit = "token"


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (PerAnyToken, "never reads the undesirable rows, which 'token' counts as well: average it per 'desirable_tok"),
        (PerAnyTokenWithZeros, "average it per 'desirable_token'"),
        (PerAnyRow, "average it per 'desirable'"),
        (PerUndesirableToken, "never reads the undesirable rows"),
        (AllPerDesirable, "sums over the undesirable rows too"),
        (PerTokenOfBoth, "average it per 'chosen_token'"),
        (PerRejectedToken, "average it per 'chosen_token'"),
        (PerTokenOfAll, "average it per 'best_token'"),
    ],
)
def test_the_unit_of_an_average(cls: type[Objective], words: str) -> None:
    caught(cls, "units", words)


class ZerosOnPurpose(Good):
    """A mean over all rows, in which undesirable ones count as 0."""

    needs = Needs(batch=Labelled)
    unit = "example"

    def values(self, batch):
        return torch.where(batch.desirable, -batch.completions.logps, 0.0)


@pytest.mark.parametrize("cls", [Good, ZerosOnPurpose, OnPairs, OnGroups])
def test_right_averages_pass(cls: type[Objective]) -> None:
    for check in ("units", "undeclared inputs", "micro-batches"):
        look(cls, check).require()


# --- Errors become answers -------------------------------------------------------------------------------------------


class Misspelt(Own):
    def terms(self, batch, state):
        return {"preference": Term(self.rows(batch), "exampel")}


class WritesInPlace(Own):
    def terms(self, batch, state):
        chosen = batch.chosen.logps
        chosen -= batch.chosen.ref_logps
        return {"preference": Term(-F.logsigmoid(self.beta * (chosen - batch.rejected.log_ratio)))}


class WritesIntoAView(Own):
    def terms(self, batch, state):
        batch.chosen.logps[:1].zero_()
        return {"preference": Term(self.rows(batch))}


@dataclass(frozen=True, kw_only=True)
class WithoutReward(Objective[Pairs]):
    about = About(title="a test", year=2024, formula="")
    needs = Needs(batch=Pairs)

    def terms(self, batch, state):
        return {"preference": Term(-F.logsigmoid(batch.chosen.logps - batch.rejected.logps))}


class BadMetrics(Own):
    def metrics(self, batch, state):
        return {"margin": state["margin"]}


class Returns(Own):
    def terms(self, batch, state):
        return self.rows(batch)


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Misspelt, "padding", "averaged per 'exampel', which its batch does not count. Did you mean 'example'?"),
        (WritesInPlace, "purity", "chosen.logps is changed in place"),
        (WritesIntoAView, "purity", "chosen.logps is changed in place"),
        (WithoutReward, "reward", "write `reward`"),
        (BadMetrics, "shapes", "KeyError: 'margin' (test_planted_mistakes.py, line"),
        (Returns, "padding", "AttributeError"),
    ],
)
def test_errors_become_answers(cls: type[Objective], check: str, words: str) -> None:
    caught(cls, check, words)


class NotADataclass(Objective[Pairs]):
    about = About(title="a test", year=2024, formula="")
    needs = Needs(batch=Pairs)
    beta: float = parameter(0.1, "strength")

    def terms(self, batch, state):
        return {"preference": Term(-self.beta * batch.chosen.logps)}


class UnknownLabel(Own):
    needs = Needs(batch=Pairs, reference=True, labels=("chosen_scores",))


class NoTokens(Own):
    needs = Needs(batch=Rollouts)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (NotADataclass, "decorate the class with @dataclass(frozen=True, kw_only=True)"),
        (UnknownLabel, "'chosen_scores', which a batch of pairs does not carry. Did you mean 'chosen_score'?"),
        (NoTokens, "without tokens=True"),
    ],
)
def test_what_a_class_must_declare(cls: type[Objective], words: str) -> None:
    report = verify(cls)
    assert not report and words in report.findings[0].detail


def of_pairs(chosen_logps, rejected_logps, beta=0.1):
    return -F.logsigmoid(beta * (chosen_logps - rejected_logps))


def of_sums(logps, advantages):
    return -(logps * advantages).mean()


def of_tokens(logps, old_logps, advantages, mask, epsilon=0.2):
    """Without clipping, and divided by positions."""
    return -((logps - old_logps).exp() * advantages * mask).mean(1)


def writes(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    policy_chosen_logps -= ref_chosen_logps
    return -F.logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps + ref_rejected_logps))


def writes_after_use(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    h = torch.exp(policy_chosen_logps) * 1.0
    loss = -F.logsigmoid(beta * h * h)
    h.zero_()
    return loss


@pytest.mark.parametrize("function", [of_sums, of_tokens])
def test_wrong_functions_of_rollouts_are_reported(function) -> None:
    report = verify(function, as_="grpo", examples=1)
    assert not report and f"{function.__name__} is not grpo" in str(report)


@pytest.mark.parametrize("function", [writes, writes_after_use])
def test_functions_that_write_into_tensors_are_reported(function) -> None:
    report = verify(function, as_="dpo", examples=FEW)
    assert not report and "it raises RuntimeError" in str(report)


def test_functions_of_another_kind_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="cannot tell what the parameter 'chosen_logps' of of_pairs should get"):
        verify(of_pairs, as_="grpo")


# --- Functions: what is trained, and nothing else, has the gradient --------------------------------------------------


def reward_loss(chosen_rewards, rejected_rewards):
    return -F.logsigmoid(chosen_rewards - rejected_rewards)


def detached_reward_loss(chosen_rewards, rejected_rewards):
    return -F.logsigmoid(chosen_rewards - rejected_rewards.detach())


def grpo_of_a_constant_past(logps, old_logps, advantages, mask, epsilon):
    ratio = (logps - old_logps.detach()).clamp(max=MAX_EXPONENT).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    each = -torch.minimum(ratio * advantages, clipped * advantages)
    return torch.where(mask, each, 0.0).sum(1) / mask.sum(1)


def test_gradients_of_what_is_trained() -> None:
    assert verify(reward_loss, as_="reward", examples=FEW)
    report = verify(detached_reward_loss, as_="reward", examples=FEW)
    assert [finding.check for finding in report.findings if not finding] == ["gradient"]
    assert verify(grpo_of_a_constant_past, as_="grpo", hyperparameters={"beta": 0.0}, examples=FEW)


# --- A loss of the whole step ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DrDPO(Own):
    """−β′ log mean_i exp(−ℓ_i/β′), ℓ DPO's loss, row by row."""

    needs = Needs(batch=Pairs, reference=True, observes="rows")
    beta_prime: float = parameter(1.0, "temperature over the pairs", above=0)

    def observe(self, batch):
        return {"loss": self.rows(batch)}

    def prepare(self, state, observed, *, frozen=False):
        losses = observed["loss"].double()
        return {"log_mean": (-losses / self.beta_prime).logsumexp(0) - math.log(len(losses))}

    def terms(self, batch, state):
        m = state["log_mean"].to(batch.margin.dtype)
        tilted = torch.exp(-self.rows(batch) / self.beta_prime - m)
        return {"preference": Term(-self.beta_prime * (m + tilted - 1))}


class OppositeSign(DrDPO):
    def terms(self, batch, state):
        m = state["log_mean"].to(batch.margin.dtype)
        return {"preference": Term(-self.beta_prime * (m - torch.exp(-self.rows(batch) / self.beta_prime - m) + 1))}


def dr_dpo(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, beta_prime):
    h = (policy_chosen_logps - policy_rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    losses = -F.logsigmoid(beta * h)
    return -beta_prime * (torch.logsumexp(-losses / beta_prime, 0) - math.log(len(losses)))


def bco_of_its_batch(policy_logps, ref_logps, labels, beta):
    reward = beta * (policy_logps - ref_logps)
    reward = reward - reward.mean().detach()
    good, bad = -F.logsigmoid(reward[labels]), -F.logsigmoid(-reward[~labels])
    return good.sum() / max(len(good), 1) + bad.sum() / max(len(bad), 1)


def test_a_loss_of_the_whole_step_is_not_blamed() -> None:
    said = passes(DrDPO)
    assert "Not proved: that this is the loss of its paper" in said
    assert "prefopt verify FILE.py:FUNCTION --as FILE.py:DrDPO" in said
    report = verify(dr_dpo, as_=DrDPO, examples=FEW)
    assert report, str(report)
    assert "Not proved" not in str(report)
    assert verify(bco_of_its_batch, as_="bco", examples=FEW)


def test_a_wrong_loss_of_the_whole_step_is_caught() -> None:
    caught(OppositeSign, GRADIENT)
    assert not verify(dr_dpo, as_=OppositeSign, examples=FEW)


def test_an_objective_against_another() -> None:
    assert verify(DrDPO, as_=DrDPO(), examples=1)
    assert verify(Own(beta=0.3), as_="dpo", hyperparameters={"beta": 0.3}, examples=1)
    with pytest.raises(UsageError, match="Good takes labelled and sft takes demonstrations"):
        verify(Good, as_="sft")
