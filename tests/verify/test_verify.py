"""`verify` on right and wrong losses, the contract checks on objectives that break them, and the mutator."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from mutate import mutants
from torch import Tensor

from prefopt import get_objective
from prefopt.core.batches import Labelled, Pairs
from prefopt.core.errors import UsageError
from prefopt.core.loss import State, Term
from prefopt.core.needs import About, Needs
from prefopt.core.objective import Objective
from prefopt.core.settings import parameter
from prefopt.verify import Report, Seeded, draw, main_verify, verify
from prefopt.verify.contract import CONTRACT, finite
from prefopt.verify.probes import declared, hyperparameters_act
from prefopt.verify.search import trial

# --- Other people's losses -------------------------------------------------------------------------------------------


def dpo(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps, beta):
    h = (policy_chosen_logps - policy_rejected_logps) - (reference_chosen_logps - reference_rejected_logps)
    return -F.logsigmoid(beta * h)


def dpo_as_a_tuple(pi_w, pi_l, ref_w, ref_l, beta=0.1, reference_free=False):
    return dpo(pi_w, pi_l, ref_w, ref_l, beta).mean(), None, None


def dpo_of_tokens(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_mask, rejected_mask, beta):
    chosen = ((chosen_logps - ref_chosen_logps) * chosen_mask).sum(1)
    return -F.logsigmoid(beta * (chosen - ((rejected_logps - ref_rejected_logps) * rejected_mask).sum(1)))


def simpo(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, beta, gamma):
    return -F.logsigmoid(beta * (chosen_logps / chosen_lengths - rejected_logps / rejected_lengths) - gamma)


def kto(policy_logps, ref_logps, labels, kl, beta=0.1):
    s = policy_logps - ref_logps
    return torch.where(labels, 1 - torch.sigmoid(beta * (s - kl)), 1 - torch.sigmoid(beta * (kl - s)))


@pytest.mark.parametrize(
    ("function", "name"),
    [(dpo, "dpo"), (dpo_as_a_tuple, "dpo"), (dpo_of_tokens, "dpo"), (simpo, "simpo"), (kto, "kto")],
)
def test_right_losses_pass(function, name: str) -> None:
    report = verify(function, as_=name, examples=6)
    assert report, str(report)
    assert f"{function.__name__} is {name}" in str(report)


def summed(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    return dpo(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta).sum()


def wrong_sign(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    return dpo(policy_chosen_logps, -policy_rejected_logps, ref_chosen_logps, -ref_rejected_logps, beta)


def uneven(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    return -F.logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps) - (ref_chosen_logps - ref_rejected_logps))


def exchanged(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    return dpo(policy_rejected_logps, policy_chosen_logps, ref_rejected_logps, ref_chosen_logps, beta)


def without_reference(policy_chosen_logps, policy_rejected_logps, beta):
    return -F.logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps))


def hinge(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    h = (policy_chosen_logps - policy_rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    return torch.relu(1 - beta * h)


def detached(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    return dpo(policy_chosen_logps.detach(), policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)


def overflows(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    h = (policy_chosen_logps - policy_rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    return -torch.log(torch.sigmoid(beta * h))


def unmasked(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_mask, rejected_mask, beta):
    return dpo(chosen_logps.sum(1), rejected_logps.sum(1), ref_chosen_logps.sum(1), ref_rejected_logps.sum(1), beta)


def averaged_tokens(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_mask, rejected_mask, beta
):
    chosen = ((chosen_logps - ref_chosen_logps) * chosen_mask).sum(1) / chosen_mask.sum(1)
    rejected = ((rejected_logps - ref_rejected_logps) * rejected_mask).sum(1) / rejected_mask.sum(1)
    return -F.logsigmoid(beta * (chosen - rejected))


def averaged_positions(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_mask, rejected_mask, beta
):
    return -F.logsigmoid(
        beta * ((chosen_logps - ref_chosen_logps).mean(1) - (rejected_logps - ref_rejected_logps).mean(1))
    )


def sums(chosen_logps, rejected_logps, beta, gamma):
    return -F.logsigmoid(beta * (chosen_logps - rejected_logps) - gamma)


def averaged(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, len_w, len_l, beta):
    h = (policy_chosen_logps - ref_chosen_logps) / len_w - (policy_rejected_logps - ref_rejected_logps) / len_l
    return (h - 1 / (2 * beta)) ** 2


def kto_turned(policy_logps, ref_logps, labels, kl, beta=0.1):
    s = policy_logps - ref_logps
    return torch.where(labels, 1 - torch.sigmoid(beta * (s - kl)), 1 - torch.sigmoid(beta * (kl + s)))


@pytest.mark.parametrize(
    ("function", "name", "cause"),
    [
        (summed, "dpo", "a sum over the batch where the paper takes a mean"),
        (wrong_sign, "dpo", "the sign of the rejected term"),
        (uneven, "dpo", "beta on the policy only, not on the reference"),
        (exchanged, "dpo", "chosen and rejected are exchanged"),
        (without_reference, "dpo", "the reference is ignored"),
        (hinge, "dpo", "this is 'hinge', not 'dpo'"),
        (detached, "dpo", "no gradient reaches chosen.logps: it is detached"),
        (overflows, "dpo", "right where margins are ordinary; far out it overflows"),
        (unmasked, "dpo", "the mask is not applied: padding counts"),
        (averaged_tokens, "dpo", "means over tokens where the paper sums them"),
        (averaged_positions, "dpo", "means over all positions, padding too"),
        (sums, "simpo", "sums over tokens where the paper takes means"),
        (averaged, "ipo", "means over tokens where the paper sums them"),
        (kto_turned, "kto", "the sign of the undesirable term"),
        (dpo, "robust_dpo", "label_smoothing is ignored (taken as 0)"),
    ],
)
def test_wrong_losses_fail_with_their_cause(function, name: str, cause: str) -> None:
    report = verify(function, as_=name, examples=6)
    assert not report
    assert cause in report.cause
    assert "logps" in report.counterexample and "✗" in str(report)


def test_the_counterexample_is_small() -> None:
    report = verify(without_reference, as_="dpo", examples=50)
    assert "chosen.logps = [-1]" in report.counterexample  # one pair, of round numbers


def test_hyperparameters_that_the_function_does_not_take() -> None:
    def fixed(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps):
        return dpo(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, 0.25)

    assert verify(fixed, as_="dpo", hyperparameters={"beta": 0.25}, examples=10)
    assert not verify(fixed, as_="dpo", examples=10)


def test_what_cannot_be_called_is_refused() -> None:
    def odd(first, second):
        return first - second

    with pytest.raises(UsageError, match="parameter 'first' of odd"):
        verify(odd, as_="dpo")
    with pytest.raises(UsageError, match="as_='dpo'"):
        verify(dpo)
    with pytest.raises(UsageError, match="Report is neither a function of log-probabilities nor a subclass"):
        verify(Report, as_="dpo")


def number(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    return dpo(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta).mean().item()


def only_in_pairs(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta):
    rows = dpo(policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps, beta)
    return rows.reshape(-1, 2).mean() if len(rows) > 1 else rows


@pytest.mark.parametrize(
    ("function", "error", "counterexample"),
    [(number, "TypeError: a loss is a tensor", "[-1]"), (only_in_pairs, "RuntimeError: shape", "logps = [-1, -1, -1]")],
)
def test_a_function_that_raises_fails_where_it_does(function, error: str, counterexample: str) -> None:
    report = verify(function, as_="dpo", examples=30)
    assert not any(finding.passed for finding in report.findings)
    assert report.findings[0].detail.startswith(f"it raises {error}") and "it raises" in str(report)
    assert counterexample in report.counterexample


# --- Objectives ------------------------------------------------------------------------------------------------------

ABOUT = About(title="a test", year=2024, formula="")


@dataclass(frozen=True, kw_only=True)
class Own(Objective[Pairs]):
    """DPO under another name, to be broken in one place at a time."""

    about = ABOUT
    needs = Needs(batch=Pairs, reference=True)
    beta: float = parameter(0.1, "strength", above=0)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-F.logsigmoid(self.beta * batch.margin))}


class NotMasked(Own):
    needs = Needs(batch=Pairs, reference=True, tokens=True)

    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-self.beta * batch.chosen.tokens.logps.sum(dim=1))}


class InOrder(Own):
    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(torch.arange(len(batch.chosen)) * self.beta * batch.margin)}


class Coupled(Own):
    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-F.logsigmoid(self.beta * (batch.margin - batch.margin.mean())))}


class ReadsLengths(Own):
    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-F.logsigmoid(self.beta * batch.chosen.mean))}


class InPlace(Own):
    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        with torch.no_grad():
            batch.chosen.logps.mul_(0.5)
        return super().terms(batch, state)


class Scalar(Own):
    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(-F.logsigmoid(self.beta * batch.margin).mean())}


class Overflows(Own):
    def terms(self, batch: Pairs, state: State) -> Mapping[str, Term]:
        return {"preference": Term(torch.log1p(torch.exp(-self.beta * batch.margin)))}


@pytest.mark.parametrize(
    ("cls", "broken"),
    [
        (NotMasked, "padding"),
        (InOrder, "permutation"),
        (Coupled, "micro-batches"),
        (ReadsLengths, "undeclared inputs"),
        (InPlace, "purity"),
        (Scalar, "shapes"),
    ],
)
def test_each_contract_check_can_fail(cls: type[Objective], broken: str) -> None:
    one = trial(Seeded(1), cls, {}, defaults=True, rows=3, tokens=broken == "padding" or None, regime="ordinary")
    assert not CONTRACT[broken](one).passed
    good = trial(Seeded(1), Own, {}, defaults=True, rows=3, tokens=broken == "padding" or None, regime="ordinary")
    assert all(check(good).passed for name, check in CONTRACT.items() if name == broken)


def test_finiteness_can_fail() -> None:
    one = trial(Seeded(2), Overflows, {}, regime="extreme", rows=4)
    assert not finite(one, torch.float32).passed
    assert finite(dataclasses.replace(one, objective=Own()), torch.float32).passed


@dataclass(frozen=True, kw_only=True)
class Idle(Own):
    needs = Needs(batch=Pairs, reference=True, lengths=True)
    gamma: float = parameter(0.5, "nothing")


def test_idle_hyperparameters_and_needless_needs_are_found() -> None:
    assert "gamma" in hyperparameters_act(Idle, {}).detail
    assert "lengths" in declared(Idle, {}).detail
    assert hyperparameters_act(Own, {}) and declared(Own, {})


def test_an_objective_is_verified_alone_or_as_a_loss() -> None:
    report = verify(Own, examples=4)
    assert isinstance(report, Report) and report, str(report)
    assert verify(Own, as_="dpo", examples=4)
    assert not verify(Own, as_="ipo", examples=4)
    assert not verify(Coupled, examples=4)


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_reads_a_file(tmp_path, capsys) -> None:
    file = tmp_path / "my_losses.py"
    file.write_text(
        "def loss(chosen_logps, rejected_logps, beta):\n    return -beta * (chosen_logps - rejected_logps)\n"
    )
    assert main_verify(f"{file}:loss", "dpo") == 1
    assert "loss is not dpo" in capsys.readouterr().out
    with pytest.raises(UsageError, match="has no 'other'"):
        main_verify(f"{file}:other", "dpo")
    with pytest.raises(UsageError, match="nothing"):
        main_verify("nothing", "dpo")


# --- Mutants ---------------------------------------------------------------------------------------------------------


def test_mutants_are_other_losses() -> None:
    objective = get_objective("simpo")
    batch = draw(Seeded(1), objective.needs, rows=3, regime="ordinary").build()
    right = float(objective(batch).mean())
    made = list(mutants(type(objective)))
    found = {str(mutant): value(mutant.cls(), batch) for mutant in made}
    assert "self.terms: `margin - self.gamma` becomes `margin + self.gamma`" in found
    assert all(abs(other - right) > 1e-9 for other in found.values() if other is not None)
    assert float(objective(batch).mean()) == right  # the objective itself is left alone


def value(objective: Objective, batch: Pairs) -> float | None:
    try:
        return float(objective(batch).mean())
    except (TypeError, AttributeError):
        return None


def test_labelled_batches_are_drawn_with_mismatched_rows() -> None:
    batch = draw(Seeded(0), get_objective("kto").needs).build()
    assert isinstance(batch, Labelled) and batch.mismatched is not None
    assert isinstance(batch.completions.logps, Tensor)
