"""A reward model that is an adapter on the very base that the policy is trained on."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import nn

from prefopt.core.errors import ModelError
from prefopt.data import DataSettings, Encoder
from prefopt.models import SavedModel, load_tokenizer
from prefopt.models.adapters import REWARD_ADAPTER, active_adapter, is_adapter_model
from prefopt.models.origin import context_of
from prefopt.models.reward_head import HEAD, ScalarHead
from prefopt.rewards.reward_model import RewardModel
from prefopt.scoring.head import called_with


class SharedRewardModel(RewardModel):
    """Scores as `RewardModel` does, with the adapter and head of a reward model on a language model's own base.

    No second base is loaded. The hidden state before the vocabulary head is what a sequence classifier of the same
    architecture gives to its own head.

    Args:
        policy: the language model, with adapters.
        folder: of a reward model's adapter on the same base; see `shares_base`.
    """

    def __init__(self, policy: PeftModel, folder: str | Path) -> None:
        folder = Path(folder)
        self.model = policy
        self.tokenizer = load_tokenizer(folder)
        self.encoding = SavedModel.of(folder).encoding
        self.encoder = Encoder(self.tokenizer, DataSettings.of(self.encoding))
        self.context = context_of(policy.config)
        taken = [name for name in policy.peft_config if name.startswith(REWARD_ADAPTER)]
        self.adapter = REWARD_ADAPTER if not taken else f"{REWARD_ADAPTER}_{len(taken)}"
        weights = load_peft_weights(str(folder), device="cpu")
        head = {name.rsplit(".", 1)[1]: weights.pop(name) for name in list(weights) if f".{HEAD}." in name}
        self.head = _linear(head, folder)
        self._add(policy, folder, weights)

    def _add(self, policy: PeftModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        config = copy.deepcopy(LoraConfig.from_pretrained(str(folder)))
        config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
        trained = policy.active_adapter
        policy.add_adapter(self.adapter, config)
        set_peft_model_state_dict(policy, weights, adapter_name=self.adapter)
        policy.set_adapter(trained)

    def _forward(self, rows: Sequence[np.ndarray]) -> list[float]:
        pad = self.tokenizer.pad_token_id
        width = max(map(len, rows))
        input_ids = torch.full((len(rows), width), pad)
        attention_mask = torch.zeros_like(input_ids)
        for number, row in enumerate(rows):
            input_ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
            attention_mask[number, : len(row)] = 1
        # Where the classifier reads: at the last token that is not the padding's, wherever the row ends.
        last = (torch.arange(width) * (input_ids != pad)).argmax(dim=1)
        index = torch.arange(len(rows)) * width + last
        # The policy may have moved since.
        device = next(self.model.parameters()).device
        self.head.to(device)
        inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
        index = index.to(device)
        with active_adapter(self.model, self.adapter):
            _, seen = called_with(self.model, self.model.get_output_embeddings(), inputs, index, index[:1])
        return self.head(seen.hidden).squeeze(-1).tolist()


def shares_base(policy: nn.Module, folder: str | Path) -> bool:
    """Whether a folder holds the adapter of a reward model that was trained on the policy's base as it is in memory."""
    saved = SavedModel.of(folder)
    if not is_adapter_model(policy) or not saved.rewards or saved.adapter.get("peft_type") != "LORA":
        return False
    own = policy.peft_config[policy.active_adapter].base_model_name_or_path
    same_numbers = saved.quantized == bool(getattr(policy.get_base_model(), "is_loaded_in_4bit", False))
    same_size = saved.vocabulary in (None, policy.get_input_embeddings().weight.shape[0])
    return own is not None and own == saved.base and same_numbers and same_size


def _linear(weights: dict[str, torch.Tensor], folder: Path) -> ScalarHead:
    if "weight" not in weights:
        raise ModelError(f"{folder} has no reward head beside its adapter: train it with `prefopt train reward`.")
    head = ScalarHead(weights["weight"].shape[1], 1, bias="bias" in weights, dtype=weights["weight"].dtype)
    head.load_state_dict(weights)
    return head.requires_grad_(False)
