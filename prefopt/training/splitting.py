"""Micro-batches that do not fit into memory go through a model in parts, and give the same sums."""

from collections.abc import Callable, Iterable

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn
from transformers import TrainingArguments

from prefopt.core.console import say
from prefopt.core.errors import OutOfMemory
from prefopt.core.micro_batch import MicroBatch
from prefopt.training.arguments import CHECKPOINTING

# What allocators say that do not raise torch.OutOfMemoryError, and what they raise: a kernel that cannot be loaded
# any more, and memory of the machine that is kept for copies from a card.
_ERRORS = (RuntimeError, torch.AcceleratorError)
_SAID = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")

Work = Callable[[MicroBatch, int, int], None]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch raises where a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return type(error) in _ERRORS and any(text in str(error) for text in _SAID)


class MicroBatchSplitter:
    """How many examples of a micro-batch go through a model at once: all, or fewer from when memory ran out.

    Losses are sums over examples divided by counts of the whole step, so parts give the gradient of the whole.

    Args:
        what: is done with them, for messages.
        whole: why micro-batches must stay whole; empty where they may be divided.
    """

    def __init__(self, what: str, whole: str = "") -> None:
        self.what, self.whole = what, whole
        self.most: int | None = None

    def each(self, batch: MicroBatch, work: Work, weights: Iterable[nn.Parameter] = ()) -> None:
        """Do some work on a micro-batch, in one or more parts that together hold every example once.

        Args:
            batch: from `collate`.
            work: called with a part, and with the numbers of its first example and of the one after its last. It
                must leave nothing behind but gradients before it is done.
            weights: those whose gradients it adds to.

        Raises:
            OutOfMemory: a single example does not fit, or the micro-batch must stay whole.
        """
        self._each(batch, 0, batch.num_examples, work, list(weights))

    def _each(self, batch: MicroBatch, start: int, end: int, work: Work, weights: list[nn.Parameter]) -> None:
        if self.most is not None and end - start > self.most:
            size = self.most
            for first in range(start, end, size):
                self._each(batch, first, min(first + size, end), work, weights)
            return
        before = [(weight.grad, _version(weight)) for weight in weights]
        all_of_it = end - start == batch.num_examples
        try:
            return work(batch if all_of_it else batch.part(start, end), start, end)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            if self.whole or end - start == 1:
                raise OutOfMemory(self._remedies(batch, start, end)) from error
        # The error is gone now, and with it all that its frames held.
        clear_device_cache(garbage_collection=True)
        self.most = -(-(end - start) // 2)
        say(
            f"{self.what}: out of memory with {_number(end - start)} at once; from here on {self.most} at once, added "
            "up, so that batches are as large as before."
        )
        # A weight gets the gradient of all examples in one piece, so one that has got it needs nothing more of them.
        done = [
            (weight, weight.grad)
            for weight, (grad, version) in zip(weights, before, strict=True)
            if weight.grad is not grad or _version(weight) != version
        ]
        for weight, _ in done:
            weight.grad = None
        del before
        self._each(batch, start, end, work, weights)
        for weight, grad in done:
            weight.grad = grad

    def _remedies(self, batch: MicroBatch, start: int, end: int) -> str:
        tokens = int(batch.rows.attention_mask.sum(dim=1).max())
        why = f", which cannot be divided because {self.whole}" if self.whole and end - start > 1 else ""
        return (
            f"{self.what}: out of memory with {_number(end - start)} of up to {tokens} tokens{why}. `prefopt plan` "
            "says what fits; what helps is a shorter data max_length, a smaller batch size per device, "
            "gradient_checkpointing=true, adapter='qlora'."
        )


def why_whole(args: TrainingArguments, name: str, *, coupled: bool, sharded: bool) -> str:
    """Why micro-batches of a run that do not fit into memory cannot be divided; empty where they can.

    Args:
        args: The training arguments.
        name: The algorithm's name.
        coupled: Whether its loss compares the examples of a micro-batch.
        sharded: Whether the model's weights are spread over processes.
    """
    if coupled:
        return f"{name} compares its examples"
    if args.world_size > 1 or sharded:
        return "all processes go through the same passes together"
    if getattr(args, CHECKPOINTING) and (getattr(args, f"{CHECKPOINTING}_kwargs") or {}).get("use_reentrant"):
        return "reentrant checkpointing adds gradients up piece by piece"
    return ""


def _number(examples: int) -> str:
    return "1 example" if examples == 1 else f"{examples} examples"


def _version(weight: nn.Parameter) -> int:
    """Of its gradient: it changes with every addition in place."""
    return -1 if weight.grad is None else weight.grad._version
