"""Sampling completions from a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from prefopt.core.errors import UsageError
from prefopt.core.settings import Settings, parameter
from prefopt.models.origin import context_of
from prefopt.rollouts.kv_cache import with_cache
from prefopt.rollouts.sample import Sample

STAGE = 16
"""Tokens between two looks at which rows have ended; they are cheap, but each copies the cache of those that go on."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(Settings):
    """How completions are sampled."""

    name: ClassVar[str] = "generation"
    n: int = parameter(4, "completions per prompt", at_least=1)
    max_new_tokens: int = parameter(256, "tokens per completion at the most", at_least=1)
    temperature: float = parameter(1.0, "sampling temperature; 0 takes the most likely token", at_least=0)
    top_p: float = parameter(1.0, "smallest set of tokens with this total probability; 1 is off", above=0, at_most=1)
    top_k: int = parameter(0, "the k most likely tokens; 0 is off", at_least=0)
    batch_size: int = parameter(64, "sequences generated at once", at_least=1)


@dataclass(frozen=True)
class Mixture:
    """Sample each token from softmax((1 − weight)·policy logits + weight·reference logits), as Nash-MD does.

    Attributes:
        reference: Maps token ids and attention mask, [R, T], to the reference's logits of the next token, [R, V].
        weight: The weight of the reference, 0 to 1.
    """

    reference: Callable[[Tensor, Tensor], Tensor]
    weight: float


class Generator(Protocol):
    """What can sample completions for tokenized prompts; implementations see the newest weights at every call.

    One that holds a copy of the weights (another process, another engine) takes them over here before it samples.
    """

    def generate(
        self,
        model: nn.Module,
        prompts: Sequence[np.ndarray],
        settings: GenerationSettings,
        *,
        mixture: Mixture | None = None,
    ) -> list[list[Sample]]:
        """For each prompt, ``settings.n`` samples of the model, or of its mixture with a reference.

        Raises:
            UsageError: a mixture is asked of a generator that cannot make one.
        """
        ...


class TransformersGenerator:
    """Sampling with transformers' ``generate``: left padding, prompts of similar length together.

    The keys and values of a prompt are computed once for all of its samples, where the model's cache can be repeated.

    Args:
        tokenizer: Pads prompts and decodes completions.
        stop_ids: The token ids that end a completion; the end-of-sequence token alone by default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = list(stop_ids) or [tokenizer.eos_token_id]

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompts: Sequence[np.ndarray],
        settings: GenerationSettings,
        *,
        mixture: Mixture | None = None,
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
                groups = self._call(model, [prompts[i] for i in chosen], settings, mixture)
                for i, group in zip(chosen, groups, strict=True):
                    samples[i] = group
        finally:
            model.train(was_training)
        return samples

    def _call(
        self, model: nn.Module, prompts: list[np.ndarray], settings: GenerationSettings, mixture: Mixture | None
    ) -> list[list[Sample]]:
        inputs, width = self._padded(prompts, next(model.parameters()).device)
        config = self._config(model, settings, width)
        processors = []
        if mixture is None:
            inputs = with_cache(model, inputs, settings.n, room=config.max_new_tokens)
            config.num_return_sequences = 1
        else:
            processors = [_Mixer(mixture, inputs["attention_mask"].repeat_interleave(settings.n, dim=0))]
        drawn = self._draw(model, inputs, config, processors, settings)
        rows = [self._sample(ids, own) for ids, own in zip(*drawn, strict=True)]
        return [rows[i * settings.n : (i + 1) * settings.n] for i in range(len(prompts))]

    def _draw(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        config: GenerationConfig,
        processors: list[LogitsProcessor],
        settings: GenerationSettings,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and their log-probs, [R, T] each; what follows the end of a row has no meaning.

        Where the cache can be narrowed, rows that have ended leave the batch every few tokens: most completions are far
        shorter than the longest, which all would wait for.
        """
        number, most = len(inputs["input_ids"]) * config.num_return_sequences, config.max_new_tokens
        tokens = np.full((number, most), self.tokenizer.pad_token_id, dtype=np.int32)
        logps = np.zeros((number, most), dtype=np.float32)
        rows, done = torch.arange(number), 0
        stops = torch.tensor(self.stop_ids)
        # Mixtures of experts would compute their load-balancing loss at each token, which fails where a cache is used.
        routed = getattr(model.config.get_text_config(), "output_router_logits", False)
        quiet = {"output_router_logits": False} if routed else {}
        while done < most:
            recorder = _Recorder(settings.temperature or 1.0)
            config.max_new_tokens = most - done
            if "past_key_values" in inputs:
                config.max_new_tokens = min(STAGE, most - done)
            output = model.generate(
                **inputs,
                **quiet,
                generation_config=config,
                logits_processor=LogitsProcessorList([*processors, recorder]),
                stopping_criteria=StoppingCriteriaList([_Drawn(recorder)]),
            )
            end = done + len(recorder.logps)
            new = output[:, -len(recorder.logps) :].cpu()
            tokens[rows, done:end] = new.numpy()
            logps[rows, done:end] = torch.stack(recorder.logps, dim=1).cpu().numpy()
            going = torch.isin(new, stops).any(dim=1).logical_not().nonzero()[:, 0]
            # Without a cache one call samples all.
            if len(going) == 0 or end == most:
                break
            rows, done = rows[going], end
            inputs = _narrowed(inputs, output, going)
        return tokens, logps

    def _padded(self, prompts: list[np.ndarray], device: torch.device) -> tuple[dict[str, Tensor], int]:
        width = max(map(len, prompts))
        input_ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            attention_mask[row, width - len(prompt) :] = 1
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}, width

    def _config(self, model: nn.Module, settings: GenerationSettings, width: int) -> GenerationConfig:
        room = context_of(model.config)
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

    def _sample(self, ids: np.ndarray, logps: np.ndarray) -> Sample:
        ends = np.flatnonzero(np.isin(ids, self.stop_ids))
        ended = len(ends) > 0
        ids = ids[: ends[0] + 1] if ended else ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(ids=ids, text=text, ended=ended, logps=logps[: len(ids)])


def _narrowed(inputs: dict[str, Any], output: Tensor, going: Tensor) -> dict[str, Any]:
    """The inputs of ``generate`` to go on with some of the rows, the cache among them."""
    going, cache = going.to(output.device), inputs["past_key_values"]
    ids = output[going]
    mask = inputs["attention_mask"][going]
    mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    if len(going) < len(output):
        cache.batch_select_indices(going)
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of each sampled token, one vocabulary row per sequence at a time.

    It sees what the next token is drawn from (before temperature); `_Drawn` tells it the token that was drawn. So no
    stack of scores is ever held.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.logps: list[Tensor] = []
        self._next: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._next = (scores.float() / self.temperature).log_softmax(dim=-1)
        return scores

    def take(self, tokens: Tensor) -> None:
        """The tokens that were drawn, [R]."""
        self.logps.append(self._next.gather(-1, tokens[:, None]).squeeze(-1))


class _Drawn(StoppingCriteria):
    """Tells a recorder each token as soon as it is drawn; stops nothing."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.recorder.take(input_ids[:, -1])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Mixer(LogitsProcessor):
    """Mixes the reference's logits into the policy's."""

    def __init__(self, mixture: Mixture, attention_mask: Tensor) -> None:
        self.mixture, self.attention_mask = mixture, attention_mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids.shape[1] - self.attention_mask.shape[1]
        mask = torch.nn.functional.pad(self.attention_mask, (0, new), value=1)
        return torch.lerp(scores, self.mixture.reference(input_ids, mask).to(scores.dtype), self.mixture.weight)
