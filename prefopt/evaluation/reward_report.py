"""What a reward model is worth on pairs that it was not trained on: accuracy, calibration, and its love of length."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from prefopt.core.errors import UsageError
from prefopt.data import TokenizedDataset
from prefopt.evaluation.statistics import pearson, spearman, wilson_interval
from prefopt.rewards.reward_model import RewardModel

BINS = 10
"""Bins of confidence, of equal width from ½ to 1."""
STRONG = 0.4
"""The rank correlation of score with length from which on the report warns."""
BIAS = 0.15
"""So does it where model and data differ by this share of pairs in preferring the longer, if that is hardly chance."""


@dataclass(frozen=True)
class ScoredPairs:
    """Held-out pairs with the scores that a model gives; one entry per pair in each.

    Attributes:
        chosen, rejected: r(x, y_w) and r(x, y_l).
        chosen_lengths, rejected_lengths: tokens of the completions.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_lengths: np.ndarray
    rejected_lengths: np.ndarray

    @property
    def margins(self) -> np.ndarray:
        """r(x, y_w) − r(x, y_l)."""
        return self.chosen - self.rejected

    @property
    def right(self) -> np.ndarray:
        """1 where the chosen completion scores higher, ½ where both score the same, else 0."""
        return (self.margins > 0) + 0.5 * (self.margins == 0)


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval (Wilson).

    Attributes:
        name: what it is of.
        n: pairs.
        value, low, high: from 0 to 1.
    """

    name: str
    n: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Pairs of which the model is about equally sure.

    Attributes:
        confidence: mean of σ(|r_w − r_l|), what the model gives to the completion that it prefers.
        right: how often it is right.
    """

    confidence: float
    right: Share


@dataclass(frozen=True)
class RewardReport:
    """The numbers of the report.

    Attributes:
        accuracy: share of pairs whose chosen completion scores higher; ties count one half.
        by_length: the same for the thirds of the pairs by how much longer the chosen completion is.
        by_margin: the same for the thirds by |r_w − r_l|.
        loss: mean −log σ(r_w − r_l), in nats; log 2 is what a model without an opinion gets.
        brier: mean (1 − σ(r_w − r_l))²; ¼ without an opinion.
        ece: expected calibration error, Σ n_b/n |right_b − confidence_b| over the bins.
        bins: those that hold pairs.
        spearman, pearson: correlation of score with length over all completions; None where either is constant.
        prefers_longer: share of the pairs of different length in which the model prefers the longer completion.
        longer_is_chosen: in which the annotators did; None without such pairs, both.
        warnings: lines on what should worry.
    """

    accuracy: Share
    by_length: tuple[Share, ...]
    by_margin: tuple[Share, ...]
    loss: float
    brier: float
    ece: float
    bins: tuple[Bin, ...]
    spearman: float | None
    pearson: float | None
    prefers_longer: float | None
    longer_is_chosen: float | None
    warnings: tuple[str, ...]


def score_pairs(model: RewardModel, data: TokenizedDataset) -> ScoredPairs:
    """Score both completions of every pair.

    Raises:
        UsageError: the dataset does not hold pairs.
    """
    if data.kind != "pairs":
        raise UsageError(f"a reward model is evaluated on pairs, not on {data.kind}.")
    rows = [np.concatenate([each.prompt, each.completions[k]]) for k in (0, 1) for each in data.examples]
    lengths = [int(each.mask(k).sum()) for k in (0, 1) for each in data.examples]
    scores, n = np.asarray(model.score(rows)), len(data.examples)
    return ScoredPairs(scores[:n], scores[n:], np.asarray(lengths[:n]), np.asarray(lengths[n:]))


