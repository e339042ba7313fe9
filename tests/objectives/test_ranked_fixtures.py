"""Objectives on ranked lists, with a memory, or with token statistics against numbers computed by published code.

``tests/fixtures/author_code_ranked.json`` says which code; where it departs from the paper, the test says how.
"""

import math

import published
import pytest
import torch
from published import tensor
from torch import Tensor

from prefopt.core.batches import Completions, Pairs, Ranked, TokenLogps
from prefopt.core.objective import Objective
from prefopt.objectives import get_objective
from prefopt.objectives.sampo import sampled_log_ratio

ENTRIES = published.entries("ranked")


def entries(loss, variant=""):
    found = [entry for entry in ENTRIES if entry["loss"] == loss and variant in entry["variant"]]
    assert found
    return found


def close(found: Tensor, expected, entry):
    torch.testing.assert_close(found.detach(), tensor(expected), rtol=entry["rtol"], atol=entry["atol"])


def sums(inputs) -> tuple[Pairs, list[Tensor]]:
    leaves = [tensor(inputs[f"policy_{side}"]).requires_grad_() for side in ("chosen", "rejected")]
    pairs = Pairs.from_sums(*leaves, tensor(inputs["ref_chosen"]), tensor(inputs["ref_rejected"]))
    return pairs, leaves


# Stateful objectives.


def test_bco_pair_over_a_run():
    objective: Objective = get_objective("bco_pair", beta=0.01)
    state = objective.init_state()
    for entry in entries("bco"):
        pairs, leaves = sums(entry["inputs"])
        state = objective.prepare(state, objective.observe(pairs.detach()))
        close(state["delta"], entry["outputs"]["shift"], entry)
        loss = objective(pairs, state).terms["quality"].values
        close(loss, entry["outputs"]["loss"], entry)
        for leaf, side in zip(leaves, ("chosen", "rejected"), strict=True):
            (gradient,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)
            close(gradient, entry["outputs"][f"grad_policy_{side}"], entry)


def test_beta_dpo_over_a_run(monkeypatch):
    """The draw of the published code is recorded; everything else is computed."""
    state = None
    for entry in entries("beta_dpo"):
        settings = entry["hyperparameters"]
        objective = get_objective("beta_dpo", **settings)
        pairs, leaves = sums(entry["inputs"])
        kept = torch.tensor(entry["inputs"]["kept"]).bool()
        monkeypatch.setattr(type(objective), "_draw", lambda self, z, ids, step, kept=kept: kept)
        pairs = Pairs(chosen=pairs.chosen, rejected=pairs.rejected, ids=torch.arange(len(kept)) + 5)
        state = objective.init_state() if state is None else state
        close(state["mean"], entry["inputs"]["ema_mean_before"], entry)
        close(state["std"], entry["inputs"]["ema_std_before"], entry)
        state = objective.prepare(state, objective.observe(pairs.detach()))
        for key, output in (("mean", "ema_mean"), ("std", "ema_std"), ("beta", "beta_used")):
            close(state[key], entry["outputs"][output], entry)
        loss = objective(pairs, state)
        value = loss.mean()
        close(value, entry["outputs"]["batch_loss"], entry)
        rows = loss.terms["preference"].values[kept] / state["scale"]
        close(rows, [x for x, k in zip(entry["outputs"]["loss"], kept, strict=True) if k], entry)
        for leaf, side in zip(leaves, ("chosen", "rejected"), strict=True):
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
            close(gradient, entry["outputs"][f"grad_policy_{side}"], entry)


# Token statistics, from logits.


