"""The generation config that is saved with a model: it ends turns where training did, and it can be saved."""

from collections.abc import Sequence
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel

from prefopt.core.errors import ModelError

FILE = "generation_config.json"


def finish_generation_config(model: PreTrainedModel, stop_ids: Sequence[int]) -> list[str]:
    """Let a model's generation config end at all tokens that end a completion, and see that it can be saved.

    Args:
        model: a transformers model, without adapters around it.
        stop_ids: EOS, and the end-of-turn token of the chat template.

    Returns:
        Lines to show to the user about what was changed.

    Raises:
        ModelError: the config contradicts itself, so transformers would refuse to save it.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return []
    lines = []
    known = config.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else list(known)
    if missing := [number for number in stop_ids if number not in known]:
        stops = [*known, *missing]
        config.eos_token_id = stops[0] if len(stops) == 1 else stops
        if known and len(stops) > 1:
            lines.append(f"the generation config ends completions at the tokens {stops}, as training does")
    if not _why_invalid(config):
        return lines
    # Published configs name a temperature and say do_sample=false; transformers saves such a config only as it was.
    config.do_sample = True
    if why := _why_invalid(config):
        raise ModelError(
            f"the generation config of this model could not be saved: {why}: change model.generation_config."
        )
    return [*lines, "the generation config has settings of sampling without do_sample, so do_sample=true is set in it"]


def write_generation_config(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the generation config into the folder of an adapter, for which peft writes none."""
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(str(folder))


def take_generation_config(model: PreTrainedModel, folder: str | Path) -> None:
    """Give a model the generation config in a folder, where there is one."""
    if (Path(folder) / FILE).is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    # A published one that contradicts itself can be saved as long as it is unchanged.
    finish_generation_config(model, ())


def _why_invalid(config: GenerationConfig) -> str:
    try:
        config.validate(strict=True)
    except ValueError as error:
        lines = [line.strip("- ") for line in str(error).splitlines() if line.strip()]
        return (lines[1] if len(lines) > 1 else lines[0]).rstrip(". ")
    return ""
