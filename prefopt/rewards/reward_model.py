"""A trained reward model as a reward function."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from prefopt.core.errors import ModelError, UsageError
from prefopt.data import DataSettings, Encoder
from prefopt.data.reasons import SkipRow
from prefopt.models import ModelSettings, SavedModel, head_of, load_tokenizer, settle_padding
from prefopt.models.load import load_by_name, load_reward_model
from prefopt.models.origin import context_of

ROWS, TOKENS = 64, 16384
"""The most rows, and the most tokens with padding, of one forward pass."""


class RewardModel:
    """Scores completions with a sequence classifier of one label, exactly as it was trained to.

    Prompt and completion are encoded by the same `Encoder` as in training, so the model sees the chat template, the
    seam and the end token that it knows; the score is what its own forward returns.

    Args:
        model: a transformers or peft model for sequence classification with one label. It is put into evaluation mode
            when it scores, and its weights are used as they are at that time.
        tokenizer: its tokenizer; the padding of both is made to agree.
        template_args: extra arguments of the chat template, as in `DataSettings`.
        prerendered: whether plain prompts hold the tokens of the chat template already, as in `DataSettings`.

    Example:
        >>> reward = RewardModel.load("reward-model")
        >>> reward(["How are you?"], ["Fine, thank you."])
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        template_args: Mapping[str, Any] | None = None,
        *,
        prerendered: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer, _ = settle_padding(model, tokenizer)
        self.encoding = {"template_args": dict(template_args or {}), "prerendered": prerendered}
        self.encoder = Encoder(self.tokenizer, DataSettings.of(self.encoding))
        self.context: int | None = context_of(model.config)

    @classmethod
    def load(cls, name: str | Path, *, trust_remote_code: bool = False) -> Self:
        """Load a reward model: a folder or hub id of a whole model, or the folder of an adapter.

        It goes to the accelerator if there is one, in bfloat16 where that computes in it (the head stays in float32).
        An adapter that was trained on a quantized base gets that base.

        Raises:
            ModelError: no such model, a language model without a reward head, or a classifier with several labels.
        """
        saved = SavedModel.of(name)
        quantized = saved.quantized
        settings = ModelSettings(
            adapter="qlora" if quantized else None, rewards=True, trust_remote_code=trust_remote_code
        )
        if saved.is_adapter:
            model = load_by_name(str(name), settings)
        else:
            model = load_reward_model(str(name), settings, trains_adapter=True)
        if head_of(model).fresh:
            raise ModelError(f"{name} is a language model and gives no reward: train one with `prefopt train reward`.")
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        if torch.cuda.is_available() and not quantized:
            model.to("cuda")
        return cls(model.eval().requires_grad_(False), tokenizer, **saved.encoding)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        *,
        ended: Sequence[bool] | None = None,
        **columns: Sequence[Any],
    ) -> list[float]:
        """The score of each completion.

        Args:
            prompts: strings, or messages, one for each completion.
            completions: strings without special tokens.
            ended: whether each ended by itself; one that did not is scored without an end token. Default: all did.
            columns: others are not looked at, but for ``tools``, which a chat template may write.

        Raises:
            UsageError: as many prompts as completions are not given, or one cannot be encoded or is too long.
        """
        check_numbers(prompts, completions)
        ended = [True] * len(completions) if ended is None else ended
        tools = columns.get("tools") or [None] * len(completions)
        given = zip(prompts, completions, ended, tools, strict=True)
        return self.score([self._encode(number, *row) for number, row in enumerate(given)])

    @torch.no_grad()
    def score(self, rows: Sequence[np.ndarray]) -> list[float]:
        """The score of token sequences, prompt and completion in one; those of similar length go together."""
        was_training = self.model.training
        self.model.eval()
        scores = [0.0] * len(rows)
        try:
            for numbers in batches_of([len(row) for row in rows]):
                for number, value in zip(numbers, self._forward([rows[i] for i in numbers]), strict=True):
                    scores[number] = value
        finally:
            self.model.train(was_training)
        return scores

    def _encode(self, number: int, prompt: Any, completion: str, ended: bool, tools: Any) -> np.ndarray:
        try:
            head, (ids, _) = self.encoder.completion(prompt, completion, tools)
        except SkipRow as skip:
            raise UsageError(f"completion {number} cannot be scored: a row {skip.cause}.") from skip
        # It was closed by an end token, which one that was cut off does not have.
        row = np.concatenate([head, ids if ended else ids[:-1]])
        check_length(number, len(row), self.context)
        return row

    def _forward(self, rows: Sequence[np.ndarray]) -> list[float]:
        device = next(self.model.parameters()).device
        input_ids = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for number, row in enumerate(rows):
            input_ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
            attention_mask[number, : len(row)] = 1
        output = self.model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False)
        return output.logits[:, 0].tolist()


def is_reward_model(name: str | Path, *, trust_remote_code: bool = False) -> bool:
    """Whether a folder holds a reward model (or its adapter); of a hub id, whether its files say so.

    Raises:
        ModelError: there is no such model.
    """
    from transformers import AutoConfig

    from prefopt.models import is_classifier

    saved = SavedModel.of(name)
    if saved.is_adapter:
        return saved.rewards
    try:
        return is_classifier(AutoConfig.from_pretrained(str(name), trust_remote_code=trust_remote_code))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {str(name)!r} was found neither as a folder nor on the hub: check the name."
        ) from error


def check_numbers(prompts: Sequence[Any], completions: Sequence[str]) -> None:
    """Refuse prompts and completions that do not belong together.

    Raises:
        UsageError: their numbers differ.
    """
    if len(prompts) != len(completions):
        raise UsageError(f"a reward model got {len(prompts)} prompts for {len(completions)} completions.")


def check_length(number: int, length: int, context: int | None) -> None:
    """Refuse a row of more tokens than a reward model reads, if it has a limit.

    Raises:
        UsageError: completion ``number`` is too long.
    """
    if context is not None and length > context:
        raise UsageError(
            f"completion {number} with its prompt has {length} tokens, and the reward model's context is {context}: "
            "leave out longer prompts (data.max_length), or lower generation.max_new_tokens."
        )


def batches_of(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows, the longest first, within the limits of a forward pass."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = batches and len(batches[-1]) < ROWS and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= TOKENS
        if room:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
