"""The whole way from a source of rows to a dataset of tokens."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch.utils.data import Dataset

from prefopt.core.errors import DataError, UsageError, did_you_mean
from prefopt.core.labels import MISMATCHED_REF_LOGPS, REF_LOGPS
from prefopt.core.micro_batch import MicroBatch
from prefopt.data.audit import Audit
from prefopt.data.collate import collate
from prefopt.data.convert import convert
from prefopt.data.encode import Encoder
from prefopt.data.examples import KINDS, Example
from prefopt.data.formats import to_examples
from prefopt.data.labels import finish_labels, require_labels, without_singles
from prefopt.data.read import Split, describe, has_splits, load_rows
from prefopt.data.reasons import SkipRow
from prefopt.data.settings import DataSettings
from prefopt.data.template import PLAIN_NOTE
from prefopt.data.tokenize import Tokenized, TokenizedExample, row_arguments, tokenize

DEFAULT_LENGTH = 2048
LOOKED_AT = 1000
"""Rows whose layout `check_rows` looks at."""


class TokenizedDataset(Dataset):
    """Tokenized examples of one kind; a map-style torch dataset.

    Args:
        kind: pairs, labelled, ranked, demonstrations or prompts.
        examples: at least one.
        max_length: the limit in tokens that they respect.
        pad_token_id: for `collate`.
        audit: what became of the rows.
        mismatch_seed: where given, every labelled example comes with a completion of another prompt (KTO). The partner
            is the next row with another prompt in a seeded order of the whole dataset, the same in every epoch, so it
            depends on neither micro-batch nor rank.
        notes: lines to show to the user.
        stop_ids: token ids at which a completion ends.

    Raises:
        DataError: partners are wanted, and all examples share one prompt.
        UsageError: partners are wanted for another kind than labelled.
    """

    def __init__(
        self,
        kind: str,
        examples: Sequence[TokenizedExample],
        max_length: int,
        pad_token_id: int,
        audit: Audit,
        mismatch_seed: int | None = None,
        notes: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
    ) -> None:
        self.kind = kind
        self.examples = list(examples)
        self.max_length = max_length
        self.pad_token_id = pad_token_id
        self.audit = audit
        self.notes = list(notes)
        self.stop_ids = tuple(stop_ids)
        self.partners: np.ndarray | None = None
        if mismatch_seed is not None:
            if kind != "labelled":
                raise UsageError(f"mismatched completions exist for labelled rows, not for {kind}.")
            self.partners = draw_partners([example.prompt.tobytes() for example in self.examples], mismatch_seed)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> TokenizedExample:
        example = self.examples[index]
        if self.partners is None:
            return example
        partner = self.examples[self.partners[index]]
        room = self.max_length - len(example.prompt)
        return replace(example, mismatched=(partner.completions[0][:room], partner.mask(0)[:room]))

    def check(self, kind: str, labels: Sequence[str], reader: str) -> None:
        """Refuse to serve ``reader``, which takes examples of ``kind`` that all have ``labels``.

        Raises:
            DataError: the kind is another one, or a label is missing.
        """
        if self.kind != kind:
            raise DataError(f"{reader} takes {kind}, and this tokenized dataset holds {self.kind}: prepare it again.")
        _, skipped = require_labels(self.examples, labels, reader, self.kind)
        if skipped:
            lost = len(skipped)
            raise DataError(f"{reader} needs {', '.join(labels)} for every row; {lost} have none: prepare it again.")

    def with_reference(self, logps: Sequence[np.ndarray], mismatched: Sequence[np.ndarray] | None = None) -> Self:
        """The same dataset with the reference's log-probs as labels.

        Args:
            logps: of each example, one for each token that counts, completion after completion.
            mismatched: of the row that each example makes with its partner's completion, where it has a partner.
        """
        added = [{REF_LOGPS: own} for own in logps]
        if mismatched is not None:
            added = [{**own, MISMATCHED_REF_LOGPS: other} for own, other in zip(added, mismatched, strict=True)]
        other = copy.copy(self)
        other.examples = [
            replace(each, labels={**each.labels, **own}) for each, own in zip(self.examples, added, strict=True)
        ]
        return other

    def without_reference(self) -> Self:
        """The same dataset without the log-probs of a reference, which may be another run's."""
        if REF_LOGPS not in self.examples[0].labels:
            return self
        other = copy.copy(self)
        other.examples = [
            replace(each, labels={k: v for k, v in each.labels.items() if k not in (REF_LOGPS, MISMATCHED_REF_LOGPS)})
            for each in self.examples
        ]
        return other

    def padded_with(self, pad_token_id: int) -> Self:
        """The same dataset with another padding."""
        other = copy.copy(self)
        other.pad_token_id = pad_token_id
        return other

    @property
    def labels(self) -> np.ndarray | None:
        """``desirable`` of every row as bools, for `StepSampler(stratify=…)`; None for other kinds."""
        if self.kind != "labelled":
            return None
        return np.asarray([example.labels["desirable"] for example in self.examples], dtype=bool)

    def collate(self, examples: Sequence[TokenizedExample]) -> MicroBatch:
        """`collate` with this dataset's padding."""
        return collate(examples, pad_token_id=self.pad_token_id)


