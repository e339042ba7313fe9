"""Groups of judged completions: which of them can be used, and how those stand to each other."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.data.encode import Encoded, Encoder
from prefopt.data.examples import RankedExample
from prefopt.data.messages import Drop, is_empty

Fit = Callable[[np.ndarray, Sequence[Encoded]], tuple[np.ndarray, list[Encoded]]]
Group = dict[int, Encoded]
"""Place in the example → its tokens."""

TOO_FEW = "with fewer than two different completions"
_LENGTH = ("longer than", "with a prompt of", "with a completion of")


def encode_group(example: RankedExample, encoder: Encoder, left: Counter) -> tuple[np.ndarray, Group]:
    """Tokens of the prompt and of every completion that can be used; the reasons of the others go into ``left``.

    Raises:
        Drop: no two different completions can be used, or not the only one.
    """
    prompt, group = None, {}
    for number, (text, standing) in enumerate(zip(example.completions, example.standing, strict=True)):
        try:
            if standing is None:
                raise Drop("without a judgement")
            if is_empty(text):
                raise Drop("empty")
            prompt, group[number] = encoder.completion(example.prompt, text, example.columns.get("tools"))
        except Drop as drop:
            left[drop.reason] += 1
    return prompt, _different(group, left, "equal to another one", fewest(example))


def fit_group(
    example: RankedExample, prompt: np.ndarray, group: Group, fit: Fit, left: Counter
) -> tuple[np.ndarray, Group]:
    """Cut to the limit by ``fit``; a completion that does not fit, or is another's equal after the cut, leaves.

    Raises:
        Drop: fewer than two are left (none, of a single one), or all that are left share one rank and nobody scored
            them.
    """
    fitting = {}
    for number, encoded in group.items():
        try:
            fit(prompt, [encoded])
            fitting[number] = encoded
        except Drop as drop:
            left[drop.reason] += 1
    if len(fitting) < fewest(example):
        raise Drop(_why(left))
    prompt, cut = fit(prompt, list(fitting.values()))
    group = dict(zip(fitting, cut, strict=True))
    group = _different(group, left, "identical to another one after the cut", fewest(example))
    if example.scores is None and len({example.standing[number] for number in group}) == 1:
        raise Drop("ties")
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


def _different(group: Group, left: Counter, reason: str, least: int) -> Group:
    """Without those that repeat an earlier one: of two judgements on one text neither is to be believed more."""
    seen: set[bytes] = set()
    kept = {}
    for number, encoded in group.items():
        key = encoded.ids.tobytes()
        if key not in seen:
            kept[number] = encoded
        seen.add(key)
    left.update({reason: len(group) - len(kept)} if len(kept) < len(group) else {})
    if len(kept) < least:
        raise Drop(_why(left) if least > 1 else f"whose only completion is {next(iter(left))}")
    return kept


def _why(left: Mapping[str, int]) -> str:
    """A reason for the whole group: the only one of its completions, or one that a longer limit would remedy."""
    reasons = [reason for reason in left if reason.startswith(_LENGTH)]
    return reasons[0] if reasons else TOO_FEW
