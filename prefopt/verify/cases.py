"""Batches to try an objective on, drawn from any source of choices: Hypothesis, or a seeded generator.

A batch is drawn as plain numbers (`Response`), so that the same draw can be built in float64, float32 or bfloat16,
with more padding or less, with NaN in the padding or zeros.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch

from prefopt.core.batches import Batch, Completions, Demonstrations, Labelled, Pairs, Ranked, Rollouts, TokenLogps
from prefopt.core.errors import UsageError
from prefopt.core.labels import Axis, Label, labels_of
from prefopt.core.needs import Needs

T = TypeVar("T")

REGIMES = ("ordinary", "reference", "equal", "extreme")
"""``reference``: policy equals reference (and the policy that sampled). ``equal``: both responses of a pair are the
same. ``extreme``: log-probs of a response from −1e-8 to −1e4, so that margins reach 1e4. A fifth, ``certain``, has
probabilities of exactly 1."""


class Source(Protocol):
    """Where the choices of a drawn batch come from."""

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""

    def number(self, low: float, high: float) -> float:
        """A finite number from low to high."""

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""


class Seeded:
    """A source that always makes the same choices for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def number(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def choice(self, options: Sequence[T]) -> T:
        return self._random.choice(options)


@dataclass(frozen=True)
class Response:
    """One completion as plain numbers, one tuple per field of `TokenLogps` with one entry per position.

    ``mask`` may have holes. Where no per-token values are wanted there is a single position that holds the sum, and
    ``length`` says how many tokens it stands for. ``reward`` is a reward model's, for objectives that train one.
    """

    length: int
    mask: tuple[bool, ...]
    values: Mapping[str, tuple[float, ...]]
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class Build:
    """How a draw becomes tensors.

    Attributes:
        dtype: of all floating tensors.
        padding: extra positions on the right of per-token values.
        fill: what stands outside the mask (twice this for the second field, and so on).
        from_tokens: build per-token values and sum them.
        keep_tokens: leave the per-token values in the batch.
    """

    dtype: torch.dtype = torch.float64
    padding: int = 0
    fill: float = float("nan")
    from_tokens: bool = False
    keep_tokens: bool = True

    def __call__(self, responses: Sequence[Response]) -> Completions:
        rewards = [response.reward for response in responses if response.reward is not None]
        columns = {"rewards": torch.tensor(rewards, dtype=self.dtype)} if rewards else {}
        if not self.from_tokens:
            columns |= {
                name: torch.tensor([response.values[name][0] for response in responses], dtype=self.dtype)
                for name in (responses[0].values if responses else ())
            }
            lengths = torch.tensor([response.length for response in responses])
            return Completions(lengths=lengths, **columns)
        width = max(len(response.mask) for response in responses) + self.padding
        mask = torch.zeros(len(responses), width, dtype=torch.bool)
        # Another number for each field, or padding that counts would cancel in log π − log π_ref.
        fills = {name: self.fill * (1 + k) for k, name in enumerate(responses[0].values)}
        for i, response in enumerate(responses):
            mask[i, : len(response.mask)] = torch.tensor(response.mask)
        tokens = {
            name: self.padded([response.values[name] for response in responses], mask, fill)
            for name, fill in fills.items()
        }
        completions = replace(Completions.from_tokens(TokenLogps(mask=mask, **tokens)), **columns)
        return completions if self.keep_tokens else replace(completions, tokens=None)

    def padded(self, rows: Sequence[Sequence[float]], mask: torch.Tensor, fill: float) -> torch.Tensor:
        """Rows of different lengths as [n, t], with ``fill`` wherever the mask is False."""
        found = torch.full(mask.shape, fill, dtype=self.dtype)
        for i, values in enumerate(rows):
            found[i, : len(values)] = torch.tensor(values, dtype=self.dtype)
        return found.masked_fill(~mask, fill)


@dataclass(frozen=True)
class Draw:
    """A batch as plain numbers: groups of responses by field name, and the other columns.

    A column of tuples has one value for each position of ``completions``, and is padded like their tokens.
    """

    kind: type[Batch]
    responses: Mapping[str, tuple[Response, ...]]
    columns: Mapping[str, Any]
    tokens: bool

    def build(self, **options: Any) -> Batch:
        """The batch in tensors; see `Build` for the options."""
        options.setdefault("from_tokens", self.tokens)
        build = Build(**options)
        parts = {name: build(responses) for name, responses in self.responses.items()}
        columns = {}
        for k, (name, values) in enumerate(self.columns.items()):
            if isinstance(values[0], tuple):
                columns[name] = build.padded(values, parts["completions"].tokens.mask, build.fill * (3 + k))
            else:
                columns[name] = torch.tensor(values, dtype=build.dtype if _floating(values) else None)
        return self.kind(**parts, **columns)


def _floating(values: Sequence[Any]) -> bool:
    return any(isinstance(value, float) for value in values)


def draw(
    source: Source,
    needs: Needs,
    *,
    regime: str | None = None,
    rows: int | None = None,
    tokens: bool | None = None,
    longest: int = 400,
) -> Draw:
    """Draw a batch of the container that ``needs`` names, with what it needs in it.

    Args:
        source: makes the choices.
        needs: of the objective.
        regime: one of `REGIMES`; drawn where None.
        rows: how many examples; drawn where None.
        tokens: draw per-token values; where None, only if they are needed.
        longest: longest completion, in tokens (per-token values stop at 12 unless the draw picks a long one).
    """
    regime = regime or source.choice(REGIMES)
    rows = rows or source.integer(1, 4)
    tokens = (needs.tokens or bool(needs.statistics)) if tokens is None else tokens
    maker = _MAKERS.get(needs.batch.kind)
    if maker is None:
        raise UsageError(f"prefopt.verify cannot draw a batch of {needs.batch.kind}; add a maker with `draws`.")
    drawing = _Drawing(source, needs, regime, tokens, longest)
    responses, columns = maker(drawing, rows)
    return Draw(needs.batch, responses, columns, tokens)


def draws(kind: str) -> Callable[[Callable], Callable]:
    """Register how batches of a container kind are drawn: ``(drawing, rows) -> (responses, columns)``."""

    def decorate(maker: Callable) -> Callable:
        _MAKERS[kind] = maker
        return maker

    return decorate


@dataclass(frozen=True)
class _Drawing:
    source: Source
    needs: Needs
    regime: str
    tokens: bool
    longest: int

    def length(self) -> int:
        if not self.tokens:
            return self.source.choice((1, 2, 3, 5, 17, self.longest))
        if self.longest > 12 and self.source.integer(0, 12) == 12:
            return min(self.longest, 40)
        return self.source.integer(1, 4)

    def response(self, length: int | None = None) -> Response:
        response = self._scored(length or self.length())
        return replace(response, reward=self._reward()) if self.needs.rewards else response

    def _reward(self) -> float:
        if self.regime == "reference":
            return 0.0
        if self.regime == "certain":
            return self.source.choice((0.0, -1e-8, 1e4))
        far = self.source.choice((1e-8, 1.0, 30.0, 1e4)) if self.regime == "extreme" else 3.0
        return self.source.number(-far, far)

    def _scored(self, length: int) -> Response:
        if not self.tokens:
            total = self._logp(length)
            values = {"logps": (total,)}
            if self.needs.reference:
                values["ref_logps"] = (total if self.regime == "reference" else self._near(total, length),)
            return Response(length, (True,), values)
        mask = self._mask(length)
        # A long completion repeats a few values: long lists are slow to draw and to shrink.
        logps = _repeat([self._logp(1) for _ in range(min(length, 6))], len(mask))
        values = {"logps": logps}
        if self.needs.reference:
            same = self.regime == "reference"
            values["ref_logps"] = tuple(x if same else self._near(x, 1) for x in logps[:6]) + logps[6:]
        if "kl" in self.needs.statistics:
            values["kl"] = _repeat([self.source.number(0.0, 3.0) for _ in range(2)], len(mask))
        if "log_sum_p2" in self.needs.statistics:
            values["log_sum_p2"] = _repeat([self.source.number(-6.0, -1e-3) for _ in range(2)], len(mask))
        return Response(length, mask, values)

    def _mask(self, length: int) -> tuple[bool, ...]:
        hole = self.source.integer(0, 5) == 5
        return (True, False, *(True,) * (length - 1)) if hole else (True,) * length

    def _logp(self, tokens: int) -> float:
        if self.regime == "certain":
            return self.source.choice((0.0, -1e-8, -1e4))
        if self.regime == "extreme":
            near, far = self.source.choice(((-1e-8, -1e-8), (-1e-2, -1e-8), (-30.0, -0.1), (-1e4, -30.0), (-1e4, -1e4)))
            return self.source.number(near, far) if near != far else near
        return self.source.number(-3.0 * tokens, -0.01 * tokens)

    def _near(self, logp: float, tokens: int) -> float:
        if self.regime in ("extreme", "certain"):
            return self._logp(tokens)
        spread = 1.0 if self.tokens else 6.0
        return min(logp + self.source.number(-spread, spread), -1e-3)

    def near_its_reference(self, response: Response) -> Response:
        """Log-ratios to the reference of all sizes: so small that k3 is a series, and so large that it grows."""
        if not self.needs.reference:
            return response
        return replace(
            response, values={**response.values, "ref_logps": self.sampled(response.values["logps"], (0.01, 0.5, 4.0))}
        )

    def sampled(self, logps: tuple[float, ...], spreads: Sequence[float] = (0.001, 0.5)) -> tuple[float, ...]:
        """Log-probabilities under the policy that sampled: near enough for clipping to be now active, now not."""
        if self.regime == "reference":
            return logps
        if self.regime in ("extreme", "certain"):
            return _repeat([self._logp(1) for _ in logps[:6]], len(logps))
        spread = self.source.choice(spreads)
        return _repeat([min(x + self.source.number(-spread, spread), -1e-3) for x in logps[:6]], len(logps))

    def numbers(self, response: Response, spread: float, around: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """Advantages, values or returns: one number per position of a completion, near given ones if there are any."""
        positions = len(response.mask)
        centres = around or (0.0,) * positions
        if self.regime in ("extreme", "certain"):
            spread = self.source.choice((1e-8, 1.0, 100.0, 1e4))
        found = [centre + self.source.number(-spread, spread) for centre in centres[:6]]
        return _repeat(found, positions)

    def labels(self, rows: int) -> dict[str, list]:
        """Labels of examples: those without which there is no such container, and those that the objective reads."""
        columns: dict[str, list] = {}
        known, required = labels_of(self.needs.batch.kind, Axis.EXAMPLE), self.needs.batch.label_fields()
        # What a label is never below is drawn with it.
        read = {*self.needs.labels, *(label.above for label in known if label.name in self.needs.labels)}
        for label in known:
            drawn = label.name in self.needs.optional and self.source.choice((True, False))
            if label.name == "ids":
                columns["ids"] = self.ids(rows)
            elif drawn or label.name in read or required.get(label.name):
                columns[label.name] = self.label(label, rows, columns)
        return columns

    def label(self, label: Label, rows: int, columns: Mapping[str, list]) -> list:
        """Usual values of a label, not below those of the label that it is ``above``."""
        if label.dtype is bool:
            return [self.source.choice((True, False)) for _ in range(rows)]
        low, high = label.typical
        if label.dtype is int:
            return [self.source.integer(int(low), int(high)) for _ in range(rows)]
        floor = columns.get(label.above, [0.0] * rows)
        return [least + self.source.number(low, high) for least in floor]

    def ids(self, rows: int) -> list[int]:
        first = self.source.integer(0, 1000)
        return [first + 7 * i for i in range(rows)]


def _repeat(values: list[float], times: int) -> tuple[float, ...]:
    return tuple(values[i % len(values)] for i in range(times))


_MAKERS: dict[str, Callable] = {}


@draws(Demonstrations.kind)
def _demonstrations(drawing: _Drawing, rows: int) -> tuple[dict, dict]:
    return {"completions": tuple(drawing.response() for _ in range(rows))}, drawing.labels(rows)


@draws(Pairs.kind)
def _pairs(drawing: _Drawing, rows: int) -> tuple[dict, dict]:
    chosen = tuple(drawing.response() for _ in range(rows))
    rejected = tuple(response if drawing.regime == "equal" else drawing.response() for response in chosen)
    return {"chosen": chosen, "rejected": rejected}, drawing.labels(rows)


@draws(Labelled.kind)
def _labelled(drawing: _Drawing, rows: int) -> tuple[dict, dict]:
    responses = {"completions": tuple(drawing.response() for _ in range(rows))}
    if "mismatched" in drawing.needs.observes:
        responses["mismatched"] = tuple(drawing.response() for _ in range(drawing.source.integer(1, 4)))
    return responses, drawing.labels(rows)


@draws(Ranked.kind)
def _ranked(drawing: _Drawing, rows: int) -> tuple[dict, dict]:
    sizes = [drawing.source.integer(1 if drawing.needs.singles else 2, 4) for _ in range(rows)]
    group = [g for g, members in enumerate(sizes) for _ in range(members)]
    responses: list[Response] = []
    for i, g in enumerate(group):
        twin = drawing.regime == "equal" and i > 0 and group[i - 1] == g
        responses.append(responses[-1] if twin else drawing.response())
    # Three values for up to four candidates: ties occur. An order without scores will do where none are read.
    scored = "scores" in drawing.needs.labels or drawing.source.choice((True, False))
    standing = [drawing.source.integer(0, 4) for _ in group]
    columns = {"group": group, **drawing.labels(rows)}
    if scored:
        columns["scores"] = [0.75 * place for place in standing]
    else:
        columns["ranks"] = [5 - place for place in standing]
    return {"completions": tuple(responses)}, columns


@draws(Rollouts.kind)
def _rollouts(drawing: _Drawing, rows: int) -> tuple[dict, dict]:
    if not drawing.tokens:
        raise UsageError("rollouts carry per-token values: declare tokens=True in needs.")
    responses = tuple(drawing.near_its_reference(drawing.response()) for _ in range(rows))
    columns: dict[str, Any] = drawing.labels(rows)
    columns["old_logps"] = [drawing.sampled(response.values["logps"]) for response in responses]
    columns["advantages"] = [drawing.numbers(response, 2.0) for response in responses]
    if drawing.needs.values:
        columns["values"] = [drawing.numbers(response, 2.0) for response in responses]
        columns["old_values"] = [
            drawing.numbers(response, 0.5, values) for response, values in _with(responses, columns)
        ]
        columns["returns"] = [drawing.numbers(response, 2.0, values) for response, values in _with(responses, columns)]
    for label in labels_of(Rollouts.kind, Axis.TOKEN):
        if label.name in drawing.needs.labels and label.name not in columns:
            columns[label.name] = [drawing.numbers(response, max(label.typical)) for response in responses]
    return {"completions": responses}, columns


def _with(responses: Sequence[Response], columns: Mapping[str, Any]) -> list[tuple[Response, tuple[float, ...]]]:
    return list(zip(responses, columns["values"], strict=True))
