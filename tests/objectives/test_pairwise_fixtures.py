"""The pairwise objectives against numbers computed by published code (`tests/fixtures/author_code_pairwise.json`).

Most entries must be met in value and gradient. Where the published code departs from the paper, the named option for it
must meet them, or the test writes the difference down.
"""

import published
import pytest
import torch
from published import tensor
from torch.nn.functional import logsigmoid

from prefopt.core.batches import Completions, Pairs, TokenLogps
from prefopt.objectives import get_objective

ENTRIES = published.entries("pairwise")

RENAMED = {("slic", "weight"): "lam", ("dpop", "penalty"): "lam", ("cpo", "nll_weight"): "alpha"}
DISTANCE = {"rpo_bwd_kl": "backward_kl", "rpo_fwd_kl": "forward_kl", "rpo_sq": "squared"}


def find(loss, *variants):
    found = [entry for entry in ENTRIES if entry["loss"] == loss and entry["variant"] in variants]
    assert found
    return found


class Case:
    """An entry as a batch whose policy log-probabilities are leaves."""

    def __init__(self, entry):
        self.entry, inputs = entry, entry["inputs"]
        self.by_tokens = "policy_chosen_tokens" in inputs
        suffix = "_tokens" if self.by_tokens else ""
        self.leaves = {
            side: tensor(inputs[f"policy_{side}{suffix}"]).requires_grad_() for side in ("chosen", "rejected")
        }
        labels = {"chosen_score": "rewards_chosen", "rejected_score": "rewards_rejected"}
        if "chosen_prob" in inputs:
            labels = {"chosen_score": "chosen_prob", "rejected_score": "rejected_prob"}
        labels = {name: tensor(inputs[key]) for name, key in labels.items() if key in inputs}
        self.batch = Pairs(chosen=self._side("chosen"), rejected=self._side("rejected"), **labels)

    def _side(self, side):
        inputs, leaf = self.entry["inputs"], self.leaves[side]
        lengths = torch.tensor(inputs[f"{side}_length"])
        suffix = "_tokens" if self.by_tokens else ""
        reference = inputs.get(f"ref_{side}{suffix}")
        reference = None if reference is None else tensor(reference)
        if not self.by_tokens:
            return Completions(logps=leaf, lengths=lengths, ref_logps=reference)
        mask = torch.arange(leaf.shape[1]) < lengths[:, None]
        return Completions.from_tokens(TokenLogps(mask=mask, logps=leaf, ref_logps=reference))

    def objective(self, name=None, **options):
        given = {RENAMED.get((self.entry["loss"], k), k): v for k, v in self.entry["hyperparameters"].items()}
        return get_objective(name or self.entry["loss"], **{**given, **options})

    def check(self, rows):
        """Values of the rows, and gradients of their sum."""
        outputs = self.entry["outputs"]
        self.close(rows, outputs["loss"])
        gradients = torch.autograd.grad(rows.sum(), list(self.leaves.values()), allow_unused=True)
        suffix = "_tokens" if self.by_tokens else ""
        for side, found in zip(self.leaves, gradients, strict=True):
            expected = outputs.get(f"grad_policy_{side}{suffix}")
            if expected is None:
                continue
            if self.by_tokens:
                # The published code sums whole rows, so that padding has a gradient there.
                mask = getattr(self.batch, side).tokens.mask
                found, expected = found[mask], tensor(expected)[mask].tolist()
            self.close(found, expected)

    def close(self, found, expected):
        torch.testing.assert_close(
            found, tensor(expected), rtol=self.entry["rtol"], atol=max(self.entry["atol"], 1e-11)
        )

    def differs(self, rows):
        assert not torch.allclose(rows, tensor(self.entry["outputs"]["loss"]), rtol=1e-9, atol=1e-12)


def rows_of(objective, batch):
    terms = objective(batch).terms.values()
    assert all(term.per == "example" for term in terms)
    return sum(term.weight * term.values for term in terms)


