"""Sampling completions from a model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from prefopt.errors import UsageError, did_you_mean
from prefopt.objective import check_parameter, parameter


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How completions are sampled."""

    n: int = parameter(4, "completions per prompt", at_least=1)
    max_new_tokens: int = parameter(256, "tokens per completion at the most", at_least=1)
    temperature: float = parameter(1.0, "sampling temperature; 0 takes the most likely token", at_least=0)
    top_p: float = parameter(1.0, "smallest set of tokens with this total probability; 1 is off", above=0, at_most=1)
    top_k: int = parameter(0, "the k most likely tokens; 0 is off", at_least=0)
    batch_size: int = parameter(64, "sequences generated at once", at_least=1)

    def __post_init__(self) -> None:
        for field in fields(self):
            check_parameter("generation", field, getattr(self, field.name))

    @classmethod
    def of(cls, settings: "GenerationSettings | dict[str, Any] | None") -> Self:
        """From a dict of the fields.

        Raises:
            UsageError: an unknown field or a value out of bounds.
        """
        if isinstance(settings, cls):
            return settings
        known = [field.name for field in fields(cls)]
        for key in settings or {}:
            if key not in known:
                raise UsageError(
                    f"generation has no setting {key!r}.{did_you_mean(key, known)} It has {', '.join(known)}."
                )
        return cls(**(settings or {}))


@dataclass(frozen=True)
class Sample:
    """One sampled completion.

    Attributes:
        ids: int32 token ids, with the end-of-sequence token if it was reached.
        text: the completion as text, without special tokens.
        ended: whether it ended by itself rather than at the token limit.
    """

    ids: np.ndarray
    text: str
    ended: bool


class Generator(Protocol):
    """What can sample completions for tokenized prompts; implementations see the newest weights at every call."""

    def generate(
        self, model: nn.Module, prompts: Sequence[np.ndarray], settings: GenerationSettings
    ) -> list[list[Sample]]:
        """For each prompt, ``settings.n`` samples."""
        ...


class TransformersGenerator:
    """Sampling with transformers' ``generate``: left padding, prompts of similar length together.

    Args:
        tokenizer: pads prompts and decodes completions.
        stop_ids: token ids that end a completion; the end-of-sequence token alone by default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = list(stop_ids) or [tokenizer.eos_token_id]

    @torch.no_grad()
    def generate(
        self, model: nn.Module, prompts: Sequence[np.ndarray], settings: GenerationSettings
    ) -> list[list[Sample]]:
        """See `Generator`. The model is left in the mode (training or evaluation) that it was in."""
        was_training = model.training
        model.eval()
        per_call = max(1, settings.batch_size // settings.n)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        samples: list[list[Sample]] = [[] for _ in prompts]
        try:
            for start in range(0, len(order), per_call):
                chosen = order[start : start + per_call]
                for i, group in zip(chosen, self._call(model, [prompts[i] for i in chosen], settings), strict=True):
                    samples[i] = group
        finally:
            model.train(was_training)
        return samples

    def _call(self, model: nn.Module, prompts: list[np.ndarray], settings: GenerationSettings) -> list[list[Sample]]:
        device = next(model.parameters()).device
        width = max(map(len, prompts))
        input_ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            attention_mask[row, width - len(prompt) :] = 1
        output = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=self._config(model, settings, width),
        )
        new = output[:, width:].cpu().numpy().astype(np.int32)
        rows = [self._sample(ids) for ids in new]
        return [rows[i * settings.n : (i + 1) * settings.n] for i in range(len(prompts))]

    def _config(self, model: nn.Module, settings: GenerationSettings, width: int) -> GenerationConfig:
        room = getattr(model.config, "max_position_embeddings", None)
        max_new_tokens = settings.max_new_tokens if room is None else min(settings.max_new_tokens, room - width)
        if max_new_tokens < 1:
            raise UsageError(f"a prompt of {width} tokens leaves no room in the model's context of {room} tokens.")
        sampled = settings.temperature > 0
        # Everything is spelled out, or the model's own generation config would fill in what is missing.
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if sampled:
            options = {
                "do_sample": True,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "top_k": settings.top_k,
            }
        elif settings.n > 1:
            raise UsageError(f"generation: n={settings.n} samples at temperature 0 would all be the same; use n=1.")
        return GenerationConfig(
            **options,
            num_return_sequences=settings.n,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
        )

    def _sample(self, ids: np.ndarray) -> Sample:
        ends = np.flatnonzero(np.isin(ids, self.stop_ids))
        ended = len(ends) > 0
        ids = ids[: ends[0] + 1] if ended else ids
        return Sample(ids=ids, text=self.tokenizer.decode(ids, skip_special_tokens=True), ended=ended)
