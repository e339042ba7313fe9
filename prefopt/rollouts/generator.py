"""Sampling completions from a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from prefopt.core.errors import UsageError
from prefopt.models.origin import context_of
from prefopt.rollouts.draws import SampleKeys, TokenDraw
from prefopt.rollouts.kv_cache import keeps_all, with_cache
from prefopt.rollouts.sample import Sample
from prefopt.rollouts.settings import GenerationSettings

STAGE = 16
"""Tokens between two looks at which rows have ended; they are cheap, but each copies the cache of those that go on."""


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
        keys: SampleKeys | None = None,
    ) -> list[list[Sample]]:
        """For each prompt, ``settings.n`` samples of the model, or of its mixture with a reference.

        Args:
            model: The model.
            prompts: The token ids of the prompts.
            settings: How to sample.
            mixture: The mixture to sample from.
            keys: What the random numbers depend on; by default torch's global random numbers.

        Raises:
            UsageError: a mixture is asked of a generator that cannot make one.
        """
        ...


class TransformersGenerator:
    """Sampling with transformers' ``generate``: left padding, prompts of similar length together.

    The keys and values of a prompt are computed once for all of its samples, where the model's cache can be repeated.
    Each token is drawn by `TokenDraw`; nothing of the model's own generation config takes part.

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
        keys: SampleKeys | None = None,
    ) -> list[list[Sample]]:
        """See `Generator`. The model is left in the mode (training or evaluation) that it was in."""
        if settings.temperature == 0 and settings.n > 1:
            raise UsageError(f"generation: n={settings.n} samples at temperature 0 would all be the same; use n=1.")
        keys = SampleKeys.fresh(len(prompts)) if keys is None else keys
        limits = [_limit(model, len(prompt), settings.max_new_tokens) for prompt in prompts]
        samples: list[list[Sample]] = [[] for _ in prompts]
        was_training = model.training
        model.eval()
        try:
            with _own_config_away(model):
                for chosen in self._calls(model, prompts, limits, settings, mixture):
                    call = _Call(keys.of(chosen), [limits[i] for i in chosen], settings, mixture)
                    groups = self._call(model, [prompts[i] for i in chosen], call)
                    for i, group in zip(chosen, groups, strict=True):
                        samples[i] = group
        finally:
            model.train(was_training)
        return samples

    def _calls(
        self,
        model: nn.Module,
        prompts: Sequence[np.ndarray],
        limits: list[int],
        settings: GenerationSettings,
        mixture: Mixture | None,
    ) -> Iterator[list[int]]:
        """The prompts that are sampled together, by number."""
        per_call = max(1, settings.batch_size // settings.n)
        # Rows leave a batch at their own limit only where the cache can be narrowed.
        apart = mixture is not None or not keeps_all(model)
        chosen: list[int] = []
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            if len(chosen) == per_call or (apart and chosen and limits[i] != limits[chosen[0]]):
                yield chosen
                chosen = []
            chosen.append(i)
        if chosen:
            yield chosen

    def _call(self, model: nn.Module, prompts: list[np.ndarray], call: "_Call") -> list[list[Sample]]:
        n = call.settings.n
        inputs = self._padded(prompts, next(model.parameters()).device)
        mixers = []
        if call.mixture is None:
            inputs = with_cache(model, inputs, n, room=max(call.limits))
        else:
            inputs = {name: value.repeat_interleave(n, dim=0) for name, value in inputs.items()}
            mixers = [_Mixer(call.mixture, inputs["attention_mask"])]
        tokens, logps = self._draw(model, inputs, call, mixers)
        rows = [
            self._sample(ids[:limit], own[:limit], limit, call.settings)
            for ids, own, limit in zip(tokens, logps, np.repeat(call.limits, n).tolist(), strict=True)
        ]
        return [rows[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _draw(
        self, model: nn.Module, inputs: dict[str, Any], call: "_Call", mixers: list[LogitsProcessor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and their log-probs, [R, T] each; what follows the end of a row has no meaning.

        Where the cache can be narrowed, rows that have ended leave the batch every few tokens: most completions are far
        shorter than the longest, which all would wait for.
        """
        settings, keys = call.settings, call.keys.rows(call.settings.n)
        limits = torch.tensor(call.limits).repeat_interleave(settings.n)
        most = int(limits.max())
        tokens = np.full((len(keys), most), self.tokenizer.pad_token_id, dtype=np.int32)
        logps = np.zeros((len(keys), most), dtype=np.float32)
        rows, done = torch.arange(len(keys)), 0
        staged = "past_key_values" in inputs
        # Mixtures of experts would compute their load-balancing loss at each token, which fails where a cache is used.
        routed = getattr(model.config.get_text_config(), "output_router_logits", False)
        quiet = {"output_router_logits": False} if routed else {}
        while True:
            # No row goes on past its own limit, where the model has no positions left.
            left = int(limits[rows].min()) - done
            draw = TokenDraw(settings, call.keys.seed, keys[rows], done, self.stop_ids)
            output = model.generate(
                **inputs,
                **quiet,
                generation_config=self._config(min(STAGE, left) if staged else left),
                logits_processor=LogitsProcessorList([*mixers, draw]),
            )
            end = done + len(draw.logps)
            new = output[:, -len(draw.logps) :].cpu()
            tokens[rows, done:end] = new.numpy()
            logps[rows, done:end] = torch.stack(draw.logps, dim=1).cpu().numpy()
            # Without a cache one call samples all.
            if not staged:
                return tokens, logps
            done = end
            goes_on = [
                done < limit and self._end(tokens[row, :done], settings) is None
                for row, limit in zip(rows.tolist(), limits[rows].tolist(), strict=True)
            ]
            going = torch.tensor(goes_on).nonzero()[:, 0]
            if len(going) == 0:
                return tokens, logps
            rows = rows[going]
            inputs = _narrowed(inputs, output, going)

    def _padded(self, prompts: list[np.ndarray], device: torch.device) -> dict[str, Tensor]:
        width = max(map(len, prompts))
        input_ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            attention_mask[row, width - len(prompt) :] = 1
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        """What is left to ``generate``: the loop, and the end of a row. `TokenDraw` leaves one token to choose from."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
        )

    def _sample(self, ids: np.ndarray, logps: np.ndarray, limit: int, settings: GenerationSettings) -> Sample:
        end = self._end(ids, settings)
        ids = ids[:end]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(ids=ids, text=text, ended=end is not None, logps=logps[: len(ids)], limit=limit)

    def _end(self, ids: np.ndarray, settings: GenerationSettings) -> int | None:
        """The number of tokens after which a completion has ended by itself; None if it has not."""
        stops = np.flatnonzero(np.isin(ids, self.stop_ids))
        end = int(stops[0]) + 1 if len(stops) else None
        text = self._stop_string(ids[:end], settings) if settings.stop_strings else None
        return end if text is None else text

    def _stop_string(self, ids: np.ndarray, settings: GenerationSettings) -> int | None:
        """The least number of tokens whose text has a stop string in it; None if that of all has none."""

        def stopped(length: int) -> bool:
            text = self.tokenizer.decode(ids[:length], skip_special_tokens=False)
            return any(stop in text for stop in settings.stop_strings)

        if not stopped(len(ids)):
            return None
        low, high = max(settings.min_new_tokens, 1), len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if stopped(middle) else (middle + 1, high)
        return high if high >= settings.min_new_tokens else None


@dataclass(frozen=True)
class _Call:
    """Prompts that are sampled together.

    Attributes:
        keys: What their random numbers depend on.
        limits: The most tokens of a completion, for each prompt.
        settings: How to sample.
        mixture: The mixture to sample from, if any.
    """

    keys: SampleKeys
    limits: list[int]
    settings: GenerationSettings
    mixture: Mixture | None


def _limit(model: nn.Module, prompt: int, max_new_tokens: int) -> int:
    """The most tokens of a completion: what is asked for, or what the model's context has room for."""
    context = context_of(model.config)
    limit = max_new_tokens if context is None else min(max_new_tokens, context - prompt)
    if limit < 1:
        raise UsageError(f"a prompt of {prompt} tokens leaves no room in the model's context of {context} tokens.")
    return limit


@contextmanager
def _own_config_away(model: nn.Module) -> Iterator[None]:
    """A model whose generation config says nothing, for a time.

    transformers takes from it whatever the config of a call leaves open: penalties, suppressed tokens, beams, stop
    strings, and in later versions what nobody knows yet. peft's wrapper has a reference of its own to it.
    """
    holders = [module for module in model.modules() if "generation_config" in vars(module)]
    kept = [module.generation_config for module in holders]
    for module in holders:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, config in zip(holders, kept, strict=True):
            module.generation_config = config


def _narrowed(inputs: dict[str, Any], output: Tensor, going: Tensor) -> dict[str, Any]:
    """The inputs of ``generate`` to go on with some of the rows, the cache among them."""
    going, cache = going.to(output.device), inputs["past_key_values"]
    ids = output[going]
    mask = inputs["attention_mask"][going]
    mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    if len(going) < len(output):
        cache.batch_select_indices(going)
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}


class _Mixer(LogitsProcessor):
    """Mixes the reference's logits into the policy's."""

    def __init__(self, mixture: Mixture, attention_mask: Tensor) -> None:
        self.mixture, self.attention_mask = mixture, attention_mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids.shape[1] - self.attention_mask.shape[1]
        mask = torch.nn.functional.pad(self.attention_mask, (0, new), value=1)
        return torch.lerp(scores, self.mixture.reference(input_ids, mask).to(scores.dtype), self.mixture.weight)
