"""What a run writes beside its weights, and what it resumes from."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from prefopt.algorithms import Algorithm
from prefopt.core.console import say
from prefopt.core.errors import UsageError
from prefopt.core.loss import State
from prefopt.core.version import VERSION
from prefopt.data import DataSettings, TokenizedDataset
from prefopt.models import RUN_FILE
from prefopt.models.fingerprint import fingerprint
from prefopt.training.manifest import (
    MANIFEST,
    UNFINISHED,
    changed_arguments,
    checkpoints_of,
    digest_of,
    flaw_of,
    newest_whole,
    refuse_another_run,
    seal,
)
from prefopt.training.metrics import Means

STATE_FILE = "objective_state.safetensors"
ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
)
"""Training arguments that a resumed run may change, and says so."""


def checkpoint_to_resume(
    given: str | Path | bool | None, output_dir: str, run: Mapping[str, Any] | None, *, anyway: bool = False
) -> Path | None:
    """The checkpoint that is named, or for True the newest whole one in the output folder; None for a fresh start.

    Args:
        given: The name, or True.
        output_dir: The output folder.
        run: What `identity_of` says of the run that resumes.
        anyway: Whether the checkpoint may be that of another run.

    Raises:
        UsageError: There is none, the named one is damaged, or another run wrote it.
    """
    if not given:
        return None
    folder = _whole_checkpoint(given, output_dir)
    if not anyway:
        refuse_another_run(folder, run)
    if changed := changed_arguments(folder, run):
        say(f"resuming with other arguments: {', '.join(changed)}.")
    return folder


def _whole_checkpoint(given: str | Path | bool, output_dir: str) -> Path:
    if given is not True:
        folder = Path(given)
        if not folder.is_dir():
            raise UsageError(f"the checkpoint {folder} does not exist.")
        if flaw := flaw_of(folder):
            if (folder / MANIFEST).is_file():
                raise UsageError(f"the checkpoint {folder} is damaged: {flaw}. Resume from another one.")
            say(f"the checkpoint {folder} has no {MANIFEST}, so nothing can be said about its being whole.")
        return folder
    folder, flawed = newest_whole(output_dir)
    for other, flaw in flawed.items():
        say(f"{other} is passed over: {flaw}.")
    if folder is None:
        why = ", none of its checkpoints is whole: name one to resume from it as it is" if flawed else ""
        raise UsageError(f"there is no checkpoint to resume from in {output_dir}{why}.")
    say(f"resuming from {folder}.")
    return folder


def prepare_folder(output_dir: str | Path, weights: Iterable[nn.Parameter], *, fresh: bool) -> None:
    """Make sure, before anything is trained, that checkpoints can be written.

    Args:
        output_dir: The folder of the checkpoints.
        weights: The weights that are trained.
        fresh: Whether the run begins anew; checkpoints of an earlier one then move out of its way.

    Raises:
        UsageError: The folder cannot be written to, or its disk has no room for a checkpoint.
    """
    if fresh:
        _set_aside(output_dir)
    _check_room(output_dir, weights)


def finish_checkpoint(
    target: Path, name: str, state: TrainerState, run: Mapping[str, Any], *, keep: int | None
) -> None:
    """Seal a checkpoint that has been written in `UNFINISHED`, give it its name, and delete those that are too many.

    Args:
        target: The folder of the checkpoints.
        name: The checkpoint's name.
        state: The state of transformers' trainer, which names the best checkpoint.
        run: What `identity_of` says of the run.
        keep: The number of checkpoints to keep; None for all.
    """
    written = target / UNFINISHED / name
    if state.best_model_checkpoint == str(written):
        state.best_model_checkpoint = str(target / name)
        state.save_to_json(str(written / TRAINER_STATE_NAME))
    seal(written, run)
    if (target / name).exists():  # a run that goes on from an earlier step than its last one
        shutil.rmtree(target / name)
    written.rename(target / name)
    (target / UNFINISHED).rmdir()
    rotate_checkpoints(
        str(target), save_total_limit=keep, best_model_checkpoint=state.best_model_checkpoint, use_mtime=True
    )


def _set_aside(output_dir: str | Path) -> None:
    """Move the checkpoints of an earlier run out of the way of a fresh start."""
    output_dir = Path(output_dir)
    shutil.rmtree(output_dir / UNFINISHED, ignore_errors=True)
    old = checkpoints_of(output_dir)
    if not old:
        return
    number = 1
    while (target := output_dir / f"replaced-{number}").exists():
        number += 1
    target.mkdir()
    for folder in old:
        folder.rename(target / folder.name)
    say(f"{output_dir} has checkpoints of an earlier run: they are now in {target}. To go on from them, resume.")


def _check_room(output_dir: str | Path, weights: Iterable[nn.Parameter]) -> None:
    """Refuse a folder that cannot be written to, or a disk without room for a checkpoint, before anything is trained.

    Raises:
        UsageError: With the folder and the remedy.
    """
    folder = Path(output_dir)
    probe = folder / "probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"prefopt")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UsageError(f"checkpoints cannot be written to {folder}: {error.strerror}. Name another folder.") from None
    # The weights in their dtype, and two moments of AdamW in float32.
    needed = sum(weight.numel() * (weight.element_size() + 8) for weight in weights if weight.requires_grad)
    if needed > free:
        raise UsageError(
            f"a checkpoint needs about {needed / 2**30:.1f} GiB, and the disk of {folder} has {free / 2**30:.1f} GiB "
            "left: make room, name another folder, or set save_strategy to no."
        )


def save_state(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write an objective's state, where it has one."""
    if state:
        save_file({key: value.contiguous() for key, value in state.items()}, folder / STATE_FILE)


