"""What a run will be, found out from settings, a model's config and, where there is data, its lengths."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from transformers import PretrainedConfig, TrainingArguments

from prefopt.algorithms import Algorithm
from prefopt.core.arguments import argument
from prefopt.core.batches import Demonstrations, Labelled, Pairs, Ranked, Rollouts
from prefopt.core.errors import UsageError
from prefopt.data import DataSettings, TokenizedDataset
from prefopt.data.dataset import DEFAULT_LENGTH
from prefopt.memory.segments import Segments
from prefopt.models import ModelSettings, load_tokenizer
from prefopt.models.origin import Origin, origin_of
from prefopt.rewards.encoder import is_encoder
from prefopt.rewards.reward import make_reward
from prefopt.rollouts import GenerationSettings
from prefopt.rollouts.loader import split_into_microbatches
from prefopt.training.arguments import CHECKPOINTING, merged_fields, recipe_fields
from prefopt.training.build import DataReader, check_assembly, model_settings, resolved
from prefopt.training.reference_cache import TOKENS
from prefopt.training.rollout_source import generation_settings
from prefopt.training.spec import PlanSpec

DEVICES = ("cuda", "cpu")
RANKED = 4
"""Completions of a prompt that are assumed of rankings, where there is no data."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Run(PlanSpec):
    """A training run that is planned: the arguments of `prefopt.plan`, and what follows from them."""

    made: Mapping[str, Origin] = field(
        default_factory=dict,
        repr=False,
        metadata=argument("Models that earlier runs will make, by the paths that name them here."),
    )

    # ---- the model -----------------------------------------------------------------------------------------------

    @cached_property
    def resolved(self) -> Algorithm:
        """The algorithm, with all that was said about it checked."""
        found = resolved(self.algorithm)
        if self.device not in DEVICES:
            raise UsageError(f"device={self.device!r} is not one of {', '.join(DEVICES)}.")
        check_assembly(found, self)
        return found

    @cached_property
    def settings(self) -> ModelSettings:
        return model_settings(self.resolved, self)

    def origin_of(self, given: Any) -> Origin:
        """What is known of a model."""
        return origin_of(given, self.trust_remote_code, self.made)

    @cached_property
    def origin(self) -> Origin:
        """Of the model that is trained, as it arrives."""
        return self.origin_of(self.model)

    @property
    def config(self) -> PretrainedConfig:
        """Of the base."""
        return self.origin.config

    @cached_property
    def lora_config(self) -> LoraConfig | None:
        if self.arrives_with_adapter:
            return self.origin.lora
        return self.settings.lora_config() if self.adapter is not None else None

    @property
    def arrives_with_adapter(self) -> bool:
        return self.origin.lora is not None

    @property
    def quantized(self) -> bool:
        loaded = not isinstance(self.model, (str, Path)) and self.origin.quantized
        return self.settings.quantize or loaded

    def result(self, path: str) -> Origin:
        """The model that the run will make, in a folder of that name."""
        base = self.origin.base if self.lora_config is not None else path
        return Origin(self.config, base, self.lora_config, self.quantized, self.origin.tokenizer)

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
        recipe = recipe_fields(
            self.resolved.recipe,
            trains_adapter=self.lora_config is not None,
            quantized=self.quantized,
            device=self.device,
        )
        return merged_fields(self.given_fields, recipe, self.resolved.name)

    @property
    def given_fields(self) -> dict[str, Any]:
        """The fields of ``TrainingArguments`` that the user gave; of an object, which is taken as it is, all."""
        if isinstance(self.args, TrainingArguments):
            return {one.name: getattr(self.args, one.name) for one in fields(TrainingArguments) if one.init}
        return dict(self.args or {})

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
        return self.data_settings.max_length or min(DEFAULT_LENGTH, self.origin.context or DEFAULT_LENGTH)

    @cached_property
    def reward_models(self) -> list[str]:
        """Names of the reward models among the rewards."""
        names: list[str] = []

        def load(name: str) -> Any:
            if is_encoder(name, trust_remote_code=self.trust_remote_code):
                raise UsageError(
                    f"the reward model {name} is an encoder, whose passes cannot be planned: plan without it, and add "
                    "the size of its weights."
                )
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
        if self.processing_class is None and self.origin.tokenizer is None:
            raise UsageError("data needs a tokenizer, which a config does not name: pass processing_class=.")
        tokenizer = self.processing_class or load_tokenizer(
            self.origin.tokenizer, trust_remote_code=self.trust_remote_code
        )
        seed = int(self.fields.get("seed", 42))
        return DataReader(self.resolved, tokenizer, self.data_settings, self.origin.context, seed).read(
            self.train_dataset
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
            return self._sampled(examples)
        groups = sorted(self._groups(examples), key=lambda group: -(group[0] + sum(group[1])))
        return Segments(tuple(groups[:examples]))

    @property
    def cached_segments(self) -> Segments:
        """What a reference cache scores at once: as many of the longest rows as it takes."""
        groups = sorted(self._groups(TOKENS), key=lambda group: -(group[0] + max(group[1])))
        room = max(1, TOKENS // (groups[0][0] + max(groups[0][1])))
        chosen = []
        for prompt, completions in groups:
            chosen.append((prompt, completions[:room]))
            room -= len(chosen[-1][1])
            if room == 0:
                break
        return Segments(tuple(chosen))

    def _groups(self, most: int) -> list[tuple[int, tuple[int, ...]]]:
        """Tokens of the prompts and completions of the data, or of ``most`` examples where there is none."""
        if self.dataset is None:
            return [(self.prompt, (self.max_length - self.prompt,) * self._compared)] * most
        groups = [(len(one.prompt), tuple(map(len, one.completions))) for one in self.dataset.examples]
        return [group for group in groups if group[0] + max(group[1]) <= self.max_length] or groups

    @property
    def rollout(self) -> int:
        """Prompts of a rollout."""
        return self.micro_batch * self.accumulation * self.resolved.schedule.minibatches

    def _sampled(self, prompts: int) -> Segments:
        """Of the micro-batches that a rollout is split into, the one in which the fewest examples share a prompt."""
        schedule, each = self.resolved.schedule, self._per_prompt
        count = prompts * self.accumulation * schedule.minibatches
        numbers = [(self.prompt, number) for number in range(count) for _ in range(each)]
        random = np.random.default_rng(0)
        parts: list[np.ndarray] = []
        for _ in range(schedule.passes if schedule.minibatches > 1 and each > 1 else 1):
            parts += split_into_microbatches(numbers, random, schedule.minibatches, self.accumulation)
        shares = [list(Counter(numbers[i] for i in part).values()) for part in parts]
        most = max(shares, key=lambda own: (len(own), sum(own)))
        new = self.generation_settings.max_new_tokens
        return Segments(tuple((self.prompt, (new,) * self._compared * share) for share in most))

    @cached_property
    def _compared(self) -> int:
        """Completions of an example."""
        batch = self.resolved.processor.batch if self.resolved.online else self.resolved.objective.needs.batch
        return {Pairs: 2, Ranked: RANKED, Labelled: 1, Demonstrations: 1, Rollouts: 1}.get(batch, 1)

    @property
    def _per_prompt(self) -> int:
        """Examples that a prompt gives to a rollout, at the most."""
        return max(1, self.resolved.processor.examples_per_prompt(self.generation_settings.n))

    @property
    def length_note(self) -> str:
        """Where the lengths come from."""
        if self.dataset is not None:
            return f"lengths are those of the longest of the {len(self.dataset)} examples"
        rest = "" if self.prompt_length else ": give data, or --prompt-length"
        return f"no data: every row is taken to have {self.max_length} tokens, {self.prompt} of them prompt{rest}"
