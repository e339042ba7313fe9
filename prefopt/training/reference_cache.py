"""The reference's log-probabilities on disk: scored once, for every run that has this reference and these tokens."""

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import numpy as np
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prefopt.core.console import say
from prefopt.core.errors import UsageError
from prefopt.data import TokenizedDataset, TokenizedExample
from prefopt.models import Reference
from prefopt.training.context import TrainingContext

FORMAT = "prefopt reference log-probs 1"
TOKENS = 8192
"""Padded tokens of a forward pass at the most; a longer row goes alone."""
CHECKED = 4
"""Rows of a file that are scored again before it is used."""
NOISE = 4.0
"""A file may differ from log-probs of now by so many times what rows together differ from rows alone (rms) ..."""
FLOOR = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 2e-4}
"""... or by so many nats per token, where that is less."""
HALF = 5e-3
"""The same under mixed precision: rows of one length may agree to the last bit, and others differ by roundings."""
KEY = 16

Score = Callable[[list[TokenizedExample]], list[np.ndarray]]
"""From rows of one completion each to the log-probs of its tokens that count."""


class ReferenceCache:
    """One file for each set of rows and each reference, in one folder.

    A row is a prompt with a completion and what of it counts. The name of a file is a hash of the reference (see
    `prefopt.models.fingerprint`), of the precision of its products, and of the rows, whatever their order: pairs and
    the labelled rows made of them, objectives, seeds and hyperparameters have one file.

    Args:
        folder: made where it is missing.
        reference: the fingerprint of the reference.
        precision: of mixed-precision training; ``"no"`` without.
        score: the reference's log-probs.
        everyones: from a list of this process to those of all.
        rank, world: number of this process and of all.
    """

    def __init__(
        self,
        folder: str | Path,
        reference: str,
        precision: str,
        score: Score,
        *,
        everyones: Callable[[list], list] = list,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.folder = Path(folder)
        self.reference, self.precision, self.score = reference, precision, score
        self.everyones, self.rank, self.world = everyones, rank, world
        self._filled: WeakSet[TokenizedDataset] = WeakSet()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UsageError(
                f"reference_cache={str(folder)!r} is a file: name a folder for the reference's log-probs."
            ) from None
        except OSError as error:
            raise UsageError(
                f"reference_cache={str(folder)!r} cannot be made: {error.strerror}: name a folder that can be written."
            ) from None

    @classmethod
    def of_run(cls, folder: str | Path, reference: Reference, context: TrainingContext, score: Score) -> Self:
        """The cache of a run, whose processes share the work."""
        return cls(
            folder,
            reference.fingerprint(context.policy),
            context.accelerator.mixed_precision,
            score,
            everyones=gather_object,
            rank=context.args.process_index,
            world=context.args.world_size,
        )

    def fill(self, dataset: TokenizedDataset) -> TokenizedDataset:
        """The same dataset with the reference's log-probs, read from disk or scored and written now."""
        rows = [_row(each, k) for each in dataset.examples for k in range(len(each.completions))]
        ends = np.cumsum([len(each.completions) for each in dataset.examples])[:-1]
        logps = self._logps(rows)
        by_example = [np.concatenate(logps[a:b]) for a, b in zip([0, *ends], [*ends, len(rows)], strict=True)]
        mismatched = None
        if dataset.partners is not None:
            mismatched = self._logps([_mismatched_row(dataset[i]) for i in range(len(dataset))])
        filled = dataset.with_reference(by_example, mismatched)
        self._filled.add(filled)
        return filled

    def fill_all(self, datasets: Any) -> Any:
        """The same for a dataset, for several by name, or for None."""
        if isinstance(datasets, dict):
            return {name: self.fill(one) for name, one in datasets.items()}
        return None if datasets is None else self.fill(datasets)

    def knows(self, dataset: Any) -> bool:
        """Whether this is a dataset that `fill` has given."""
        return isinstance(dataset, TokenizedDataset) and dataset in self._filled

    def _logps(self, rows: list[TokenizedExample]) -> list[np.ndarray]:
        keys = [_key(row) for row in rows]
        by_key = dict(zip(keys, rows, strict=True))
        unique = {key: by_key[key] for key in sorted(by_key)}
        path = self.folder / f"{self._name(unique)}.safetensors"
        if all(self.everyones([path.is_file()])):
            values = self._read(path, unique)
            self._check(path, unique, values)
            say(f"reference: log-probs of {len(unique)} rows read from {path}")
        else:
            values = self._make(path, unique)
        return [values[key] for key in keys]

    def _name(self, unique: dict[bytes, TokenizedExample]) -> str:
        start = f"{FORMAT} {self.reference} {self.precision} ".encode()
        return hashlib.blake2b(start + b"".join(unique), digest_size=KEY).hexdigest()

    # ---- making ------------------------------------------------------------------------------------------------

    def _make(self, path: Path, unique: dict[bytes, TokenizedExample]) -> dict[bytes, np.ndarray]:
        began = time.perf_counter()
        own: list[tuple[bytes, np.ndarray]] = []
        for batch in list(batches(unique))[self.rank :: self.world]:
            own += zip(batch, self.score([unique[key] for key in batch]), strict=True)
        found = dict(self.everyones(own))
        values = {key: found[key] for key in unique}
        if self.rank == 0:
            self._write(path, values)
        tokens = sum(map(len, values.values()))
        seconds = time.perf_counter() - began
        say(f"reference: log-probs of {len(unique)} rows ({tokens} tokens) scored in {seconds:.1f} s, kept in {path}")
        return values

    def _write(self, path: Path, values: dict[bytes, np.ndarray]) -> None:
        """Whole or not at all: a file that is being written has another name."""
        logps = np.concatenate(list(values.values()))
        tensors = {
            "logps": logps,
            "lengths": np.array([len(one) for one in values.values()], dtype=np.int64),
            "rows": np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, KEY).copy(),
        }
        header = {"format": FORMAT, "reference": self.reference, "precision": self.precision, "sum": _sum(logps)}
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(tensors, unfinished, metadata=header)
            os.replace(unfinished, path)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"the reference cache {path} cannot be written: {error}.") from None
        finally:
            unfinished.unlink(missing_ok=True)

    # ---- reading -----------------------------------------------------------------------------------------------

    def _read(self, path: Path, unique: dict[bytes, TokenizedExample]) -> dict[bytes, np.ndarray]:
        try:
            with safe_open(path, framework="np") as file:
                header = file.metadata() or {}
                logps, lengths, rows = (file.get_tensor(name) for name in ("logps", "lengths", "rows"))
        except (OSError, SafetensorError) as error:
            raise _damaged(path, " ".join(str(error).split())) from None
        if header.get("format") != FORMAT:
            raise _damaged(path, f"its format is {header.get('format')!r}, not {FORMAT!r}")
        if (header.get("reference"), header.get("precision")) != (self.reference, self.precision):
            raise _damaged(path, "it is of another reference")
        if rows.tobytes() != b"".join(unique):
            raise _damaged(path, "it is of other rows")
        if lengths.tolist() != [int(row.mask(0).sum()) for row in unique.values()] or len(logps) != lengths.sum():
            raise _damaged(path, "its lengths are not those of the rows")
        if header.get("sum") != _sum(logps):
            raise _damaged(path, "its numbers are not those that were written")
        return dict(zip(unique, np.split(logps, np.cumsum(lengths)[:-1]), strict=True))

    def _check(self, path: Path, unique: dict[bytes, TokenizedExample], values: dict[bytes, np.ndarray]) -> None:
        """Score a few rows again, of lengths between the shortest and the longest."""
        by_length = sorted(unique, key=lambda key: _length(unique[key]))
        keys = [by_length[(2 * k + 1) * len(by_length) // (2 * CHECKED)] for k in range(min(CHECKED, len(by_length)))]
        together = np.concatenate(self.score([unique[key] for key in keys]))
        alone = np.concatenate([self.score([unique[key]])[0] for key in keys])
        kept = np.concatenate([values[key] for key in keys])
        floor = FLOOR[together.dtype] if self.precision == "no" else HALF
        limit = NOISE * max(_rms(together - alone), floor)
        gap = _rms(kept - together)
        if not gap <= limit:
            raise UsageError(
                f"the reference cache {path} is not what the reference says now: log-probs of {len(keys)} rows differ "
                f"by {gap:.2g} nats per token (limit {limit:.2g}). Delete it, and it is made again."
            )


def batches(unique: dict[bytes, TokenizedExample]) -> Iterator[list[bytes]]:
    """Rows for one forward pass each: completions of a prompt side by side, like lengths together, longest first."""
    groups: dict[bytes, list[bytes]] = defaultdict(list)
    for key, row in unique.items():
        groups[row.prompt.tobytes()].append(key)
    batch: list[bytes] = []
    longest = 0
    for group in sorted(groups.values(), key=lambda keys: -max(_length(unique[key]) for key in keys)):
        for key in group:
            length = _length(unique[key])
            if batch and (len(batch) + 1) * max(longest, length) > TOKENS:
                yield batch
                batch, longest = [], 0
            batch.append(key)
            longest = max(longest, length)
    if batch:
        yield batch


def _row(example: TokenizedExample, number: int) -> TokenizedExample:
    return TokenizedExample(0, example.prompt, (example.completions[number],), (example.mask(number),))


def _mismatched_row(example: TokenizedExample) -> TokenizedExample:
    completion, mask = example.mismatched
    return TokenizedExample(0, example.prompt, (completion,), (mask,))


def _key(row: TokenizedExample) -> bytes:
    sizes = np.array([len(row.prompt), len(row.completions[0])], dtype=np.int64)
    parts = sizes, row.prompt.astype(np.int64), row.completions[0].astype(np.int64), row.mask(0).astype(bool)
    return hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=KEY).digest()


def _length(row: TokenizedExample) -> int:
    return len(row.prompt) + len(row.completions[0])


def _sum(logps: np.ndarray) -> str:
    return hashlib.blake2b(logps.tobytes(), digest_size=KEY).hexdigest()


def _rms(gaps: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(gaps, dtype=np.float64))))


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"the reference cache {path} is damaged: {why}. Delete it, and it is made again.")
