"""What all containers share."""

from collections.abc import Mapping
from typing import Self

from torch import Tensor

from prefopt.core.batches.completions import Completions, map_tensors
from prefopt.core.errors import UsageError


class Batch:
    """Base of the containers below. Every batch is made of ``rows`` completions in one fixed order."""

    kind: str

    @classmethod
    def assemble(cls, rows: Completions, labels: Mapping[str, Tensor]) -> Self:
        """Build the container from scored rows in the order in which the data room lays them out."""
        raise NotImplementedError

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