def from_logits(inputs) -> tuple[Pairs, dict[str, Tensor]]:
    leaves, parts = {}, {}
    for side in ("chosen", "rejected"):
        leaves[side] = tensor(inputs[f"policy_{side}_logits"]).requires_grad_()
        policy = leaves[side].log_softmax(-1)
        reference = tensor(inputs[f"ref_{side}_logits"]).log_softmax(-1)
        ids = torch.tensor(inputs[f"{side}_tokens"])
        mask = ids != -100
        chosen = ids.clamp(min=0)[..., None]
        parts[side] = Completions.from_tokens(
            TokenLogps(
                mask=mask,
                logps=policy.gather(-1, chosen)[..., 0],
                ref_logps=reference.gather(-1, chosen)[..., 0],
                kl=(reference.exp() * (reference - policy)).sum(-1),
                log_sum_p2=(2 * policy).logsumexp(-1).detach(),
            )
        )
    return Pairs(**parts), leaves


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2", "wpo"])
def test_token_statistics(name):
    for entry in entries(name):
        options = {key: entry["hyperparameters"][key] for key in ("beta", "alpha") if key in entry["hyperparameters"]}
        options = {key: value for key, value in options.items() if name == "tdpo2" or key == "beta"}
        # The authors of WPO clamp the product of the weights at 1, in every entry; some reach it.
        options |= {"clamp": True} if name == "wpo" else {}
        pairs, leaves = from_logits(entry["inputs"])
        loss = get_objective(name, **options)(pairs)
        close(loss.terms["preference"].values, entry["outputs"]["loss"], entry)
        if name == "wpo":
            close(loss.metrics["weight"], entry["outputs"]["weight"], entry)
            free = get_objective(name, beta=options["beta"])(pairs).terms["preference"].values
            assert torch.equal(free, loss.terms["preference"].values) is entry["agrees"]
        for side, leaf in leaves.items():
            (gradient,) = torch.autograd.grad(loss.terms["preference"].values.sum(), leaf, retain_graph=True)
            close(gradient, entry["outputs"][f"grad_policy_{side}_logits"], entry)


def test_sampo_at_the_positions_drawn():
    """The published code draws for policy and reference apart; the formula holds at the positions that it drew."""
    for entry in entries("sampo"):
        inputs, ratio = entry["inputs"], {}
        for side in ("chosen", "rejected"):
            for model in ("policy", "ref"):
                logps = tensor([inputs[f"{model}_{side}_tokens"]])
                tokens = TokenLogps(mask=torch.ones_like(logps).bool(), logps=logps, ref_logps=torch.zeros_like(logps))
                where = torch.zeros_like(tokens.mask)
                where[0, inputs[f"{model}_positions_{side}"]] = True
                ratio[model, side] = sampled_log_ratio(Completions.from_tokens(tokens), where)
        h = ratio["policy", "chosen"] - ratio["policy", "rejected"]
        h = h - (ratio["ref", "chosen"] - ratio["ref", "rejected"])
        close(-torch.nn.functional.logsigmoid(0.1 * h)[0], entry["outputs"]["loss"], entry)
        if not entry["agrees"]:
            continue
        parts = {}
        for side in ("chosen", "rejected"):
            logps, ref = (tensor([inputs[f"{model}_{side}_tokens"]]) for model in ("policy", "ref"))
            parts[side] = TokenLogps(mask=torch.ones_like(logps).bool(), logps=logps, ref_logps=ref)
        if parts["chosen"].mask.shape == parts["rejected"].mask.shape:
            pairs = Pairs(**{k: Completions.from_tokens(v) for k, v in parts.items()}, ids=torch.tensor([9]))
            close(get_objective("sampo")(pairs).mean(), entry["outputs"]["loss"], entry)


# Ranked lists.


def matrix(inputs) -> tuple[Ranked, Tensor]:
    """Rows of K completions each, given as sums."""
    policy, reference = tensor(inputs["policy"]).requires_grad_(), tensor(inputs["ref"])
    prompts, k = policy.shape
    completions = Completions(
        logps=policy.flatten(), ref_logps=reference.flatten(), lengths=torch.ones(prompts * k, dtype=torch.int64)
    )
    group = torch.arange(prompts).repeat_interleave(k)
    return Ranked(completions=completions, group=group, scores=tensor(inputs["scores"]).flatten()), policy


def per_group(loss, batch: Ranked, name="ranking") -> Tensor:
    values = loss.terms[name].values
    return torch.zeros(int(batch.group.max()) + 1, dtype=values.dtype).index_add(0, batch.group, values)


@pytest.mark.parametrize("loss", ["infonca", "nca"])
def test_nca_of_four_with_the_targets_listed(loss, monkeypatch):
    """The authors add 0.01 to the first score before the softmax: with their targets everything agrees."""
    (entry,) = entries(loss, "K=4")
    batch, policy = matrix(entry["inputs"])
    targets = tensor(entry["inputs"]["targets"]).flatten()
    bumped = batch.scores.reshape(-1, 4) + tensor([0.01, 0.0, 0.0, 0.0])
    objective = get_objective(loss, beta=0.05, alpha=0.5)
    raised = Ranked(completions=batch.completions, group=batch.group, scores=bumped.flatten())
    torch.testing.assert_close(objective.targets(raised)[0], targets)
    values = per_group(objective(raised), batch)
    close(values, entry["outputs"]["loss"], entry)
    (gradient,) = torch.autograd.grad(values.sum(), policy)
    close(gradient, entry["outputs"]["grad_policy"], entry)
    assert not torch.allclose(per_group(objective(batch), batch), tensor(entry["outputs"]["loss"]))


