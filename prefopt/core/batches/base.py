"""What all containers share."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Self

from torch import Tensor

from prefopt.core.batches.completions import Completions, map_tensors
from prefopt.core.errors import UsageError
from prefopt.core.labels import LABELS


class Batch:
    """Base of the containers below. Every batch is made of ``rows`` completions in one fixed order.

    A field that is declared in `prefopt.core.labels` holds that label.
    """

    kind: str

    @classmethod
    def assemble(cls, rows: Completions, labels: Mapping[str, Tensor]) -> Self:
        """Build the container from scored rows, in the order of a `MicroBatch`, and whichever labels it has fields for.

        Raises:
            UsageError: A label is missing without which there is no such container.
        """
        return cls(completions=rows, **cls._own(labels))

    @classmethod
    def label_fields(cls) -> dict[str, bool]:
        """The labels that the container has fields for → whether it cannot be built without."""
        return {one.name: one.default is MISSING for one in fields(cls) if one.name in LABELS}

    @classmethod
    def _own(cls, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, required in cls.label_fields().items():
            if required and name not in labels:
                raise UsageError(f"a batch of {cls.kind} needs the label {name!r} ({LABELS[name].meaning}).")
        return {name: labels[name] for name in cls.label_fields() if name in labels}

    def counts(self) -> dict[str, int]:
        """How many of each unit that a `Term` may be averaged over, from lengths and labels alone."""
        raise NotImplementedError

    @property
    def rows(self) -> Completions:
        """All completions of the batch in layout order."""
        raise NotImplementedError

    @classmethod
    def offers(cls, kind: "type[Batch]") -> bool:
        """Whether `view` can read a batch of this class as ``kind``."""
        return issubclass(cls, kind) or hasattr(cls, f"as_{kind.kind}")

    def view(self, kind: "type[Batch]") -> "Batch":
        """This batch as another container, where the conversion loses nothing that the other needs."""
        if isinstance(self, kind):
            return self
        convert = getattr(self, f"as_{kind.kind}", None)
        if convert is None:
            raise UsageError(f"a batch of {self.kind} cannot be read as {kind.kind}.")
        return convert()

    def detach(self) -> Self:
        """The same batch without gradient."""
        return map_tensors(self, Tensor.detach)
