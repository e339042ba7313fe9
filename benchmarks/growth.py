"""How the cost of scoring grows: completions per prompt, share of the prompt, vocabulary and context.

    python benchmarks/growth.py              # about 12 minutes on two CPU cores

Forward and backward of a full fine-tune (hidden 256, 4 layers, float32) from micro-batch to log-probabilities, three
ways: all logits of padded rows ("plain"), prefopt with every row by itself ("rows"), and prefopt as it is ("shared").
One quantity varies at a time. Rounds are interleaved and the fastest counts; memory is the peak of the resident set in
one step above what it was before. Beside them stands the arithmetic: 6 FLOPs for every weight of the body and position,
6 for every weight of the head and row (8 where the head's tiles are computed again), 12 h for each score of attention.

Results go to ``benchmarks/results/growth.json``, the picture to ``docs/growth.svg``.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import record
import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.core.micro_batch import PaddedRows
from prefopt.lab.charts import COLOURS, MARKERS, bare, standalone
from prefopt.lab.measure import costing
from prefopt.scoring import score, share_prompts
from prefopt.scoring.flat import Flat

HERE = Path(__file__).parent
HIDDEN, LAYERS = 256, 4
WAYS = ("plain", "rows", "shared")


@dataclass(frozen=True)
class Point:
    """A micro-batch: prompts with some completions each, all of one length."""

    prompts: int
    completions: int
    prompt: int
    completion: int
    vocabulary: int = 8_000

    def batch(self) -> PaddedRows:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randint(3, self.vocabulary, shape, generator=generator)

        rows = self.prompts * self.completions
        prompts = draw(self.prompts, self.prompt).repeat_interleave(self.completions, dim=0)
        ids = torch.cat([prompts, draw(rows, self.completion)], dim=1)
        counts = (torch.arange(ids.shape[1]) >= self.prompt).expand(ids.shape)
        return PaddedRows(input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=counts)


SWEEPS: dict[str, tuple[str, dict[float, Point]]] = {
    "completions": (
        "completions per prompt",
        {g: Point(2, g, 384, 128) for g in (2, 4, 8, 16)},
    ),
    "share": (
        "prompt's share of a row",
        {p: Point(4, 2, max(1, round(512 * p)), 512 - max(1, round(512 * p))) for p in (0.0, 0.25, 0.5, 0.75, 0.95)},
    ),
    "vocabulary": (
        "vocabulary, thousands",
        {v / 1000: Point(4, 2, 384, 128, v) for v in (8_000, 32_000, 64_000, 128_000, 256_000)},
    ),
    "context": (
        "tokens of a row",
        {t: Point(1, 2, t // 2, t // 2) for t in (256, 1024, 2048, 4096, 8192)},
    ),
}


def model_of(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        num_key_value_heads=HIDDEN // 64,
        max_position_embeddings=8192,
    )
    return LlamaForCausalLM(config).train()


def step(model: LlamaForCausalLM, batch: PaddedRows, way: str) -> None:
    """Forward and backward of a sum of log-probs."""
    if way == "plain":
        logps = model(**batch.inputs, use_cache=False).logits[:, :-1].log_softmax(dim=-1)
        values = logps.gather(2, batch.input_ids[:, 1:, None])[batch.completion_mask[:, 1:]]
    else:
        values = score(model, batch)["logps"]
    values.sum().backward()
    model.zero_grad()


def flops(model: LlamaForCausalLM, point: Point, way: str) -> float:
    """By arithmetic, of the forward and backward pass."""
    body = sum(weight.numel() for weight in model.model.layers.parameters())
    batch = point.batch()
    length = point.prompt + point.completion
    rows, counted = point.prompts * point.completions, point.prompts * point.completions * point.completion
    places, scores = rows * length, rows * length**2 / 2
    if way == "shared":
        places = Flat.of(batch).input_ids.numel()
        further = (point.completions - 1) * point.completion * (point.prompt + point.completion / 2)
        scores = point.prompts * (length**2 / 2 + further)
    head = model.lm_head.weight.numel() * (6 * places if way == "plain" else 8 * counted)
    return 6 * body * places + head + 12 * HIDDEN * LAYERS * scores


def measured(point: Point, rounds: int) -> dict[str, dict[str, float]]:
    batch = point.batch()
    models = {way: model_of(point.vocabulary) for way in WAYS}
    share_prompts(models["rows"], on=False)
    seconds = dict.fromkeys(WAYS, float("inf"))
    for number in range(rounds + 1):
        for way in WAYS:
            began = time.perf_counter()
            step(models[way], batch, way)
            if number:
                # The first round warms up; shared prompts are compared with single rows there.
                seconds[way] = min(seconds[way], time.perf_counter() - began)
    found = {}
    for way in WAYS:
        with costing() as cost:
            step(models[way], batch, way)
        found[way] = {"seconds": seconds[way], "mb": cost.added_mb, "flops": flops(models[way], point, way)}
    return found


def picture(sweeps: dict[str, list[dict]]) -> Figure:
    """Seconds and memory against each quantity; the arithmetic, scaled to the plain way's first point, dashed."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    for column, (name, rows) in enumerate(sweeps.items()):
        for line, (key, label) in enumerate((("seconds", "seconds"), ("mb", "memory, MB"))):
            axes = figure.add_subplot(2, len(sweeps), line * len(sweeps) + column + 1)
            bare(axes)
            x = [row["x"] for row in rows]
            for i, way in enumerate(WAYS):
                y = [row["ways"][way][key] for row in rows]
                axes.plot(x, y, marker=MARKERS[i], color=COLOURS[i], linewidth=1.4, markersize=4, label=way)
                if key == "seconds":
                    per_flop = rows[0]["ways"]["plain"]["seconds"] / rows[0]["ways"]["plain"]["flops"]
                    work = [row["ways"][way]["flops"] * per_flop for row in rows]
                    axes.plot(x, work, color=COLOURS[i], linewidth=0.9, linestyle=(0, (3, 3)))
            axes.set_ylim(bottom=0)
            if line == 1:
                axes.set_xlabel(SWEEPS[name][0])
            if column == 0:
                axes.set_ylabel(label)
            if column == line == 0:
                axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way, of which the fastest counts")
    parser.add_argument("--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="quantities to vary")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "growth.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "growth.svg")
    chosen = parser.parse_args()
    sweeps: dict[str, list[dict]] = {}
    for name in chosen.only:
        label, points = SWEEPS[name]
        print(
            f"\n{label:26}" + "".join(f"{way:>10} s{'MB':>8}" for way in WAYS) + "   plain / shared: time, arithmetic"
        )
        sweeps[name] = []
        for x, point in points.items():
            ways = measured(point, chosen.rounds)
            sweeps[name].append({"x": x, "ways": ways})
            gain = {key: ways["plain"][key] / ways["shared"][key] for key in ("seconds", "flops")}
            cells = "".join(f"{ways[way]['seconds']:12.2f}{ways[way]['mb']:8.0f}" for way in WAYS)
            print(f"{x:<26g}{cells}   {gain['seconds']:.2f}, {gain['flops']:.2f}", flush=True)
    setting = (
        f"hidden {HIDDEN}, {LAYERS} layers, full fine-tune, float32; forward and backward; best of "
        f"{chosen.rounds} interleaved rounds; memory is the peak of the resident set above what it was before"
    )
    record.write(chosen.out, "python benchmarks/growth.py", setting, sweeps=sweeps)
    what = "Seconds and memory of scoring against completions per prompt, prompt share, vocabulary and context."
    chosen.picture.write_text(standalone(picture(sweeps), what), encoding="utf-8")
    print(chosen.picture)


if __name__ == "__main__":
    main()
