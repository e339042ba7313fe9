"""Every label that comes with completions, declared once. Needs no torch.

A label is a number that accompanies an example, a completion or a token: a preference, a score, an advantage. Formats
read labels from columns, tokenization and collation carry them, containers hold them, objectives ask for them by name,
and `prefopt.verify` draws them. All of them read the table below, so none of them spells a label again.

**To add a label, touch at most three files:**

1. This one: declare it in `LABELS`, with the columns that give it.
2. `prefopt/core/batches/`: give each container that carries it a field with its name and shape, None by default.
3. The objective that reads it: name it in ``needs``, under ``labels`` (every example must have it) or ``optional``.

For example, how sure an annotator was of a pair::

    Label("confidence", Axis.EXAMPLE, "how sure the annotator was, 0 to 1", containers=("pairs",),
          columns={"pairs": ("confidence",)}, optional=True, bounds=(0.0, 1.0), typical=(0.0, 1.0))
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Axis(Enum):
    """What a label has one value for."""

    EXAMPLE = "example"
    COMPLETION = "completion"
    TOKEN = "token"
    MISMATCHED_TOKEN = "token of a mismatched row"


@dataclass(frozen=True)
class Label:
    """One kind of number that comes with completions.

    Attributes:
        name: The name in examples, micro-batches, containers and ``Needs``.
        axis: What it has one value for. Tokens are those that count, in the order of the rows.
        meaning: A noun phrase for messages.
        dtype: bool, int or float; floats are float32 in micro-batches.
        containers: The kinds of the containers with a field for it.
        columns: The kind of a layout → the columns that give it there, the usual name first.
        derived: The kind of another container → the labels there from which a view of it has this label.
        optional: Whether data may lack it, in all rows or in some.
        bounds: The least and the greatest value that data may hold; None for any.
        typical: The range from which `prefopt.verify` draws it.
        above: Another label that it is never below; ``typical`` is then their difference.
        words: Other words for it in the parameters of people's own losses.
    """

    name: str
    axis: Axis
    meaning: str
    dtype: type = float
    containers: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    derived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: bool = False
    bounds: tuple[float, float] | None = None
    typical: tuple[float, float] = (-2.0, 2.0)
    above: str = ""
    words: tuple[str, ...] = ()


REF_LOGPS, MISMATCHED_REF_LOGPS = "ref_logps", "mismatched_ref_logps"
"""The log-probs of the reference, which a micro-batch keeps apart from its other labels."""

_EVERY = ("demonstrations", "pairs", "labelled", "ranked", "rollouts")

_DECLARED = (
    # Marks of whole examples.
    Label("desirable", Axis.EXAMPLE, "true for a desirable completion", bool, ("labelled",),
          columns={"labelled": ("label", "kto_tag", "desirable", "feedback")}, words=("label", "labels")),
    Label("ids", Axis.EXAMPLE, "the number of an example, the same in every epoch", int, _EVERY),
    Label("preference", Axis.EXAMPLE, "P(chosen is better), 0 to 1", float, ("pairs",),
          columns={"pairs": ("preference",)}, optional=True, bounds=(0.0, 1.0), typical=(0.0, 1.0),
          words=("preferences",)),
    Label("rejected_score", Axis.EXAMPLE, "numbers, higher is better", float, ("pairs",),
          columns={"pairs": ("score_rejected", "rejected_score", "rejected-rating", "rejected_rating",
                             "rating_rejected")},
          derived={"ranked": ("scores",)}, optional=True),
    Label("chosen_score", Axis.EXAMPLE, "numbers, higher is better", float, ("pairs",),
          columns={"pairs": ("score_chosen", "chosen_score", "chosen-rating", "chosen_rating", "rating_chosen")},
          derived={"ranked": ("scores",)}, optional=True, typical=(0.0, 3.0), above="rejected_score"),
    Label("rated_margin", Axis.EXAMPLE, "by how much chosen is better", float, ("pairs",),
          columns={"pairs": ("margin",)}, optional=True, typical=(0.0, 3.0)),
    Label("sampled_by_reference", Axis.EXAMPLE, "true where the reference sampled the chosen completion", bool,
          ("pairs",)),
    # The completions of a group.
    Label("group", Axis.COMPLETION, "the number of the group of a completion, from 0", int, ("ranked",)),
    Label("scores", Axis.COMPLETION, "a list with one number for each completion", float, ("ranked",),
          columns={"ranked": ("scores",)}, derived={"pairs": ("chosen_score", "rejected_score")}, optional=True),
    Label("ranks", Axis.COMPLETION, "the place of each completion, 1 is best", int, ("ranked",),
          columns={"ranked": ("ranks",)}),
    # The tokens of sampled completions.
    Label("old_logps", Axis.TOKEN, "log-probs under the policy that sampled", float, ("rollouts",)),
    Label("advantages", Axis.TOKEN, "advantages", float, ("rollouts",)),
    Label("values", Axis.TOKEN, "the values of the critic", float, ("rollouts",)),
    Label("old_values", Axis.TOKEN, "the values of the critic at sampling time", float, ("rollouts",)),
    Label("returns", Axis.TOKEN, "what the critic learns", float, ("rollouts",)),
    # The reference, where it has been scored already.
    Label(REF_LOGPS, Axis.TOKEN, "log-probs under the reference"),
    Label(MISMATCHED_REF_LOGPS, Axis.MISMATCHED_TOKEN, "log-probs of mismatched rows under the reference"),
)  # fmt: skip

LABELS: dict[str, Label] = {label.name: label for label in _DECLARED}
"""Name → label. A label that is ``above`` another one comes after it."""


def labels_of(kind: str, axis: Axis | None = None) -> list[Label]:
    """The labels that containers of a kind carry, in the order of the table; those of one axis only, if given."""
    return [label for label in LABELS.values() if kind in label.containers and axis in (None, label.axis)]


def optional_labels(*axes: Axis) -> list[str]:
    """The names of the labels of these axes that data may lack."""
    return [label.name for label in LABELS.values() if label.optional and label.axis in axes]


def columns_of(name: str, layout: str) -> tuple[str, ...]:
    """The columns that would give a label in data of a kind: the usual name of each.

    A label that its layout derives from others is given by the columns of those.
    """
    label = LABELS.get(name)
    if label is None:
        return (name,)
    if layout not in label.columns and layout in label.derived:
        return tuple(dict.fromkeys(column for source in label.derived[layout] for column in columns_of(source, layout)))
    given = label.columns.get(layout) or next(iter(label.columns.values()), (name,))
    return given[:1]


def meaning_of(name: str, layout: str) -> str:
    """What a label means, as data of a kind gives it."""
    label = LABELS.get(name)
    if label is None:
        return "numbers"
    derived = () if layout in label.columns else label.derived.get(layout, ())
    return LABELS[derived[0]].meaning if derived else label.meaning


def sources_of(name: str, kind: str) -> tuple[str, ...]:
    """The labels of a container of this kind from which a view of it has the label ``name``."""
    label = LABELS.get(name)
    return (name,) if label is None or kind in label.containers else label.derived.get(kind, (name,))


def carried(labels: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Of the labels of an example those that an example of another kind has too."""
    names = {label.name for label in labels_of(kind, Axis.EXAMPLE)}
    return {name: value for name, value in labels.items() if name in names}


def common(examples: Iterable[Mapping[str, Any]]) -> list[Label]:
    """The labels that all examples have, in the order of the table."""
    examples = list(examples)
    return [label for label in LABELS.values() if all(label.name in labels for labels in examples)]