def cases(*entries):
    """One parameter per entry, named by what it is."""
    ids = [f"{entry['loss']}-{entry['variant']}-{entry['repo'].split('/')[1]}" for entry in entries]
    return pytest.mark.parametrize("case", [pytest.param(Case(e), id=i) for e, i in zip(entries, ids, strict=True)])


@cases(
    *find("cdpo", "label smoothing", "token arrays"),
    *find("robust_dpo", "robust"),
    *find("rso_hinge", "hinge"),
    *find("slic", "sums fed as one-token sequences, batch of one"),
    *find("exo_pair", "normalised targets"),
    *find("nca_pair", "NCA"),
    *find("sppo_hard", "sum form"),
    *find("apo_zero", "apo_zero"),
    *find("apo_down", "apo_down"),
    *find("discopop", "tau = 0.05", "tau option"),
    *find("rdpo_length", "lenN"),
    *find("dpop", "dpop"),
    *find("rpo_nll", "mix"),
    *find("cal_dpo", "batches of one, w = 1/2"),
    *find("alphapo", "SimPO loss, mean log-probs"),
)
def test_published_code_agrees(case):
    assert case.entry["agrees"]
    case.check(rows_of(case.objective(), case.batch))


@cases(*find("fdpo", "reverse_kl", "forward_kl", "js", "alpha"))
def test_fdpo_agrees(case):
    assert case.entry["agrees"]
    case.check(rows_of(case.objective(divergence=case.entry["variant"]), case.batch))


@cases(*find("aot_paired", "sorted order", "sorted order, label smoothing"))
def test_aot_paired_agrees(case):
    case.check(rows_of(case.objective(), case.batch))
    mean = case.objective()(case.batch).mean()
    assert mean.item() == pytest.approx(case.entry["outputs"]["batch_loss"], rel=1e-12)


@cases(*find("aot_unpaired", "sorted order", "sorted order, label smoothing"))
def test_aot_unpaired_agrees(case):
    case.check(rows_of(case.objective(), case.batch))
    mean = case.objective()(case.batch).mean()
    assert mean.item() == pytest.approx(case.entry["outputs"]["batch_loss"], rel=1e-12)


@cases(*find("nemotron_rpo", *DISTANCE))
def test_reward_aware_rpo_agrees(case):
    # The published code computes in float32.
    rows = rows_of(case.objective("reward_aware_rpo", distance=DISTANCE[case.entry["variant"]]), case.batch)
    torch.testing.assert_close(rows, tensor(case.entry["outputs"]["loss"]), rtol=1e-4, atol=2e-5)


@cases(
    *find("cpo", "contrastive term only (NLL weight 0)", "current head with c1=2, c2=0 (factor 1)"),
)
def test_cpo_contrastive_term_agrees(case):
    assert case.entry["agrees"]
    objective = get_objective("cpo", beta=case.entry["hyperparameters"]["beta"])
    case.check(objective(case.batch).terms["preference"].values)


@cases(*find("cpo", "total, batch of 3"))
def test_cpo_total_agrees(case):
    loss = case.objective()(case.batch)
    assert loss.mean().item() == pytest.approx(case.entry["outputs"]["loss"], rel=1e-12)
    nll = loss.terms["nll"].values.sum() / loss.counts["chosen_token"]
    assert nll.item() == pytest.approx(case.entry["outputs"]["nll"], rel=1e-12)


@cases(*find("cpo", "current head: rejected term scaled by the ARPO factor"))
def test_cpo_head_is_another_loss(case):
    """The head of the authors' repository is CPO on a rejected log-probability times min(1, c1·e^(c2·|Δm|) − 1)."""
    given, batch = case.entry["hyperparameters"], case.batch
    objective = get_objective("cpo", beta=given["beta"])
    case.differs(objective(batch).terms["preference"].values)
    gap = (batch.chosen.mean - batch.rejected.mean).abs()
    factor = (given["relax_cofficient_1"] * torch.exp(given["relax_cofficient_2"] * gap) - 1).clamp(max=1)
    scaled = Completions(logps=factor * batch.rejected.logps, lengths=batch.rejected.lengths)
    case.check(objective(Pairs(chosen=batch.chosen, rejected=scaled)).terms["preference"].values)


