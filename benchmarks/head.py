"""The vocabulary head: tiles of tokens × vocabulary, against chunks of rows and against all logits at once.

    python benchmarks/head.py              # about 11 minutes on two CPU cores

From hidden states to log-probabilities of tokens and back to gradients, in float32, with a head that is frozen (LoRA)
and with one that learns. "all logits" is a log-softmax of them; "chunks" are rows in pieces of 2^25 logits through the
head's module, made again in the backward pass, which is how heads go that are more than a matrix; "tiles, made again"
is what a frozen head would cost without a gradient in the forward pass. Rounds are interleaved, minima are compared.
Memory is the peak of the resident set in one more run above what it was before, with weights and hidden states loaded.

Results go to ``benchmarks/results/head.json``.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import record
import torch
from torch import Tensor, nn
from torch.nn import functional

from prefopt.lab.measure import costing
from prefopt.scoring import Rows, tiles
from prefopt.scoring.head import AfterHead, LinearHead
from prefopt.scoring.score import CHUNK, values_of

HERE = Path(__file__).parent
ROWS, WIDTHS, VOCABULARIES = 2048, (256, 512), (8_000, 32_000, 128_000)
ALL, CHUNKS, TILES, AGAIN = "all logits", "chunks", "tiles", "tiles, made again"


class Case:
    """A head of one size, and rows before it."""

    def __init__(self, width: int, vocabulary: int, learns: bool, rows: int = ROWS) -> None:
        torch.manual_seed(0)
        self.head = nn.Linear(width, vocabulary, bias=False).requires_grad_(learns)
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


def memory(case: Case, way: str) -> float:
    """MB at the peak of one run above what there was before."""
    with costing() as cost:
        case.run(way)
    case.head.weight.grad = None
    return cost.added_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way, of which the fastest counts")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "head.json")
    chosen = parser.parse_args()
    table = []
    print(f"{'head':8}{'hidden':>8}{'vocabulary':>12}  {'way':20}{'seconds':>9}{'MB':>8}{'× time':>8}{'× memory':>10}")
    for learns, width, vocabulary in itertools.product((False, True), WIDTHS, VOCABULARIES):
        ways = [ALL, CHUNKS, TILES] if learns else [ALL, CHUNKS, AGAIN, TILES]
        case, seconds = Case(width, vocabulary, learns), dict.fromkeys(ways, float("inf"))
        for _ in range(chosen.rounds):
            for way in ways:
                seconds[way] = min(seconds[way], case.run(way))
        megabytes = {way: memory(case, way) for way in ways}
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
    setting = (
        f"{ROWS} rows, float32, forward and backward; best of {chosen.rounds} interleaved rounds; memory is "
        "the peak of the resident set above what it was with weights and hidden states"
    )
    record.write(chosen.out, "python benchmarks/head.py", setting, table=table)


if __name__ == "__main__":
    main()
