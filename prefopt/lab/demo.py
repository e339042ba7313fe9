"""``prefopt demo``: every algorithm from the same starting model, on the same data, with the same budget, compared.

The same budget means: as many optimizer steps, and in each step as many completions that the algorithm gets to see.
With 64 completions a step those are 32 pairs, 64 labelled completions, 64 demonstrations, or 16 prompts with 4 sampled
completions each. The algorithms that sample are told what is good by a reward model that is trained on the same pairs
first; none sees the gold reward. Everything else (schedule, optimizer, evaluation) is the same too; each algorithm
has its own learning rate and settings, from the sweep recorded in `prefopt.lab.rates`.
"""

import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from prefopt.algorithms import get_algorithm
from prefopt.core.console import results
from prefopt.core.errors import UsageError
from prefopt.core.version import VERSION
from prefopt.data import prepare_dataset
from prefopt.lab.measure import Cost, Estimate, Result, Samples, Yardstick, costing
from prefopt.lab.quiet import quiet
from prefopt.lab.rates import SETTINGS
from prefopt.lab.report import Comparison, Shown, write_report
from prefopt.models import ModelSettings, load_policy, load_tokenizer
from prefopt.training.trainer import Trainer

ALGORITHMS = ("sft", "dpo", "ipo", "kto", "orpo", "simpo", "rejection_sampling", "grpo", "ppo")
SHOWN_PROMPTS = 3