def load_state(folder: Path, device: torch.device) -> State | None:
    """The objective's state of a checkpoint; None where it has none."""
    path = folder / STATE_FILE
    return load_file(path, device=str(device)) if path.is_file() else None


def save_log(folder: Path, rank: int, means: Means, loss: float, last_logged: int) -> None:
    """Write what a process has added up for the next line of the log.

    Args:
        folder: The checkpoint.
        rank: The number of the process.
        means: The metrics since the last line.
        loss: The sum of the losses since the last line.
        last_logged: The step of the last line.
    """
    state = {"means": means.state(), "loss": loss, "last_logged": last_logged}
    (folder / f"log-{rank}.json").write_text(json.dumps(state) + "\n")


def load_log(folder: Path, rank: int, means: Means, last_logged: int) -> tuple[float, int]:
    """What `save_log` wrote: fills ``means``, and returns the sum of the losses and the step of the last line."""
    path = folder / f"log-{rank}.json"
    if not path.is_file():
        return 0.0, last_logged
    state = json.loads(path.read_text())
    means.load(state["means"])
    return state["loss"], state["last_logged"]


def identity_of(
    algorithm: Algorithm, policy: nn.Module, args: TrainingArguments, dataset: TokenizedDataset | None, seed: int
) -> dict[str, Any]:
    """What a resumed run must have in common with the one that wrote a checkpoint, and what it should know of it.

    Args:
        algorithm: The algorithm.
        policy: The policy as it arrived, before the first step.
        args: The training arguments.
        dataset: The training data.
        seed: The seed of their order.
    """
    try:
        # The head of a reward model is drawn at random and then trained; the checkpoint brings it.
        base = fingerprint(policy, without=("score",) if algorithm.objective.needs.rewards else ())
    except UsageError:  # its weights are spread over processes, and none of them sees the whole
        base = None
    adapters = {name: config.to_dict() for name, config in getattr(policy, "peft_config", {}).items()}
    kept = ("peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "modules_to_save")
    return {
        "identity": {
            "algorithm": algorithm.name,
            "hyperparameter": algorithm.hyperparameters,
            "adapter": {
                name: {key: sorted(value) if isinstance(value := config.get(key), set) else value for key in kept}
                for name, config in adapters.items()
            },
            "base": base,
            "data": digest_of(dataset),
            "seed": seed,
        },
        "arguments": {key: getattr(args, key) for key in ARGUMENTS} | {"processes": args.world_size},
        "versions": {"prefopt": VERSION, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def write_record(
    folder: Path,
    algorithm: Algorithm,
    args: TrainingArguments,
    *,
    adapter: str | None,
    settings: DataSettings,
    dataset: TokenizedDataset | None,
    step: int,
) -> None:
    """Write what one needs to know about a saved model later.

    Args:
        folder: The folder of the model.
        algorithm: The algorithm that trained it.
        args: The training arguments.
        adapter: The kind of the adapter; None for all weights.
        settings: The settings by which rows were read and encoded.
        dataset: The data that it was trained on.
        step: The number of optimizer steps.
    """
    record: dict[str, Any] = {
        "prefopt": VERSION,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "algorithm": algorithm.name,
        "role": "reward model" if algorithm.objective.needs.rewards else "policy",
        "hyperparameters": algorithm.hyperparameters,
        "template_args": dict(settings.template_args),
        "prerendered": settings.prerendered,
        "adapter": adapter,
        "data": dataset.audit.lines() if dataset is not None else [],
        "step": step,
        "arguments": args.to_dict(),
    }
    (folder / RUN_FILE).write_text(json.dumps(record, indent=2, default=str) + "\n")
