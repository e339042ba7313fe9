"""What a run writes beside its weights, and what it resumes from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from prefopt.algorithms import Algorithm
from prefopt.core.errors import UsageError
from prefopt.core.loss import State
from prefopt.core.version import VERSION
from prefopt.data import DataSettings, TokenizedDataset
from prefopt.models.export import RUN_FILE

STATE_FILE = "objective_state.safetensors"


def checkpoint_to_resume(given: str | bool | None, output_dir: str) -> str | None:
    """The checkpoint that is named, or for True the newest one in the output folder; None for a fresh start.

    Raises:
        UsageError: there is none in the output folder.
    """
    if given is not True:
        return given or None
    folder = get_last_checkpoint(output_dir)
    if folder is None:
        raise UsageError(f"there is no checkpoint to resume from in {output_dir}.")
    return folder


def save_state(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write an objective's state, where it has one."""
    if state:
        save_file({key: value.contiguous() for key, value in state.items()}, folder / STATE_FILE)


def load_state(folder: str, device: torch.device) -> State | None:
    """The objective's state of a checkpoint; None where it has none."""
    path = Path(folder) / STATE_FILE
    return load_file(path, device=str(device)) if path.is_file() else None


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
        "adapter": adapter,
        "data": dataset.audit.lines() if dataset is not None else [],
        "step": step,
        "arguments": args.to_dict(),
    }
    (folder / RUN_FILE).write_text(json.dumps(record, indent=2, default=str) + "\n")