def report_on(pairs: ScoredPairs) -> RewardReport:
    """The report on at least one pair.

    Raises:
        UsageError: a score is not a finite number.
    """
    if not np.isfinite([pairs.chosen, pairs.rejected]).all():
        raise UsageError("the model gives scores that are not finite numbers: its weights or its precision are broken.")
    margins, right = pairs.margins, pairs.right
    longer = pairs.chosen_lengths - pairs.rejected_lengths
    bins = reliability(margins, right)
    scores = np.concatenate([pairs.chosen, pairs.rejected])
    lengths = np.concatenate([pairs.chosen_lengths, pairs.rejected_lengths])
    differ = longer != 0
    prefers = np.where(longer > 0, right, 1 - right)[differ]
    measured = {
        "accuracy": share("all pairs", right),
        "by_length": thirds(longer, right, _relation, "+.0f", " tokens"),
        "by_margin": thirds(np.abs(margins), right, lambda part, *_: ("close", "in between", "far apart")[part], ".2g"),
        "loss": float(np.logaddexp(0, -margins).mean()),
        "brier": float(((1 - expit(margins)) ** 2).mean()),
        "ece": sum(one.right.n * abs(one.right.value - one.confidence) for one in bins) / len(right),
        "bins": bins,
        "spearman": spearman(scores, lengths),
        "pearson": pearson(scores, lengths),
        "prefers_longer": float(prefers.mean()) if differ.any() else None,
        "longer_is_chosen": float((longer > 0)[differ].mean()) if differ.any() else None,
    }
    return RewardReport(**measured, warnings=tuple(_warnings(measured)))


def _warnings(measured: dict) -> list[str]:
    found = []
    accuracy, rank = measured["accuracy"], measured["spearman"]
    model, people = measured["prefers_longer"], measured["longer_is_chosen"]
    if accuracy.low <= 0.5:
        found.append(
            f"accuracy is {accuracy.value:.1%}, which {accuracy.n} pairs cannot tell from guessing "
            f"(95 % interval {accuracy.low:.1%} to {accuracy.high:.1%})."
        )
    biased = model is not None and abs(model - people) >= max(BIAS, 1 / math.sqrt(accuracy.n))
    if biased or (rank is not None and abs(rank) >= STRONG):
        follows = "the score follows length" + ("" if rank is None else f" (Spearman {rank:+.2f})")
        if model is not None:
            follows += f": the model prefers the longer in {model:.0%} of pairs, the data in {people:.0%}"
        found.append(follows + ".")
    return found


def share(name: str, right: np.ndarray) -> Share:
    """The mean of 0, ½ and 1 with its Wilson interval."""
    n, value = len(right), float(np.mean(right))
    return Share(name, n, value, *wilson_interval(value, n))


def thirds(
    values: np.ndarray, right: np.ndarray, name: Callable[[int, float, float], str], form: str, unit: str = ""
) -> tuple[Share, ...]:
    """Accuracy in three parts of about the same size, from the smallest values to the largest.

    Equal values stay together, so that a part may be larger than a third, or empty and left out. ``name`` is told the
    number of the part and its edges, which ``form`` and ``unit`` write.
    """
    cuts = np.quantile(values, [1 / 3, 2 / 3], method="lower")
    part = (values > cuts[0]).astype(int) + (values > cuts[1])
    found = []
    for number in range(3):
        inside = part == number
        if inside.any():
            low, high = float(values[inside].min()), float(values[inside].max())
            edges = format(low, form) if low == high else f"{low:{form}} to {high:{form}}"
            found.append(share(f"{name(number, low, high)} ({edges}{unit})", right[inside]))
    return tuple(found)


def _relation(_: int, low: float, high: float) -> str:
    """What a range of lengths of chosen minus rejected means."""
    if low == high == 0:
        return "same length"
    if high <= 0:
        return "chosen shorter" if high < 0 else "chosen not longer"
    if low >= 0:
        return "chosen longer" if low > 0 else "chosen not shorter"
    return "similar length"


def reliability(margins: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    """How often the model is right about pairs of which it is so and so sure."""
    confidence = expit(np.abs(margins))
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    found = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            edges = f"{0.5 + number / (2 * BINS):.2f} to {0.5 + (number + 1) / (2 * BINS):.2f}"
            found.append(Bin(float(confidence[inside].mean()), share(edges, right[inside])))
    return tuple(found)
