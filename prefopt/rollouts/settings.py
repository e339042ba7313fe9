"""How completions are sampled."""

from dataclasses import dataclass
from typing import Any, ClassVar

from prefopt.core.settings import Settings, parameter


def _check_strings(value: Any) -> str:
    """What is wrong with texts that end a completion, as the end of a sentence."""
    listed = isinstance(value, (list, tuple)) and all(isinstance(one, str) and one for one in value)
    return "" if value is None or listed else 'must be a list of texts, such as ["\\n\\n"].'


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(Settings):
    """How completions are sampled. The model's own generation config has no say in it."""

    name: ClassVar[str] = "generation"
    n: int = parameter(4, "completions per prompt", at_least=1)
    max_new_tokens: int = parameter(256, "tokens per completion at the most", at_least=1)
    temperature: float = parameter(1.0, "sampling temperature; 0 takes the most likely token", at_least=0)
    top_p: float = parameter(1.0, "smallest set of tokens with this total probability; 1 is off", above=0, at_most=1)
    top_k: int = parameter(0, "the k most likely tokens; 0 is off", at_least=0)
    min_new_tokens: int = parameter(0, "tokens before which no completion ends", at_least=0)
    stop_strings: list[str] | None = parameter(
        None, "texts that end a completion; they stay in it, and no end token is added", check=_check_strings
    )
    batch_size: int = parameter(64, "sequences generated at once", at_least=1)
