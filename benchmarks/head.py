"""The vocabulary head: tiles of tokens × vocabulary, against chunks of rows and against all logits at once.

    python benchmarks/head.py              # about 8 minutes on two CPU cores

From hidden states to log-probabilities of tokens and back to gradients, in float32, with a head that is frozen (LoRA)
and with one that learns. "all logits" is a log-softmax of them; "chunks" are rows in pieces of 2^25 logits through the
head's module, made again in the backward pass, which is how heads go that are more than a matrix; "tiles, made again"
is what a frozen head would cost without a gradient in the forward pass. Rounds are interleaved, minima are compared.
Memory is what a fresh process needs at its peak above what it had with weights and hidden states loaded (resident set).

Results go to ``benchmarks/results/head.json``.
"""

import argparse
import itertools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from prefopt import __version__
from prefopt.lab.measure import costing
from prefopt.scoring import Rows, tiles
from prefopt.scoring.head import AfterHead, LinearHead
from prefopt.scoring.score import CHUNK, values_of

HERE = Path(__file__).parent
ROWS, WIDTHS, VOCABULARIES = 2048, (256, 512), (8_000, 32_000, 128_000)
ALL, CHUNKS, TILES, AGAIN = "all logits", "chunks", "tiles", "tiles, made again"


class Case:
    """A head of one size, and rows before it."""

    def __init__(self, width: int, vocabulary: int, learns: int, rows: int = ROWS) -> None:
        torch.manual_seed(0)
        self.head = nn.Linear(width, vocabulary, bias=False).requires_grad_(bool(learns))
        self.hidden = torch.randn(rows, width)
        self.target = torch.randint(0, vocabulary, (rows,))

    def all_logits(self, hidden: Tensor) -> Tensor:
        logits = functional.linear(hidden, self.head.weight)
        return logits.gather(1, self.target[:, None])[:, 0] - logits.logsumexp(1)

    def through(self, hidden: Tensor, head: LinearHead | None) -> Tensor:
        size = max(1, CHUNK // self.head.out_features)
        return values_of(Rows(hidden, self.head, size, hidden, head), self.target)["logps"]

    def run(self, way: str) -> float:
        """Seconds of one forward and backward pass."""
        hidden = self.hidden.detach().requires_grad_()
        self.head.weight.grad = None
        matrix = LinearHead(self.head.weight, None, torch.float32, AfterHead())
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            ALL: self.all_logits,
            CHUNKS: lambda hidden: self.through(hidden, None),
            TILES: lambda hidden: self.through(hidden, matrix),
            AGAIN: lambda hidden: self.through(hidden, matrix),
        }
        ahead = tiles._ahead
        if way == AGAIN:
            tiles._ahead = lambda *_: False
        try:
            began = time.perf_counter()
            ways[way](hidden).sum().backward()
            return time.perf_counter() - began
        finally:
            tiles._ahead = ahead


def memory(way: str, *case: int) -> float:
    """MB above the loaded case at the peak of one run, in a process of its own."""
    command = [sys.executable, __file__, "--only", way, *map(str, case)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs=4, help="used by this script itself")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "head.json")
    chosen = parser.parse_args()
    if chosen.only:
        way, *sizes = chosen.only
        case = Case(*map(int, sizes))
        # What any backward pass needs, threads and libraries, is there before.
        Case(8, 8, True, 8).run(way)
        with costing() as cost:
            case.run(way)
        print(cost.added_mb)
        return
    table = []
    print(f"{'head':8}{'hidden':>8}{'vocabulary':>12}  {'way':20}{'seconds':>9}{'MB':>8}{'× time':>8}{'× memory':>10}")
    for learns, width, vocabulary in itertools.product((False, True), WIDTHS, VOCABULARIES):
        ways = [ALL, CHUNKS, TILES] if learns else [ALL, CHUNKS, AGAIN, TILES]
        case, seconds = Case(width, vocabulary, learns), dict.fromkeys(ways, float("inf"))
        for _ in range(chosen.rounds):
            for way in ways:
                seconds[way] = min(seconds[way], case.run(way))
        del case
        megabytes = {way: memory(way, width, vocabulary, int(learns)) for way in ways}
        for way in ways:
            row = {
                "head": "learns" if learns else "frozen",
                "hidden": width,
                "vocabulary": vocabulary,
                "way": way,
                "seconds": seconds[way],
                "megabytes": megabytes[way],
                "times_faster": seconds[ALL] / seconds[way],
                "times_less_memory": megabytes[ALL] / megabytes[way],
            }
            table.append(row)
            print(
                f"{row['head']:8}{width:8}{vocabulary:12}  {way:20}{row['seconds']:9.3f}{row['megabytes']:8.0f}"
                f"{row['times_faster']:8.2f}{row['times_less_memory']:10.1f}",
                flush=True,
            )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout
    report = {
        "command": "python benchmarks/head.py",
        "setting": f"{ROWS} rows, float32, forward and backward; best of {chosen.rounds} interleaved rounds; memory is "
        "the peak of the resident set of a fresh process above weights and hidden states",
        "versions": f"prefopt {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
        "commit": commit.strip(),
        "table": table,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
