"""How a process of several ends, at the worst moment for it."""

import contextlib
import time
from pathlib import Path

import torch
from accelerate import PartialState

from prefopt.cli.processes import leave


def leave_early() -> None:
    """Leave with a sum under way that the second process joins later, and with the group's threads ended.

    The sum's tensor belongs to the group alone: the thread that lets go of it needs the interpreter's lock.
    A thread that is there when a process ends aborts it now and then.
    """
    if PartialState().num_processes > 1:
        time.sleep(2 * PartialState().process_index)
        torch.distributed.all_reduce(torch.ones(1), async_op=True)
    leave()
    patience = time.monotonic() + 5  # the system lists a thread for a moment after its end
    while _group_threads() and time.monotonic() < patience:
        time.sleep(0.01)
    assert not _group_threads()


def _group_threads() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # ended between the listing and the look
            names.append((task / "comm").read_text())
    return [name for name in names if "gloo" in name]
