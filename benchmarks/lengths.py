"""What padding, shared prompts and the head cost on preference data of real lengths.

    python benchmarks/lengths.py DATA...           # tokens only: exact, and the same on any hardware
    python benchmarks/lengths.py DATA... --time    # also steps of prefopt and TRL, about 50 minutes on two CPU cores

DATA are files of pairs that `prefopt train dpo` reads. They are tokenized by a byte-pair encoding with 8,000 tokens
that is trained on each file itself, so no tokenizer is downloaded; rows longer than ``--max-length`` are left out.

Positions per pair, in micro-batches of 1, 4 and 8 pairs in a shuffled order: chosen and rejected rows padded to the
longest of the batch (as TRL collates), the same without padding, and prefopt's flat sequence with the prompt once. Then
rows through the vocabulary head: all positions, or completion tokens alone. The gain of a LoRA step (hidden 512, 8
layers, vocabulary 8,000) is split by the arithmetic of FLOPs: 4N a position for the pass with gradients and 2N for the
reference, the head 4H and 2H a row.

Results go to ``benchmarks/results/lengths.json``.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import record
from contestants import Case, Pair, contestant
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefopt.data import DataSettings, TokenizedDataset, TokenizedExample, collate, prepare_dataset
from prefopt.data.read import load_rows
from prefopt.scoring.flat import Flat

HERE = Path(__file__).parent
CASE = Case(512, 8, 8_000, adapter=True)
BATCHES = (1, 4, 8)
# Rows of 2,048 tokens, 16 of them padded, take more than 20 GB without gradient checkpointing.
TIMED = (1, 4)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] + '\\n' + m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)


def trained_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A byte-pair encoding of the words of a file."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CASE.vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((json.dumps(row, ensure_ascii=False) for row in load_rows(str(path))), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=10**6
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def pairs_of(path: Path, max_length: int) -> TokenizedDataset:
    """The pairs of a file, without those that would be cut."""
    settings = DataSettings.of({"max_length": max_length})
    return prepare_dataset(str(path), "pairs", trained_tokenizer(path), settings)


def positions(examples: Sequence[TokenizedExample]) -> dict[str, int]:
    """What one micro-batch costs, in positions."""
    padded = collate(examples).rows
    return {
        "padded": padded.input_ids.numel(),
        "unpadded": int(padded.attention_mask.sum()),
        "flat": Flat.of(padded).input_ids.numel(),
        "completions": len(padded.layout.target),
    }


def gains(cost: dict[str, float]) -> dict[str, float]:
    """FLOPs of a LoRA step with everything padded and all logits, over those with one saving after the other."""
    body = sum(weight.numel() for weight in CASE.model().model.layers.parameters())
    head = CASE.vocabulary * CASE.hidden

    def flops(places: float, rows: float, reference: bool) -> float:
        return (6 if reference else 4) * (body * places + head * rows)

    plain = flops(cost["padded"], cost["padded"], True)
    return {
        "no padding": plain / flops(cost["unpadded"], cost["unpadded"], True),
        "and completion rows alone": plain / flops(cost["unpadded"], cost["completions"], True),
        "and the prompt once": plain / flops(cost["flat"], cost["completions"], True),
        "and the reference known": plain / flops(cost["flat"], cost["completions"], False),
    }


def batches_of(dataset: TokenizedDataset, size: int) -> list[list[TokenizedExample]]:
    order = np.random.default_rng(0).permutation(len(dataset))
    whole = len(order) // size * size
    return [[dataset[int(i)] for i in part] for part in order[:whole].reshape(-1, size)]


def counted(dataset: TokenizedDataset) -> list[dict]:
    rows = []
    for size in BATCHES:
        costs = [positions(batch) for batch in batches_of(dataset, size)]
        cost = {key: sum(each[key] for each in costs) / (len(costs) * size) for key in costs[0]}
        rows.append({"batch": size, **cost, "padded_over_flat": cost["padded"] / cost["flat"], "gains": gains(cost)})
    return rows


def timed(dataset: TokenizedDataset, pairs: int, rounds: int) -> list[dict]:
    """Seconds a pair, forward and backward, for both at several batch sizes, rounds interleaved."""
    ways = ("TRL", "prefopt", "TRL, cached", "prefopt, cached")
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: contestant(way, CASE, folder) for way in ways}
        work = {}
        for size in TIMED:
            chosen = batches_of(dataset, size)[: pairs // size]
            ids: list[list[Pair]] = [
                [(e.prompt.tolist(), e.completions[0].tolist(), e.completions[1].tolist()) for e in batch]
                for batch in chosen
            ]
            for way, run in runs.items():
                work[way, size] = [run.batch(batch) for batch in ids]
        seconds = dict.fromkeys(work, float("inf"))
        for _ in range(rounds):
            for (way, size), given in work.items():
                runs[way].model.zero_grad()
                began = time.perf_counter()
                for batch in given:
                    runs[way].share(batch)
                seconds[way, size] = min(seconds[way, size], (time.perf_counter() - began) / (len(given) * size))
    return [{"way": way, "batch": size, "seconds_per_pair": value} for (way, size), value in seconds.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="files of pairs")
    parser.add_argument("--max-length", type=int, default=2048, help="longer rows are left out, in tokens")
    parser.add_argument("--time", action="store_true", help="also time steps on the first file")
    parser.add_argument("--pairs", type=int, default=8, help="pairs that are timed")
    parser.add_argument("--rounds", type=int, default=5, help="of which the fastest counts")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "lengths.json")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    files, first = {}, None
    for path in chosen.data:
        dataset = pairs_of(path, chosen.max_length)
        first = first or dataset
        rows = counted(dataset)
        files[path.name] = {"pairs": len(dataset), "positions": rows}
        print(f"\n{path.name}: {len(dataset)} pairs; positions a pair")
        print(f"{'batch':>6}{'padded':>9}{'unpadded':>10}{'flat':>8}{'completions':>13}   padded/flat   gain of a step")
        for row in rows:
            steps = ", ".join(f"{name} {value:.2f}" for name, value in row["gains"].items())
            print(
                f"{row['batch']:6}{row['padded']:9.0f}{row['unpadded']:10.0f}{row['flat']:8.0f}"
                f"{row['completions']:13.0f}   {row['padded_over_flat']:11.2f}   {steps}"
            )
    timing = timed(first, chosen.pairs, chosen.rounds) if chosen.time else []
    for row in timing:
        print(f"{row['way']:18} batch {row['batch']}: {row['seconds_per_pair']:.3f} s a pair")
    setting = (
        f"byte-pair encoding of {CASE.vocabulary} tokens trained on each file, rows up to "
        f"{chosen.max_length} tokens; timed: hidden {CASE.hidden}, {CASE.layers} layers, vocabulary {CASE.vocabulary}, "
        f"LoRA r = 16, float32, {chosen.pairs} pairs of the first file, best of {chosen.rounds} interleaved rounds"
    )
    record.write(
        chosen.out,
        "python benchmarks/lengths.py DATA..." + (" --time" if chosen.time else ""),
        setting,
        "trl",
        files=files,
        times=timing,
    )


if __name__ == "__main__":
    main()