@cases(*find("slic", "several tokens, batch of one, mean over the returned matrix"))
def test_slic_of_halos_averages_the_likelihood(case):
    """HALOs divides the likelihood term, not the hinge, by the padded width."""
    terms = case.objective()(case.batch).terms
    width = len(case.entry["inputs"]["policy_chosen_tokens"][0])
    mean = terms["preference"].values[0] + terms["nll"].weight * terms["nll"].values[0] / width
    assert mean.item() == pytest.approx(case.entry["outputs"]["loss"], rel=1e-12)
    assert case.objective()(case.batch).mean().item() != pytest.approx(case.entry["outputs"]["loss"], rel=1e-3)


@cases(*find("exo_pair", "authors targets (0, -10)"))
def test_exo_pair_of_its_authors_is_not_normalised(case):
    case.check(rows_of(case.objective(normalised=False), case.batch))
    rows = rows_of(case.objective(), case.batch)
    case.differs(rows)
    # Lower by −σ(z) log(1 − ε).
    epsilon, z = case.entry["hyperparameters"]["label_smoothing"], case.objective().beta * case.batch.margin
    case.check(rows + torch.sigmoid(z) * torch.log1p(tensor(-epsilon)))


@cases(*find("nca_pair", "biasedNCA (not in the catalogue)"))
def test_biased_nca_is_another_loss(case):
    """−log σ(r_w) − log σ(−r_l): half of each noise term is moved to the rejected response."""
    objective = case.objective()
    rows = rows_of(objective, case.batch)
    case.differs(rows)
    chosen, rejected = objective.reward(case.batch.chosen), objective.reward(case.batch.rejected)
    case.check(rows + 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected))


@cases(*find("sppo_hard", "hard (win probability 1)"))
def test_sppo_hard_of_its_authors_is_halved(case):
    case.check(rows_of(case.objective(halve=True), case.batch))
    case.check(rows_of(case.objective(), case.batch) / 2)


@cases(*find("sppo", "soft"))
def test_sppo_of_its_authors_is_halved(case):
    case.check(rows_of(case.objective(win_rate="each", halve=True), case.batch))
    case.check(rows_of(case.objective(win_rate="each"), case.batch) / 2)


@cases(*find("discopop", "old form: mixing weight sigma(h)"))
def test_discopop_in_its_old_form_has_tau_equal_to_beta(case):
    beta = case.entry["hyperparameters"]["beta"]
    case.check(rows_of(case.objective(tau=beta), case.batch))
    if beta != 0.05:
        case.differs(rows_of(case.objective(), case.batch))


@cases(*find("cal_dpo", "batch of 12"))
def test_cal_dpo_of_its_authors_spreads_the_calibration(case):
    """The published calibration is a batch mean added to every row; the mean over the batch is the same."""
    loss = case.objective()(case.batch)
    case.differs(rows_of(case.objective(), case.batch))
    assert loss.mean().item() == pytest.approx(sum(case.entry["outputs"]["loss"]) / 12, rel=1e-12)
    calibration = loss.terms["calibration"]
    case.check(loss.terms["preference"].values + calibration.weight * calibration.values.mean())


@cases(*find("rebel", "ref = previous iterate"))
def test_rebel_of_its_authors_is_eta_squared_times_the_paper(case):
    eta = case.entry["hyperparameters"]["eta"]
    case.check(rows_of(case.objective(eta_on_rewards=True), case.batch))
    case.check(eta**2 * rows_of(case.objective(), case.batch))
    if eta != 1:
        case.differs(rows_of(case.objective(), case.batch))


def test_every_entry_is_used():
    used = set()
    for function in (one for name, one in globals().items() if name.startswith("test_") and hasattr(one, "pytestmark")):
        for mark in function.pytestmark:
            used |= {id(parameter.values[0].entry) for parameter in mark.args[1]}
    unused = [entry["variant"] for entry in ENTRIES if id(entry) not in used]
    assert not unused
