"""DPO, IPO, SimPO, KTO and ORPO against numbers computed by published code (`tests/fixtures/author_code_core.json`,
where each entry names repository, commit, file and function)."""

from collections.abc import Callable

import published
import pytest
import torch
from published import tensor
from torch import Tensor

from prefopt import get_objective
from prefopt.core.batches import Completions, Labelled, Pairs, TokenLogps

ENTRIES = published.entries("core")


def entries(loss: str, *variants: str) -> Callable:
    found = [entry for entry in ENTRIES if entry["loss"] == loss and entry["variant"] in variants]
    assert found
    names = [f"{entry['loss']}-{entry['variant']}-{i}" for i, entry in enumerate(found)]
    return pytest.mark.parametrize("entry", found, ids=names)


def side(entry: dict, name: str) -> tuple[Completions, Tensor]:
    """One side of the pairs, and the leaf that gradients are taken for."""
    inputs = entry["inputs"]
    lengths = torch.tensor(inputs[f"{name}_length"])
    if f"policy_{name}" in inputs:
        leaf, reference = tensor(inputs[f"policy_{name}"]).requires_grad_(), inputs.get(f"ref_{name}")
        ref = None if reference is None else tensor(reference)
        return Completions(logps=leaf, lengths=lengths, ref_logps=ref), leaf
    leaf = tensor(inputs[f"policy_{name}_tokens"]).requires_grad_()
    reference = inputs.get(f"ref_{name}_tokens")
    mask = torch.arange(leaf.shape[1]) < lengths[:, None]
    tokens = TokenLogps(mask=mask, logps=leaf, ref_logps=None if reference is None else tensor(reference))
    return Completions.from_tokens(tokens), leaf


@entries("dpo", "sigmoid", "token arrays")
def test_dpo(entry: dict) -> None:
    on_pairs(entry, "dpo", beta=entry["hyperparameters"]["beta"])


@entries("ipo", "sum")
def test_ipo_of_sums(entry: dict) -> None:
    on_pairs(entry, "ipo", tau=entry["hyperparameters"]["tau"])


@entries("ipo", "mean")
def test_ipo_of_means(entry: dict) -> None:
    on_pairs(entry, "ipo", tau=entry["hyperparameters"]["tau"], average=True)


def counted_otherwise(entry: dict) -> Tensor:
    """Rows in which HALOs counts fewer tokens: it takes the log-ratios that are not zero (NaN if all are)."""
    other = torch.zeros(len(entry["outputs"]["loss"]), dtype=torch.bool)
    if entry["variant"] == "mean":
        for name in ("chosen", "rejected"):
            ratio = tensor(entry["inputs"][f"policy_{name}_tokens"]) - tensor(entry["inputs"][f"ref_{name}_tokens"])
            other |= (ratio != 0).sum(1) != torch.tensor(entry["inputs"][f"{name}_length"])
    return other


@entries("simpo", "sigmoid", "token arrays, gamma/beta ratio")
def test_simpo(entry: dict) -> None:
    given = entry["hyperparameters"]
    assert given["gamma"] == pytest.approx(given["beta"] * given["gamma_beta_ratio"])
    on_pairs(entry, "simpo", beta=given["beta"], gamma=given["gamma"])


def on_pairs(entry: dict, name: str, **hyperparameters: float) -> None:
    (chosen, leaf_w), (rejected, leaf_l) = side(entry, "chosen"), side(entry, "rejected")
    kept = ~counted_otherwise(entry)
    rows = get_objective(name, **hyperparameters)(Pairs(chosen=chosen, rejected=rejected)).terms["preference"].values
    published = [float("nan") if value is None else value for value in entry["outputs"]["loss"]]
    torch.testing.assert_close(rows[kept], tensor(published)[kept], rtol=entry["rtol"], atol=entry["atol"])
    rows.sum().backward()
    suffix = "" if "grad_policy_chosen" in entry["outputs"] else "_tokens"
    for leaf, key in ((leaf_w, "chosen"), (leaf_l, "rejected")):
        rows_of = entry["outputs"][f"grad_policy_{key}{suffix}"]
        published = tensor([row for row, keep in zip(rows_of, kept, strict=True) if keep])
        counts, gradient = torch.ones_like(published).bool(), leaf.grad[kept]
        if suffix:  # published code gives padding a gradient, which its mask takes away later
            counts = torch.arange(leaf.shape[1]) < torch.tensor(entry["inputs"][f"{key}_length"])[kept][:, None]
        torch.testing.assert_close(gradient[counts], published[counts], rtol=entry["rtol"], atol=entry["atol"])


def expect(found: Tensor, entry: dict, key: str) -> None:
    torch.testing.assert_close(found, tensor(entry["outputs"][key]), rtol=entry["rtol"], atol=entry["atol"])


@entries("kto", "loss: desirable rows first, then undesirable")
def test_kto(entry: dict) -> None:
    inputs, given = entry["inputs"], entry["hyperparameters"]
    good, bad = tensor(inputs["policy_desirable"]), tensor(inputs["policy_undesirable"])
    leaf = torch.cat([good, bad]).requires_grad_()
    ones = torch.ones(len(leaf), dtype=torch.long)
    reference = tensor([*inputs["ref_desirable"], *inputs["ref_undesirable"]])
    mismatched = tensor(inputs["policy_mismatched"])
    batch = Labelled(
        completions=Completions(logps=leaf, lengths=ones, ref_logps=reference),
        desirable=torch.arange(len(leaf)) < len(good),
        mismatched=Completions(
            logps=mismatched,
            lengths=torch.ones(len(mismatched), dtype=torch.long),
            ref_logps=tensor(inputs["ref_mismatched"]),
        ),
    )
    objective = get_objective("kto", **given)
    state = objective.prepare({}, objective.observe(batch))
    # HALOs divides by the number of ratios that are not zero, the paper by the number of pairs.
    share = float((batch.mismatched.log_ratio != 0).double().mean())
    assert float(state["z0"]) == pytest.approx(share * entry["outputs"]["z0"], rel=1e-12, abs=1e-12)
    rows = objective(batch, {"z0": tensor(entry["outputs"]["z0"])}).terms["value"].values
    expect(rows, entry, "loss")
    rows.sum().backward()
    published = [*entry["outputs"]["grad_policy_desirable"], *entry["outputs"]["grad_policy_undesirable"]]
    torch.testing.assert_close(leaf.grad, tensor(published), rtol=entry["rtol"], atol=entry["atol"])


@entries("orpo", "full-width rows, prompt loss disabled", "full-width rows, NLL includes the prompt")
def test_orpo(entry: dict) -> None:
    sides = []
    for name in ("chosen", "rejected"):
        rows = [tensor(row) for row in entry["inputs"][f"policy_{name}_tokens"]]
        sums, lengths = torch.stack([row.sum() for row in rows]), torch.tensor([len(row) for row in rows])
        sides.append(Completions(logps=sums, lengths=lengths))
    loss = get_objective("orpo", lam=entry["hyperparameters"]["weight"])(Pairs(chosen=sides[0], rejected=sides[1]))
    expect(loss.terms["odds_ratio"].values, entry, "log_odds_ratio_term")
    if entry["agrees"]:
        expect(loss.terms["nll"].values, entry, "nll")
    else:  # the authors' default averages over the prompt as well
        assert not torch.allclose(loss.terms["nll"].values, tensor(entry["outputs"]["nll"]), rtol=1e-3)
