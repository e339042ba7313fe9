"""Groups of judged completions: which of them can be used, and how those stand to each other."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prefopt.data.encode import Encoded, Encoder
from prefopt.data.examples import RankedExample
from prefopt.data.messages import is_empty
from prefopt.data.reasons import Cause, Reason, SkipRow

Fit = Callable[[np.ndarray, Sequence[Encoded]], tuple[np.ndarray, list[Encoded]]]
Group = dict[int, Encoded]
"""Place in the example → its tokens."""


def encode_group(example: RankedExample, encoder: Encoder, left: list[Cause]) -> tuple[np.ndarray, Group]:
    """Tokens of the prompt and of every completion that can be used; why the others cannot goes into ``left``.

    Raises:
        SkipRow: no two different completions can be used, or not the only one.
    """
    prompt, group = None, {}
    for number, (text, standing) in enumerate(zip(example.completions, example.standing, strict=True)):
        try:
            if standing is None:
                raise SkipRow(Reason.UNJUDGED)
            if is_empty(text):
                raise SkipRow(Reason.EMPTY)
            prompt, group[number] = encoder.completion(example.prompt, text, example.columns.get("tools"))
        except SkipRow as skip:
            left.append(skip.cause)
    return prompt, _different(group, left, Reason.REPEATED, fewest(example))


def fit_group(
    example: RankedExample, prompt: np.ndarray, group: Group, fit: Fit, left: list[Cause]
) -> tuple[np.ndarray, Group]:
    """Cut to the limit by ``fit``; a completion that does not fit, or is another's equal after the cut, leaves.

    Raises:
        SkipRow: fewer than two are left (none, of a single one), or all that are left share one rank and nobody scored
            them.
    """
    fitting = {}
    for number, encoded in group.items():
        try:
            fit(prompt, [encoded])
            fitting[number] = encoded
        except SkipRow as skip:
            left.append(skip.cause)
    if len(fitting) < fewest(example):
        raise _skipped(left)
    prompt, cut = fit(prompt, list(fitting.values()))
    group = dict(zip(fitting, cut, strict=True))
    group = _different(group, left, Reason.REPEATED_AFTER_CUT, fewest(example))
    if example.scores is None and len({example.standing[number] for number in group}) == 1:
        raise SkipRow(Reason.TIE)
    return prompt, group


def group_labels(example: RankedExample, numbers: Sequence[int]) -> dict[str, Any]:
    """``ranks`` of these completions among themselves, 1 for the best and for all its equals, and their ``scores``."""
    standing = [example.standing[number] for number in numbers]
    labels: dict[str, Any] = {"ranks": tuple(1 + sum(other > own for other in standing) for own in standing)}
    if example.scores is not None and all(example.scores[number] is not None for number in numbers):
        labels["scores"] = tuple(example.scores[number] for number in numbers)
    return labels


def fewest(example: RankedExample) -> int:
    """How many completions must be left: two that can be compared, unless there was only one to begin with."""
    return min(2, len(example.completions))


def _different(group: Group, left: list[Cause], reason: Reason, least: int) -> Group:
    """Without those that repeat an earlier one: of two judgements on one text neither is to be believed more."""
    seen: set[bytes] = set()
    kept = {}
    for number, encoded in group.items():
        key = encoded.ids.tobytes()
        if key not in seen:
            kept[number] = encoded
        seen.add(key)
    left += [Cause(reason)] * (len(group) - len(kept))
    if len(kept) < least:
        raise _skipped(left) if least > 1 else SkipRow(Reason.ONLY_COMPLETION, why=str(left[0]))
    return kept


def _skipped(left: Sequence[Cause]) -> SkipRow:
    """Why a whole group cannot be used: too few are left, or a longer limit would keep one of its completions."""
    long = next((cause for cause in left if cause.reason.length), None)
    return SkipRow(long or Reason.FEW_DIFFERENT)
