"""A published reward model that is an encoder, such as DeBERTa: it reads prompt and completion as a pair of texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from prefopt.core.errors import ModelError
from prefopt.models import is_classifier
from prefopt.models.origin import context_of
from prefopt.models.reward_head import check_labels
from prefopt.rewards.reward_model import batches_of, check_length, check_numbers


class EncoderRewardModel:
    """Scores completions with an encoder for sequence classification with one label.

    Prompt and completion go in as the two texts of the tokenizer's pair encoding, ``[CLS] prompt [SEP] completion
    [SEP]``, as such models were trained. Of a prompt in messages the contents stand one under the other. Whether a
    completion ended by itself is not seen.

    Args:
        model: a transformers encoder for sequence classification with one label. It is put into evaluation mode.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        # Position tables of some encoders have places that no token may take; their tokenizers know.
        limits = tokenizer.model_max_length, context_of(model.config)
        self.context = min(limit for limit in limits if limit is not None)

    @classmethod
    def load(cls, name: str | Path, *, trust_remote_code: bool = False) -> Self:
        """Load a folder or hub id, in float32, on the accelerator if there is one.

        Raises:
            ModelError: a classifier with several labels, or files that are missing.
        """
        options = {"trust_remote_code": trust_remote_code}
        check_labels(str(name), AutoConfig.from_pretrained(str(name), **options))
        try:
            model = AutoModelForSequenceClassification.from_pretrained(str(name), dtype=torch.float32, **options)
            tokenizer = AutoTokenizer.from_pretrained(str(name), **options)
        except (OSError, ValueError) as error:
            raise ModelError(f"reward model {name} could not be loaded: {str(error).splitlines()[0]}") from error
        if torch.cuda.is_available():
            model.to("cuda")
        return cls(model.requires_grad_(False), tokenizer)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
        """The score of each completion.

        Args:
            prompts: strings, or messages, one for each completion.
            completions: strings without special tokens.

        Raises:
            UsageError: as many prompts as completions are not given, or one is too long.
        """
        check_numbers(prompts, completions)
        # A "[SEP]" that somebody wrote is text.
        texts = [_text(prompt) for prompt in prompts], list(completions)
        rows = self.tokenizer(*texts, split_special_tokens=True)
        lengths = [len(ids) for ids in rows["input_ids"]]
        for number, length in enumerate(lengths):
            check_length(number, length, self.context)
        scores = [0.0] * len(lengths)
        for numbers in batches_of(lengths):
            chosen = {name: [values[i] for i in numbers] for name, values in rows.items()}
            padded = self.tokenizer.pad(chosen, return_tensors="pt").to(next(self.model.parameters()).device)
            for number, value in zip(numbers, self.model(**padded).logits[:, 0].tolist(), strict=True):
                scores[number] = value
        return scores


def is_encoder(name: str | Path, *, trust_remote_code: bool = False) -> bool:
    """Whether a name is that of a sequence classifier that reads in both directions."""
    if (Path(name) / "adapter_config.json").is_file():
        return False
    try:
        config = AutoConfig.from_pretrained(str(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return False  # Loading will say what is wrong with it.
    return is_classifier(config) and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn.get("content") or "" for turn in prompt)
