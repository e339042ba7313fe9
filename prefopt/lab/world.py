"""The lab, ready to use: a starting model that prefopt has pretrained itself, prompts, and preference data on disk.

Everything is made once from a seed and cached. The name of the cache folder holds a hash of the code and the numbers
that the world is made from, so a changed grammar or model never meets an old cache.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback

from prefopt.core.errors import DataError
from prefopt.lab.measure import sample
from prefopt.lab.model import build_model
from prefopt.lab.preferences import Judge, Row, demonstrations, make_pairs, split_prompts
from prefopt.lab.quiet import quiet
from prefopt.lab.reward import gold_reward, score
from prefopt.lab.tokenizer import build_tokenizer
from prefopt.lab.writer import corpus
from prefopt.training.trainer import Trainer

Report = Callable[[str, float], None]
"""``f(what, done)``: what is being done, and the share of it that is done, 0 to 1."""

CACHE_VARIABLE = "PREFOPT_CACHE"
# The modules whose code decides what the world looks like.
_SOURCES = ("lexicon", "grammar", "parse", "writer", "reward", "preferences", "tokenizer", "model", "world")
_FILES = ("pairs", "held_out_pairs", "prompts", "held_out_prompts")


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """The numbers that a world is made from.

    Attributes:
        steps: optimizer steps of pretraining.
        batch: reviews per step.
        learning_rate: its peak.
        prompts: training prompts.
        held_out_prompts: prompts that nothing is trained on.
        samples: completions of the starting model per prompt, of which the judge's best and worst make a pair.
        max_new_tokens: limit of these completions.
        temperature, flip: of the `Judge` that labels the pairs.
    """

    steps: int = 480
    batch: int = 32
    learning_rate: float = 4e-3
    prompts: int = 1280
    held_out_prompts: int = 320
    samples: int = 4
    max_new_tokens: int = 64
    temperature: float = 0.1
    flip: float = 0.05


@dataclass(frozen=True)
class Lab:
    """A prepared world.

    Attributes:
        folder: where it lies.
        pairs, held_out_pairs: rows ``{"prompt", "chosen", "rejected"}``, sampled from the starting model and labelled
            by a noisy judge.
        prompts, held_out_prompts: strings; no prompt is in both, and none that is held out was pretrained on.
    """

    folder: Path
    pairs: list[Row]
    held_out_pairs: list[Row]
    prompts: list[str]
    held_out_prompts: list[str]

    @property
    def model(self) -> Path:
        """Folder of the starting model and its tokenizer."""
        return self.folder / "model"

    @property
    def sft_rows(self) -> list[Row]:
        """Rows ``{"prompt", "completion"}``: the chosen completions, to imitate."""
        return demonstrations([row["prompt"] for row in self.pairs], [row["chosen"] for row in self.pairs])

    def reward(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The gold reward of each completion, in [0, 1]."""
        return gold_reward(prompts, completions)

    def explain(self, prompt: str, completion: str) -> dict[str, float]:
        """The components of the gold reward of one completion, each in [0, 1]."""
        return asdict(score(prompt, completion))


def prepare(
    cache: Path | str | None = None,
    *,
    seed: int = 0,
    settings: WorldSettings | None = None,
    progress: Report | None = None,
) -> Lab:
    """The lab, made on the first call (about two minutes on two CPU cores) and read from disk afterwards.

    Args:
        cache: folder that holds the cached worlds; by default ``$PREFOPT_CACHE/lab``, or ``~/.cache/prefopt/lab``.
        seed: of everything that is drawn.
        settings: by default `WorldSettings()`.
        progress: told what is being done and how far it is; by default a progress bar on standard error.

    Raises:
        DataError: the cached files cannot be read.
    """
    settings = settings or WorldSettings()
    folder = _cache_root(cache) / _key(settings, seed)
    if not folder.is_dir():
        with _reporting(progress) as report, quiet():
            _make(folder, settings, seed, report)
    return _read(folder)


