"""Bytes of tensors that are alive, operation by operation."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, from their first tensor to their last.

    Every operation of torch is seen, in forward and backward passes, on tensors with numbers as on those that only have
    a shape. What a kernel takes for itself while it runs, and returns before it ends, is not.

    Args:
        known: tensors that were there before and count 0.

    Attributes:
        live: bytes alive now.
        peak: the most so far, or since `restart`.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._take(tensor, counted=False)

    def restart(self) -> None:
        """Look for the peak from here on."""
        self.peak = self.live

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._take(tensor, counted=True)

    def __torch_dispatch__(
        self, operation: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._take(leaf, counted=True)
        return out

    def _take(self, tensor: Tensor, *, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counted else 0
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        # The object in Python lives as long as the storage does.
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