def draw_partners(prompts: Sequence[Any], seed: int) -> np.ndarray:
    """For each row the next row with another prompt, in a random cyclic order; int64, one per row.

    Raises:
        DataError: all rows share one prompt.
    """
    if len(set(prompts)) < 2:
        raise DataError(
            "all rows share one prompt, so no completion can be scored after another one; add other prompts."
        )
    order = np.random.default_rng(seed).permutation(len(prompts))
    partners = np.empty(len(prompts), dtype=np.int64)
    # Backwards, twice round: a neighbour with my prompt has already found the partner that is mine too.
    following = None
    for place in reversed(range(2 * len(order))):
        row, after = order[place % len(order)], order[(place + 1) % len(order)]
        following = after if prompts[after] != prompts[row] else following
        partners[row] = -1 if following is None else following
    return partners


def check_rows(source: Any, kind: str, settings: DataSettings, *, held_out: bool = False) -> None:
    """Convert the first rows, so that unusable data fails where there is no tokenizer yet.

    Raises:
        DataError: See `prepare_dataset`, as far as it can be known without a tokenizer.
    """
    rows = load_rows(source, Split(settings.split, held_out, settings.eval_split))
    with _naming(describe(source)):
        convert(to_examples(rows[:LOOKED_AT], settings, kind).examples, kind, settings.pairs)


def prepare_dataset(
    source: Any,
    kind: str,
    tokenizer: Any,
    settings: DataSettings | dict | None = None,
    *,
    context: int | None = None,
    mismatched: bool = False,
    seed: int | None = None,
    labels: Sequence[str] = (),
    reader: str = "the algorithm",
    singles: bool = False,
    held_out: bool = False,
) -> TokenizedDataset:
    """Load, understand, convert, tokenize and audit a dataset.

    Args:
        source: whatever `load_rows` reads.
        kind: pairs, labelled, ranked, demonstrations or prompts.
        tokenizer: a `PreTrainedTokenizerBase`.
        settings: how; a mapping of field names will do.
        context: the model's context in tokens, if known.
        mismatched: give every labelled row a completion of another prompt (KTO).
        seed: of those partners; default ``settings.seed``.
        labels: names of labels that every row must have, such as ``chosen_score``; a row without them is dropped.
        reader: who reads them, for messages.
        singles: keep rankings of a single completion, whose rating says something by itself.
        held_out: whether the data are for an evaluation, so that of a source with splits not the one that is trained on
            is read.

    Raises:
        DataError: a source that cannot be read, understood or converted, that lacks a label in every row, or that
            loses too many rows.
        UsageError: settings that cannot work with this model.
    """
    settings = DataSettings.of(settings)
    if kind not in KINDS:
        raise UsageError(f"there is no data kind {kind!r}.{did_you_mean(kind, KINDS)} It is one of {', '.join(KINDS)}.")
    max_length = _limit(settings, tokenizer, context)
    encoder = Encoder(tokenizer, settings)
    rows = load_rows(source, Split(settings.split, held_out, settings.eval_split))
    name = describe(source)
    with _naming(name):
        reading = to_examples(rows, settings, kind)
        examples, converted = convert(reading.examples, kind, settings.pairs)
    made = tokenize(examples, tokenizer, settings, max_length)
    with _naming(name):
        compared, alone = (made.examples, []) if singles else without_singles(made.examples, reader)
        kept, unlabelled = require_labels(compared, labels, reader, reading.format.kind)
    kept, unused = finish_labels(kept)
    read = len(examples) + made.added + len(reading.dropped)
    dropped = sorted([*reading.dropped, *made.dropped, *alone, *unlabelled], key=lambda skipped: skipped[0])
    audit = Audit(kind, read, len(kept), made.cut, dropped, max_length, made.lengths, made.left, made.control)
    with _naming(name):
        audit.check(settings.max_dropped)
    notes = [f"{Path(name).name if isinstance(source, (str, Path)) else name} read as {reading.format.name}"]
    notes += [converted] if converted else []
    notes += [*unused, *_notes(source, settings, tokenizer, examples), *_row_notes(examples, encoder, made)]
    notes += _label_notes(kept) if kind == "labelled" else []
    if settings.pairs != "all" and (reading.format.kind, kind) not in (("ranked", "pairs"), ("ranked", "labelled")):
        notes.append(f"data.pairs={settings.pairs!r} changes nothing here: no ranking is read as pairs")
    return TokenizedDataset(
        kind,
        kept,
        max_length,
        _pad_id(tokenizer),
        audit,
        (settings.seed if seed is None else seed) if mismatched else None,
        notes,
        encoder.stop_ids(),
    )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of the source in front of an error about its rows."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _limit(settings: DataSettings, tokenizer: Any, context: int | None) -> int:
    # A tokenizer without a known limit claims 10^30.
    claimed = getattr(tokenizer, "model_max_length", None)
    context = context or (claimed if claimed and claimed < 10**7 else None)
    if settings.max_length is None:
        return min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)
    if context is not None and settings.max_length > context:
        raise UsageError(
            f"data: max_length={settings.max_length} is more than the model's context of {context} tokens; lower it."
        )
    return settings.max_length