def _cache_root(cache: Path | str | None) -> Path:
    if cache is not None:
        return Path(cache)
    base = os.environ.get(CACHE_VARIABLE)
    return (Path(base) if base else Path.home() / ".cache" / "prefopt") / "lab"


def _key(settings: WorldSettings, seed: int) -> str:
    """A name that changes with the code, the settings and the seed."""
    digest = hashlib.sha256(json.dumps([asdict(settings), seed], sort_keys=True).encode())
    for name in _SOURCES:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def _make(folder: Path, settings: WorldSettings, seed: int, report: Report) -> None:
    """Make a world beside its place and move it there whole, so that a half-made one is never read."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        train, held_out = split_prompts(settings.prompts, settings.held_out_prompts, seed)
        tokenizer = build_tokenizer()
        model = _pretrain(draft, tokenizer, frozenset(held_out), settings, seed, report)
        judge = Judge(temperature=settings.temperature, flip=settings.flip)
        rows: dict[str, list[Any]] = {"prompts": train, "held_out_prompts": held_out}
        prompts = train + held_out
        completions = _sample(model, tokenizer, prompts, settings, seed, lambda done: report("sampling", done))
        rows["pairs"] = make_pairs(train, completions[: len(train)], judge, seed)
        rows["held_out_pairs"] = make_pairs(held_out, completions[len(train) :], judge, seed + 1)
        for name in _FILES:
            (draft / f"{name}.json").write_text(json.dumps(rows[name], indent=0) + "\n", encoding="utf-8")
        try:
            draft.rename(folder)
        except OSError:
            # Another process was faster; its world is the same.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _pretrain(
    draft: Path,
    tokenizer: PreTrainedTokenizerBase,
    held_out: frozenset[str],
    settings: WorldSettings,
    seed: int,
    report: Report,
) -> Any:
    """Train a fresh model on the corpus with prefopt's own trainer, and save it."""
    rows = [
        {"prompt": brief.prompt, "completion": " " + text}
        for brief, text in corpus(settings.steps * settings.batch, seed)
        if brief.prompt not in held_out
    ]
    args = {
        "output_dir": str(draft / "trainer"),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 15,
        "adam_beta2": 0.99,
        "weight_decay": 0.01,
        "seed": seed,
        "logging_steps": max(1, settings.steps // 20),
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    model = build_model(tokenizer, seed)
    trainer = Trainer(model, "sft", rows, processing_class=tokenizer, args=args, callbacks=[_Reporter(report)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(draft / "model"))
    shutil.rmtree(draft / "trainer", ignore_errors=True)
    return trainer.policy


def _sample(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: WorldSettings,
    seed: int,
    report: Callable[[float], None],
) -> list[list[str]]:
    """Completions of the starting model, a few prompts at a time so that progress shows."""
    texts: list[list[str]] = []
    for start in range(0, len(prompts), 128):
        report(start / len(prompts))
        chosen = prompts[start : start + 128]
        options = {"k": settings.samples, "max_new_tokens": settings.max_new_tokens, "seed": seed + start}
        drawn = sample(model, tokenizer, chosen, _unscored, batch_size=len(chosen) * settings.samples, **options)
        texts += [[each.text for each in group] for group in drawn.groups]
    report(1.0)
    return texts


def _unscored(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [0.0] * len(completions)


def _read(folder: Path) -> Lab:
    try:
        return Lab(folder, **{name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in _FILES})
    except (OSError, ValueError) as error:
        raise DataError(
            f"the cached lab {folder} cannot be read ({error}); delete that folder and try again."
        ) from error


class _Reporter(TrainerCallback):
    """Tells how far pretraining is."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.report("pretraining", state.global_step / state.max_steps)


@contextmanager
def _reporting(progress: Report | None) -> Iterator[Report]:
    if progress is not None:
        yield progress
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks = {what: bars.add_task(f"starting model: {what}", total=1, start=False) for what in _STAGES}

        def report(what: str, done: float) -> None:
            if not bars.tasks[tasks[what]].started:
                bars.start_task(tasks[what])
            bars.update(tasks[what], completed=done)

        yield report


_STAGES = ("pretraining", "sampling")
