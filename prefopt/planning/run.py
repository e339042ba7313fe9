"""What a run will be, found out from settings, a model's config and, where there is data, its lengths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from prefopt.arguments import merged_fields
from prefopt.assembly import check_assembly
from prefopt.batches import Demonstrations, Labelled, Pairs, Ranked, Rollouts
from prefopt.catalogue import Algorithm, get_algorithm
from prefopt.catalogue.recipes import CHECKPOINTING
from prefopt.data import DataSettings, TokenizedDataset, prepare_dataset
from prefopt.data.dataset import DEFAULT_LENGTH
from prefopt.errors import ModelError, UsageError
from prefopt.models import ModelSettings, load_tokenizer
from prefopt.models.load import base_of
from prefopt.objective import Objective
from prefopt.online import generation_settings
from prefopt.planning.layout import Segments
from prefopt.rollouts import GenerationSettings, make_reward

DEVICES = ("cuda", "cpu")
RANKED = 4
"""Completions of a prompt that are assumed of rankings, where there is no data."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run that is planned; the fields are the arguments of `prefopt.plan`."""

    model: Any
    algorithm: Any
    train_dataset: Any = None
    adapter: Any = None
    reference: Any = None
    reward: Any = None
    processing_class: Any = None
    data: Mapping[str, Any] | DataSettings | None = None
    generation: Mapping[str, Any] | GenerationSettings | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    device: str = "cuda"
    prompt_length: int | None = None

    # ---- the model -----------------------------------------------------------------------------------------------

    @cached_property
    def resolved(self) -> Algorithm:
        """The algorithm, with all that was said about it checked."""
        one = self.algorithm
        found = get_algorithm(one) if isinstance(one, (str, Objective)) else one
        if self.device not in DEVICES:
            raise UsageError(f"device={self.device!r} is not one of {', '.join(DEVICES)}.")
        check_assembly(found, self.reference, self.reward, self.generation)
        return found

    @cached_property
    def settings(self) -> ModelSettings:
        rewards = self.resolved.objective.needs.rewards
        return ModelSettings(adapter=self.adapter, lora=dict(self.lora), rewards=rewards)

    @cached_property
    def folder(self) -> Path | None:
        """That of the adapter with which the model arrives."""
        found = isinstance(self.model, (str, Path)) and (Path(self.model) / "adapter_config.json").is_file()
        return Path(self.model) if found else None

    @cached_property
    def base_name(self) -> str | None:
        """Of the policy's base, where it has a name."""
        if isinstance(self.model, (str, Path)):
            return base_of(self.folder) if self.folder else str(self.model)
        return getattr(self.model, "name_or_path", None) or None

    @cached_property
    def config(self) -> PretrainedConfig:
        """Of the base."""
        if isinstance(self.model, PretrainedConfig):
            return self.model
        if isinstance(self.model, (PreTrainedModel, PeftModel)):
            return self.model.config
        return config_of(self.base_name, self.trust_remote_code)

    @cached_property
    def lora_config(self) -> LoraConfig | None:
        if self.folder is not None:
            return LoraConfig.from_pretrained(str(self.folder))
        if isinstance(self.model, PeftModel):
            return self.model.peft_config[self.model.active_adapter]
        return self.settings.lora_config() if self.adapter is not None else None

    @property
    def arrives_with_adapter(self) -> bool:
        return self.folder is not None or isinstance(self.model, PeftModel)

    @property
    def quantized(self) -> bool:
        return self.settings.quantize or bool(getattr(self.model, "is_loaded_in_4bit", False))

    @property
    def weight_dtype(self) -> torch.dtype:
        """As the policy's frozen weights are loaded, or all of them where they are trained."""
        return self.frozen_dtype if self.lora_config is not None else torch.float32

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Of frozen weights."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    # ---- settings --------------------------------------------------------------------------------------------------

    @cached_property
    def fields(self) -> dict[str, Any]:
        """Of ``TrainingArguments``: what was said over the recipe of the device that is planned for."""
        recipe = self.resolved.recipe.arguments(
            trains_adapter=self.lora_config is not None, quantized=self.quantized, device=self.device
        )
        return merged_fields(dict(self.args), recipe, self.resolved.name)

    @property
    def micro_batch(self) -> int:
        return int(self.fields.get("per_device_train_batch_size", 8))

    @property
    def accumulation(self) -> int:
        return int(self.fields.get("gradient_accumulation_steps", 1))

    @property
    def optimizer(self) -> str:
        return str(getattr(self.fields.get("optim"), "value", self.fields.get("optim", "adamw_torch_fused")))

    @property
    def checkpointing(self) -> bool:
        return any(bool(self.fields.get(key)) for key in (CHECKPOINTING, "gradient_checkpointing"))

    @property
    def mixed(self) -> torch.dtype | None:
        """The dtype of mixed precision."""
        if self.fields.get("bf16"):
            return torch.bfloat16
        return torch.float16 if self.fields.get("fp16") else None

    @cached_property
    def generation_settings(self) -> GenerationSettings:
        return generation_settings(self.resolved, self.generation)

    @cached_property
    def data_settings(self) -> DataSettings:
        return DataSettings.of(self.data)

    @cached_property
    def max_length(self) -> int:
        context = getattr(self.config, "max_position_embeddings", None)
        return self.data_settings.max_length or min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)

    @cached_property
    def reward_models(self) -> list[str]:
        """Names of the reward models among the rewards."""
        names: list[str] = []

        def load(name: str) -> Any:
            names.append(name)
            return lambda prompts, completions: [0.0] * len(completions)

        if self.reward is not None:
            make_reward(self.reward, load=load)
        return names

    # ---- tokens ------------------------------------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> TokenizedDataset | None:
        """The data, as training reads it."""
        if self.train_dataset is None or isinstance(self.train_dataset, TokenizedDataset):
            return self.train_dataset
        needs, name = self.resolved.objective.needs, self.resolved.name
        if self.processing_class is None and isinstance(self.model, PretrainedConfig):
            raise UsageError("data needs a tokenizer, which a config does not name: pass processing_class=.")
        tokenizer = self.processing_class or load_tokenizer(self.model, trust_remote_code=self.trust_remote_code)
        return prepare_dataset(
            self.train_dataset,
            self.resolved.data_kind,
            tokenizer,
            self.data_settings,
            context=getattr(self.config, "max_position_embeddings", None),
            labels=() if self.resolved.online else needs.labels,
            reader=name,
            singles=needs.singles,
        )

    @cached_property
    def prompt(self) -> int:
        """Tokens of a prompt: of the longest in the data, else what was said, else half of what a row may have."""
        if self.dataset is not None:
            return max(len(example.prompt) for example in self.dataset.examples)
        return min(self.prompt_length or self.max_length // 2, self.max_length - 1)

    def segments(self, examples: int) -> Segments:
        """The longest micro-batch of so many examples that there can be."""
        if self.resolved.online:
            return self._sampled(examples * self._per_prompt)
        if self.dataset is None:
            completion = self.max_length - self.prompt
            return Segments(((self.prompt, (completion,) * self._compared),) * examples)
        groups = [(len(one.prompt), tuple(map(len, one.completions))) for one in self.dataset.examples]
        groups = [group for group in groups if group[0] + max(group[1]) <= self.max_length] or groups
        groups.sort(key=lambda group: -(group[0] + sum(group[1])))
        return Segments(tuple(groups[:examples]))

    @property
    def rollout(self) -> int:
        """Prompts of a rollout."""
        return self.micro_batch * self.accumulation * self.resolved.plan.minibatches

    def _sampled(self, examples: int) -> Segments:
        """Sampled examples from as many prompts as there can be; those of one prompt share it."""
        prompts = min(examples, self.rollout)
        each = [examples // prompts + (number < examples % prompts) for number in range(prompts)]
        new = self.generation_settings.max_new_tokens
        return Segments(tuple((self.prompt, (new,) * self._compared * share) for share in each))

    @cached_property
    def _compared(self) -> int:
        """Completions of an example."""
        batch = self.resolved.source.batch if self.resolved.online else self.resolved.objective.needs.batch
        return {Pairs: 2, Ranked: RANKED, Labelled: 1, Demonstrations: 1, Rollouts: 1}.get(batch, 1)

    @cached_property
    def _per_prompt(self) -> int:
        """Examples that a prompt gives to a rollout, at the most."""
        source, n = self.resolved.source, self.generation_settings.n
        if source.batch is Rollouts:
            return n
        return min(getattr(source, "keep", n), n) if source.batch is Demonstrations else max(1, self._pairs(n))

    def _pairs(self, n: int) -> int:
        source = self.resolved.source
        if hasattr(source, "accept"):
            return source.accept // 2
        return n // len(source.samplers) if len(source.samplers) > 1 else 1

    @property
    def length_note(self) -> str:
        """Where the lengths come from."""
        if self.dataset is not None:
            return f"lengths are those of the longest of the {len(self.dataset)} examples"
        rest = "" if self.prompt_length else ": give data, or --prompt-length"
        return f"no data: every row is taken to have {self.max_length} tokens, {self.prompt} of them prompt{rest}"


def config_of(name: str | Path, trust_remote_code: bool) -> PretrainedConfig:
    """The config of a model, by path or hub id.

    Raises:
        ModelError: there is no such model.
    """
    try:
        return AutoConfig.from_pretrained(str(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no config could be read from {str(name)!r}, neither as a folder nor on the hub: check the name."
        ) from error