def _pad_id(tokenizer: Any) -> int:
    # Which id pads is of no consequence, because masks decide; EOS is in every vocabulary.
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _row_notes(examples: Sequence[Example], encoder: Encoder, made: Tokenized) -> list[str]:
    """Lines about what rows ask of the chat template."""
    notes = []
    if made.split:
        notes.append(
            f"{made.split} conversations read as {made.split + made.added} examples, one for each answer: the chat "
            "template writes an earlier answer otherwise than it was generated"
        )
    given = Counter(name for example in examples for name in _argument_names(example))
    used = {name: count for name, count in given.items() if encoder.renderer.reads(name)}
    for names, what in ((used, "is used"), (given.keys() - used, "is not read by the chat template, and not used")):
        notes += [f"chat_template_kwargs of {given[name]} rows: {name!r} {what}" for name in sorted(names)]
    return notes


def _argument_names(example: Example) -> list[str]:
    try:
        return list(row_arguments(example))
    except SkipRow:  # the row is dropped, and counted
        return []


_RARE = 0.2
"""A share of one label below which it is worth a line."""


def _label_notes(examples: Sequence[TokenizedExample]) -> list[str]:
    """Lines about the balance of labels."""
    desirable, total = sum(bool(example.labels["desirable"]) for example in examples), len(examples)
    if desirable in (0, total):
        word, against = ("desirable", "avoid") if desirable else ("undesirable", "write")
        return [
            f"warning: all rows are {word}, so nothing says what to {against}. If the label column was misread, "
            "correct it; to imitate answers that are all desirable, use sft"
        ]
    share = desirable / total
    note = f"labels: {desirable} desirable, {total - desirable} undesirable"
    rare = "desirable" if share < _RARE else "undesirable" if share > 1 - _RARE else ""
    return [note + (f"; only {min(share, 1 - share):.0%} of the rows are {rare}" if rare else "")]


def _notes(source: Any, settings: DataSettings, tokenizer: Any, examples: Sequence[Example]) -> list[str]:
    notes = []
    if settings.split != "train" and not has_splits(source):
        notes.append(
            f"split {settings.split!r} chooses nothing here: {describe(source)} has no splits, all rows are used"
        )
    chat = sum(not isinstance(example.prompt, str) for example in examples)
    if chat and not tokenizer.chat_template:
        notes.append(PLAIN_NOTE)
    if tokenizer.chat_template and chat < len(examples):
        notes.append(
            "prompts that are plain text are used as they are, without the chat template; rename the column to "
            "'instruction' (data.columns) to make user turns of them"
        )
    return notes