class Lab(Protocol):
    """What a world must offer; `prefopt.lab.world.prepare()` returns one.

    Attributes:
        model: folder of the starting model and its tokenizer.
        pairs, held_out_pairs: dicts with ``prompt``, ``chosen`` and ``rejected``, all strings.
        prompts, held_out_prompts: strings; the former are what online algorithms sample for.
    """

    model: str | Path
    pairs: Sequence[Mapping[str, Any]]
    held_out_pairs: Sequence[Mapping[str, Any]]
    prompts: Sequence[str]
    held_out_prompts: Sequence[str]

    def reward(self, prompts: Sequence[str], completions: Sequence[str]) -> Sequence[float]:
        """The gold reward of each completion, in [0, 1]."""
        ...

    def explain(self, prompt: str, completion: str) -> Mapping[str, float]:
        """The named components of the gold reward of one completion, each in [0, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every algorithm gets, and what is measured.

    Attributes:
        steps: optimizer steps.
        completions: completions seen per step, by any algorithm.
        n: completions sampled per prompt by an online algorithm.
        seeds: training seeds; each is a run of its own.
        prompts, k: held-out prompts that are measured, and samples for each.
        pairs: held-out pairs that are measured.
        max_new_tokens: limit of every sampled completion.
    """

    steps: int = 40
    completions: int = 64
    n: int = 4
    seeds: tuple[int, ...] = (0,)
    prompts: int = 200
    k: int = 2
    pairs: int = 300
    max_new_tokens: int = 64

    def examples(self, name: str) -> int:
        """Examples of the algorithm's own kind per step: as many as hold `completions` completions."""
        each = {"pairs": 2, "prompts": self.n}.get(get_algorithm(name).data_kind, 1)
        return max(1, self.completions // each)


def run_demo(out: Path = Path("prefopt-demo"), *, full: bool = False) -> Path:
    """Prepare the lab, train and measure every algorithm, print a table, and write the report.

    Args:
        out: folder for ``report.html``, ``reward-kl.svg``, ``results.json`` and the trained models.
        full: three training seeds instead of one, with intervals over them.

    Returns:
        The path of the report.
    """
    from prefopt.lab.rates import RATES
    from prefopt.lab.world import prepare

    began = time.perf_counter()
    budget = Budget(seeds=(0, 1, 2) if full else (0,))
    lab = prepare()
    prepared = time.perf_counter() - began
    with quiet():
        comparison = compare(lab, out, rates=RATES, budget=budget)
    path = write_report(comparison, out)
    print_table(comparison)
    total = time.perf_counter() - began
    results().print(
        f"\n{total:.0f} s in total, {prepared:.0f} s of them for the starting model and its data.\n"
        f"Report: {path}\nModels: {out / 'models'}  (prefopt generate --model {out / 'models' / ALGORITHMS[1]})",
        soft_wrap=True,
    )
    return path


def compare(
    lab: Lab,
    out: Path,
    *,
    rates: Mapping[str, float],
    budget: Budget | None = None,
    algorithms: Sequence[str] = ALGORITHMS,
) -> Comparison:
    """Train and measure algorithms in a lab.

    Args:
        lab: see `Lab`.
        out: the models of the first seed are saved to ``out/models/NAME``.
        rates: learning rate of each algorithm.
        budget: what each of them gets.
        algorithms: their names.
    """
    for name in [*algorithms, "reward"]:
        if name not in rates:
            raise UsageError(f"rates: there is no learning rate for {name}; add one (its sweep says which).")
    budget = budget or Budget()
    yardstick = make_yardstick(lab, budget)
    results, curves, samples = [], {}, {}
    proxies = train_reward_models(lab, out, budget, rates["reward"], algorithms)
    with _progress(algorithms, len(budget.seeds) * budget.steps, out=Console(stderr=True)) as bar:
        for name in algorithms:
            runs, costs = [], []
            for seed in budget.seeds:
                trainer, cost = train(lab, name, budget, rates[name], seed, bar(name), reward=proxies.get(seed))
                bar(name).note("measuring")
                measured, drawn = yardstick.measure(trainer.policy, trainer.objective)
                runs, costs = [*runs, measured], [*costs, cost]
                if seed == budget.seeds[0]:
                    trainer.save_model(str(out / "models" / name))
                    curves[name], samples[name] = _curve(trainer), drawn
                del trainer
            results.append(Result.of(name, runs, costs))
            bar(name).note(f"gold reward {results[-1].reward.mean:.3f}")
    start = Result.of("start", [yardstick.of_start()])
    shown = _shown(lab, {"start": yardstick.start_samples, **samples})
    return Comparison(start, tuple(results), curves, shown, facts(lab, budget, rates, algorithms))


def make_yardstick(lab: Lab, budget: Budget) -> Yardstick:
    """The measure of this lab: its starting model, held-out prompts and pairs, and gold reward."""
    tokenizer = load_tokenizer(lab.model)
    start = load_policy(lab.model, ModelSettings()).eval()
    context = start.config.max_position_embeddings
    return Yardstick(
        start=start,
        tokenizer=tokenizer,
        prompts=list(lab.held_out_prompts[: budget.prompts]),
        pairs=prepare_dataset(
            [dict(row) for row in lab.held_out_pairs[: budget.pairs]], "pairs", tokenizer, context=context
        ),
        reward=lab.reward,
        k=budget.k,
        max_new_tokens=budget.max_new_tokens,
    )


def train_reward_models(lab: Lab, out: Path, budget: Budget, rate: float, algorithms: Sequence[str]) -> dict[int, Path]:
    """A reward model for each training seed, from the pairs; none where no algorithm asks for one."""
    if not any(get_algorithm(name).online for name in algorithms):
        return {}
    folders = {}
    for seed in budget.seeds:
        folders[seed] = out / "models" / f"reward-{seed}"
        trainer, _ = train(lab, "reward", budget, rate, seed)
        trainer.save_model(str(folders[seed]))
    return folders


def train(
    lab: Lab,
    name: str,
    budget: Budget,
    rate: float,
    seed: int,
    *callbacks: TrainerCallback,
    reward: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Trainer, Cost]:
    """Train one algorithm from the starting model; the cost is that of `Trainer.train` with its set-up.

    Args:
        lab: see `Lab`.
        name: of the algorithm.
        budget: what it gets.
        rate: learning rate.
        seed: of the run.
        callbacks: of the trainer.
        reward: what tells an online algorithm what is good.
        settings: hyperparameters of its own instead of those of `prefopt.lab.rates`.
    """
    algorithm = get_algorithm(name, **(SETTINGS.get(name, {}) if settings is None else settings))
    online: dict[str, Any] = {}
    if algorithm.online:
        batch = budget.completions * algorithm.schedule.minibatches
        generation = {"n": budget.n, "max_new_tokens": budget.max_new_tokens, "batch_size": batch}
        online = {"reward": reward if callable(reward) else str(reward), "generation": generation}
    rows = [{"prompt": prompt} for prompt in lab.prompts] if algorithm.online else [dict(row) for row in lab.pairs]
    folder = tempfile.mkdtemp(prefix="prefopt-demo-")
    args = {
        "output_dir": folder,
        "learning_rate": rate,
        "max_steps": budget.steps,
        "per_device_train_batch_size": budget.examples(name),
        "gradient_accumulation_steps": 1,
        "seed": seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    try:
        with costing() as cost:
            trainer = Trainer(str(lab.model), algorithm, rows, args=args, callbacks=callbacks, **online)
            # Without tqdm, transformers would print every log line.
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return trainer, cost


def _curve(trainer: Trainer) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def _shown(lab: Lab, samples: Mapping[str, Samples]) -> tuple[Shown, ...]:
    """The first sample of each policy for the first prompts, whatever it is."""
    shown = []
    for i, prompt in enumerate(samples["start"].prompts[:SHOWN_PROMPTS]):
        for name, drawn in samples.items():
            text = drawn.groups[i][0].text
            parts = {key: float(value) for key, value in lab.explain(prompt, text).items()}
            shown.append(Shown(prompt, name, text, float(drawn.rewards[i, 0]), parts))
    return tuple(shown)


def facts(lab: Lab, budget: Budget, rates: Mapping[str, float], algorithms: Sequence[str]) -> dict[str, str]:
    """What one needs to know to judge and to repeat the comparison."""
    kinds = {"pairs": "pairs", "labelled": "labelled completions", "demonstrations": "demonstrations"}
    kinds["prompts"] = f"prompts × {budget.n} samples"
    each = [f"{name}: {budget.examples(name)} {kinds[get_algorithm(name).data_kind]}" for name in algorithms]
    seeds = ", ".join(map(str, budget.seeds))
    settings = [f"{name} {key} {value}" for name in algorithms for key, value in SETTINGS.get(name, {}).items()]
    return {
        "Budget": f"{budget.steps} optimizer steps for every algorithm, {budget.completions} completions seen per step",
        "A step is": "; ".join(each),
        "Data": f"{len(lab.pairs):,} preference pairs; {len(lab.prompts):,} prompts for the online algorithms",
        "Measured on": f"{min(budget.prompts, len(lab.held_out_prompts))} held-out prompts with {budget.k} samples "
        f"each at temperature 1, and {min(budget.pairs, len(lab.held_out_pairs))} held-out pairs",
        "Learning rates": ", ".join(f"{name} {rates[name]:g}" for name in [*algorithms, "reward"]),
        "Settings": ", ".join(settings) or "the defaults",
        "Training seeds": f"{seeds}; sampling seeds 0 (start) and 1 (trained)",
        "Versions": f"prefopt {VERSION}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        "Hardware": f"{torch.get_num_threads()} CPU threads, {platform.machine()}, {platform.system()}",
        "Date": date.today().isoformat(),
        "Repeat with": "prefopt demo --full" if len(budget.seeds) > 1 else "prefopt demo",
    }


class _Bar(TrainerCallback):
    """Moves an algorithm's progress bar, one optimizer step at a time."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self.progress, self.task = progress, task

    def note(self, text: str) -> None:
        self.progress.update(self.task, note=text)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.note("training")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.progress.advance(self.task)


@contextmanager
def _progress(algorithms: Sequence[str], steps: int, out: Console) -> Iterator[Callable[[str], _Bar]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:>3.0f}/{task.total:.0f} steps"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out) as progress:
        bars: dict[str, _Bar] = {}
        for name in algorithms:
            bars[name] = _Bar(progress, progress.add_task(name, total=steps, start=False, note=""))

        def bar(name: str) -> _Bar:
            if not progress.tasks[bars[name].task].started:
                progress.start_task(bars[name].task)
            return bars[name]

        yield bar


def print_table(comparison: Comparison, out: Console | None = None) -> None:
    """One row for each algorithm; with several seeds a second one with the intervals over them."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("algorithm", no_wrap=True)
    for heading in ("gold reward", "win %", "KL", "acc. %", "tokens", "s", "MB", "+MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in (comparison.start, *comparison.results):
        cost = result.cost
        table.add_row(
            result.name,
            _plus_minus(result.reward, 3),
            _plus_minus(result.win_rate, 0, 100),
            _plus_minus(result.kl, 1),
            _plus_minus(result.accuracy, 0, 100),
            f"{result.length.mean:.1f}",
            *([f"{cost.seconds:.0f}", f"{cost.peak_mb:.0f}", f"{cost.added_mb:.0f}"] if cost else ["-"] * 3),
        )
        if result.seeds > 1:
            parts = [(result.reward, 3, 1), (result.win_rate, 0, 100), (result.kl, 1, 1), (result.accuracy, 0, 100)]
            over = [_plus_minus(value, digits, factor, seeds=True) for value, digits, factor in parts]
            table.add_row(f"  over {result.seeds} seeds", *over, style="dim")
    out = out or results()
    out.print(table)
    out.print(
        "±: half of a 95 % t-interval over held-out prompts (acc.: pairs). win: rate against the start. KL: to the "
        "start, nats per completion. acc.: pairs that the implicit reward orders rightly. MB: peak memory of the "
        "process in training, and what training added.",
        style="dim",
        highlight=False,
    )


def _plus_minus(value: Estimate | None, digits: int, factor: float = 1, *, seeds: bool = False) -> str:
    if value is None:
        return "-"
    low, high = (value.seed_low, value.seed_high) if seeds else (value.low, value.high)
    mean = "" if seeds else f"{factor * value.mean:.{digits}f} "
    return f"{mean}±{factor * (high - low) / 2:.{digits}f}"
