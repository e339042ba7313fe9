"""The end of one process of several."""

import gc
import sys


def leave() -> None:
    """Take this process out of the group that a launcher put it in, and wait for the group's threads.

    A thread of the group that still lets go of a tensor while Python ends aborts the process after its work is done
    ("terminate called without an active exception"). The threads end with the last reference to the group, which a
    trainer's wrapper of the model holds: call this where none is left. Does nothing where there is no group.
    """
    distributed = sys.modules.get("torch.distributed")  # not imported, for help to stay fast
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # In this order: the last reference waits for the threads, and one inside the wrapper would wait while it holds
        # the interpreter's lock, which a thread needs for letting go of a tensor.
        gc.collect()
        distributed.destroy_process_group()


__all__ = ["leave"]