def test_infonca_of_three():
    (entry,) = entries("infonca", "K=3")
    batch, _ = matrix(entry["inputs"])
    close(per_group(get_objective("infonca", beta=0.5, alpha=0.5)(batch), batch), entry["outputs"]["loss"], entry)


def test_infonca_of_a_hard_pair():
    for entry in entries("infonca", "pair"):
        pairs, leaves = sums(entry["inputs"])
        scores = {"chosen_score": torch.ones(12).double(), "rejected_score": torch.zeros(12).double()}
        batch = Pairs(chosen=pairs.chosen, rejected=pairs.rejected, **scores).as_ranked()
        loss = get_objective("infonca", beta=entry["hyperparameters"]["beta"])(batch)
        values = per_group(loss, batch)
        close(values, entry["outputs"]["loss"], entry)
        for leaf, side in zip(leaves, ("chosen", "rejected"), strict=True):
            (gradient,) = torch.autograd.grad(values.sum(), leaf, retain_graph=True)
            close(gradient, entry["outputs"][f"grad_policy_{side}"], entry)


def test_exo_of_three():
    (entry,) = entries("exo")
    batch, _ = matrix(entry["inputs"])
    close(per_group(get_objective("exo", beta=0.5, beta_reward=0.5)(batch), batch), entry["outputs"]["loss"], entry)


def one_list(inputs, scores, lengths=None, tokens=None) -> Ranked:
    tokens = tokens or inputs["policy_tokens"]
    return Ranked(
        completions=Completions(
            logps=tensor([math.fsum(row) for row in tokens]),
            lengths=torch.tensor(lengths or [len(row) for row in tokens]),
        ),
        group=torch.zeros(len(tokens), dtype=torch.int64),
        scores=tensor(inputs[scores]),
    )


def test_rrhf():
    for entry in entries("rrhf", "ranking term"):
        batch = one_list(entry["inputs"], "scores")
        loss, objective = get_objective("rrhf")(batch), get_objective("rrhf")
        close(loss.terms["ranking"].values.sum(), abs(entry["outputs"]["loss"]), entry)
        close(objective.reward(batch.completions), entry["outputs"]["scores"], entry)


def test_rrhf_end_to_end_divides_by_the_padded_width():
    for entry in entries("rrhf", "end to end"):
        inputs, weight = entry["inputs"], entry["hyperparameters"]["rank_weight"]
        objective = get_objective("rrhf", rank_weight=weight, nll="sequence")
        width = [inputs["padded_width"]] * len(inputs["scores"])
        close(objective(one_list(inputs, "scores", lengths=width)).mean(), entry["outputs"]["loss"], entry)
        mean = objective(one_list(inputs, "scores")).mean()
        assert not torch.isclose(mean, tensor(entry["outputs"]["loss"]), rtol=1e-6)


def test_pro():
    """λ (K−1)² with λ = 0.05 is what the hyperparameter of each entry holds; 1e-10 stands inside its logarithm."""
    objective = get_objective("pro")
    for entry in entries("pro", "full-width"):
        batch = one_list(entry["inputs"], "rewards")
        assert entry["hyperparameters"]["sft_weight"] == pytest.approx(0.05 * (len(batch.group) - 1) ** 2)
        loss = objective(batch)
        close(loss.terms["ranking"].values.sum(), entry["outputs"]["ranking"], entry)
        close(loss.mean(), entry["outputs"]["loss"], entry)


def test_pro_of_right_padded_rows_counts_the_first_padding_token():
    objective = get_objective("pro")
    for entry in entries("pro", "right-padded"):
        inputs = entry["inputs"]
        pads = [[] if pad is None else [pad] for pad in inputs["pad_logps"]]
        padded = [row + pad for row, pad in zip(inputs["policy_tokens"], pads, strict=True)]
        close(objective(one_list(inputs, "rewards", tokens=padded)).mean(), entry["outputs"]["loss"], entry)
        mean = objective(one_list(inputs, "rewards")).mean()
        assert not torch.isclose(mean, tensor(entry["outputs"]["loss"]), rtol=1e-6)
