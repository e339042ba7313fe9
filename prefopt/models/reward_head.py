"""Reward models: a transformer that gives one number for a sequence, a sequence classifier with one label.

The number is what the model's own forward returns: the head's output at the last token that is not padding.
"""

import copy
import math
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from prefopt.core.errors import ModelError

HEAD = "score"
CLASSIFIER = "ForSequenceClassification"


class ScalarHead(nn.Linear):
    """A linear layer to one output that computes in its own precision, whatever comes in and whatever autocast says.

    Differences of rewards and values are small beside them: in bfloat16 two scores near 8 differ by 1/32 or not at all.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.to(self.weight.dtype))


class RewardHead(ScalarHead):
    """The head of a reward model.

    Attributes:
        fresh: whether its weights were drawn here rather than loaded.
        borrows: whether the embeddings came from the head of the language model, where its checkpoint has them.
    """

    fresh: bool = False
    borrows: bool = False


def is_classifier(config: Any) -> bool:
    """Whether a checkpoint's configuration says that it is a sequence classifier, as reward models are."""
    return any(CLASSIFIER in name for name in getattr(config, "architectures", None) or [])


def check_labels(name: str, config: Any) -> None:
    """Refuse a classifier that does not give one number.

    Raises:
        ModelError: it has several labels.
    """
    if is_classifier(config) and config.num_labels != 1:
        raise ModelError(
            f"{name} classifies into {config.num_labels} labels, and a reward model has one: start from its language "
            "model, or from a reward model with num_labels=1."
        )


def to_reward_model(model: nn.Module, *, fresh: bool = False) -> nn.Module:
    """A loaded model as a reward model; a language model keeps its layers and gets a fresh head.

    The weights of a fresh head are drawn with standard deviation 1/√(d + 1), d the hidden size (Ziegler et al. 2019).

    Args:
        model: a transformers model, or one with an adapter for sequence classification.
        fresh: whether the head of a classifier was not loaded but drawn by transformers.

    Raises:
        ModelError: an adapter of a language model, a classifier with several labels, or an architecture without a
            head that reads the last token.
    """
    if isinstance(model, PeftModel):
        if not any(config.task_type == "SEQ_CLS" for config in model.peft_config.values()):
            raise ModelError(adapter_of_another_kind("the model"))
        _give_head(model.get_base_model(), fresh=False)
        return model
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"a reward model is made of a transformers model, not of {type(model).__name__}.")
    if CLASSIFIER not in type(model).__name__:
        model, fresh = _around(model), True
    check_labels(type(model).__name__, model.config)
    _give_head(model, fresh=fresh)
    return model


def adapter_of_another_kind(name: str) -> str:
    """The message for an adapter that was trained on a language model."""
    return (
        f"{name} is an adapter of a language model, which has no reward head: merge it first (`prefopt export ADAPTER "
        "--out merged`) and train the reward model on the merged one."
    )


def head_of(model: nn.Module) -> RewardHead:
    """The reward head of a model; the one that is trained, where an adapter brings its own."""
    return _heads(model)[-1]


def _heads(model: nn.Module) -> list[RewardHead]:
    return [module for module in model.modules() if isinstance(module, RewardHead)]


def _around(model: PreTrainedModel) -> PreTrainedModel:
    """A classifier around the layers of a language model, which it takes over."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
        backbone = model.base_model
        setattr(classifier, classifier.base_model_prefix, backbone)
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"{type(model).__name__} cannot become a reward model: {str(error).splitlines()[0]}"
        ) from error
    classifier.config._name_or_path = model.config._name_or_path
    backbone.config = classifier.config
    return classifier.train(model.training)


def _give_head(model: PreTrainedModel, *, fresh: bool) -> None:
    """Put a `RewardHead` in the place of the model's own, in float32 at least."""
    old = getattr(model, HEAD, None)
    if isinstance(old, nn.Module) and any(isinstance(module, RewardHead) for module in old.modules()):
        return
    if not isinstance(old, nn.Linear) or old.out_features != 1:
        raise ModelError(
            f"{type(model).__name__} has no head {HEAD!r} with one output that reads the last token: reward models are "
            "made of decoders, such as Llama, Mistral, Qwen, Gemma, Phi or GPT-2; an encoder can be given as `reward`."
        )
    weight = next(model.base_model.parameters())
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    options = {"device": weight.device, "dtype": dtype}
    head = RewardHead(old.in_features, 1, bias=old.bias is not None, **options)
    with torch.no_grad():
        if fresh:
            head.weight.normal_(std=1 / math.sqrt(old.in_features + 1))
            if head.bias is not None:
                head.bias.zero_()
        else:
            head.load_state_dict({name: value.to(**options) for name, value in old.state_dict().items()})
    head.fresh = fresh
    setattr(model, HEAD, head)


def settle_padding(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Let model and tokenizer agree on a padding token that ends no sequence, for the score is read before padding.

    A reward model that knows its padding keeps it. Otherwise it is the tokenizer's, if that is not the end-of-sequence
    token; else another special token made for padding, or the unknown token.

    Returns:
        The tokenizer (a copy, where its padding had to change), and lines to show to the user, about a fresh head too.
    """
    config, size = model.config, model.get_input_embeddings().weight.shape[0]
    known = config.get_text_config().pad_token_id
    # Under an adapter it is the base that knows, or the tokenizer that was saved with the adapter.
    trained_before = not _heads(model)[0].fresh
    pad = known if trained_before and known is not None and 0 <= known < size else _padding(tokenizer, size)
    lines = [_FRESH.format(model.config.model_type)] if head_of(model).fresh else []
    if _heads(model)[0].borrows and isinstance(model, PeftModel):
        lines.append(_BORROWS)
    if pad == tokenizer.eos_token_id:
        lines.append(
            f"padding is {tokenizer.eos_token!r}, the end-of-sequence token (the tokenizer has no other that could "
            "serve), so a score is read at the token before it and does not see whether a completion ended"
        )
    if pad != tokenizer.pad_token_id:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        lines.append(f"padding is {tokenizer.pad_token!r}, so that the score can be read at the end of a completion")
    config.pad_token_id = config.get_text_config().pad_token_id = pad
    return tokenizer, lines


_FRESH = "this {} is a language model: it gets a reward head, drawn at random"


_BORROWS = (
    "the base's checkpoint stores its embeddings as the language model's head, where other tools miss them when they "
    "load a classifier: save it anew for them, AutoModelForCausalLM.from_pretrained(base).save_pretrained(new)"
)


def _padding(tokenizer: PreTrainedTokenizerBase, size: int) -> int:
    special = [number for number, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    named = [number for number in special if "pad" in tokenizer.convert_ids_to_tokens(number).lower()]
    candidates = [tokenizer.pad_token_id, *named, tokenizer.unk_token_id]
    fine = [number for number in candidates if number not in (None, tokenizer.eos_token_id) and number < size]
    return fine[0] if fine else tokenizer.eos_token_id
