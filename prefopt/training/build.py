"""What a trainer is put together from: checked, loaded and made before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from prefopt.algorithms import Algorithm
from prefopt.core.console import say
from prefopt.core.errors import UsageError
from prefopt.core.labels import Axis, optional_labels
from prefopt.core.needs import Needs
from prefopt.data import DataSettings, TokenizedDataset, prepare_dataset
from prefopt.models import ModelSettings, Reference, load_policy, load_tokenizer, make_reference, settle_padding
from prefopt.models.adapters import is_adapter_model
from prefopt.rollouts import GenerationSettings
from prefopt.training.arguments import training_arguments
from prefopt.training.rollout_source import OnlineRun


@dataclass(frozen=True)
class Parts:
    """What a trainer is put together from.

    Attributes:
        args: the algorithm's recipe with the user's settings over it.
        policy: the model that is trained.
        tokenizer: of the policy, or the one that was given.
        reference: where the algorithm needs one.
        online: what samples and rewards, where the algorithm does.
        adapter_kind: ``"lora"`` or ``"qlora"`` where an adapter is trained.
    """

    args: TrainingArguments
    policy: nn.Module
    tokenizer: PreTrainedTokenizerBase
    reference: Reference | None
    online: OnlineRun | None
    adapter_kind: str | None


def assemble(
    algorithm: Algorithm,
    model: str | Path | nn.Module,
    *,
    adapter: Any,
    lora: Mapping[str, Any] | None,
    reference: Any,
    cached: bool,
    reward: Any,
    generation: Any,
    data: DataSettings,
    processing_class: PreTrainedTokenizerBase | None,
    args: Mapping[str, Any] | TrainingArguments | None,
    trust_remote_code: bool,
) -> Parts:
    """Load and make what a trainer works with, and say what was settled on the way.

    Args:
        algorithm: what is trained.
        model, adapter, lora, reference, reward, generation, processing_class, args, trust_remote_code: see
            `prefopt.Trainer`.
        cached: whether a cache on disk answers for the reference.
        data: how rows are read and encoded.

    Raises:
        UsageError, ModelError: what cannot work, with the remedy.
    """
    rewards = algorithm.objective.needs.rewards
    settings = ModelSettings(
        adapter=adapter, lora=dict(lora or {}), trust_remote_code=trust_remote_code, rewards=rewards
    )
    arrived_with_adapter = _brings_adapter(model)
    trains_adapter = adapter is not None or arrived_with_adapter
    args = training_arguments(
        args,
        algorithm.recipe,
        algorithm=algorithm.name,
        trains_adapter=trains_adapter,
        quantized=settings.quantize,
    )
    set_seed(args.seed)
    policy = load_policy(model, settings)
    tokenizer = processing_class or load_tokenizer(model, trust_remote_code=trust_remote_code)
    if rewards:
        tokenizer, lines = settle_padding(policy, tokenizer)
        for line in lines:
            say(f"{algorithm.name}: {line}")
    kept: Reference | None = None
    if algorithm.needs_reference:
        kept = make_reference(
            policy,
            reference,
            arrived_with_adapter=arrived_with_adapter,
            settings=settings,
            renewable=algorithm.plan.renew_reference,
            cached=cached,
        )
        say(f"{algorithm.name}: the reference is {kept.description}.")
    online: OnlineRun | None = None
    if algorithm.online:
        # A resumed run goes on with the rollout in its checkpoint; there is nothing to skip over.
        args.ignore_data_skip = True
        online = OnlineRun(
            algorithm,
            policy,
            tokenizer,
            reference=kept,
            reward=reward,
            generation=generation,
            data=data,
            trust_remote_code=trust_remote_code,
        )
    kind = ("qlora" if settings.quantize else "lora") if trains_adapter else None
    return Parts(args, policy, tokenizer, kept, online, kind)


def check_assembly(
    algorithm: Algorithm, reference: Any, reward: Any, generation: Any, reference_cache: Any = None
) -> None:
    """Refuse what an algorithm does not use, and what it cannot do without.

    Raises:
        UsageError: with what to leave out or to give.
    """
    name = algorithm.name
    if reference is not None and not algorithm.needs_reference:
        raise UsageError(f"{name} uses no reference model: leave reference= out.")
    if reference_cache is not None:
        _check_cache(algorithm)
    if algorithm.online and reward is None:
        raise UsageError(f"{name} needs a reward: pass reward=, a function (or --reward FILE.py:NAME).")
    if not algorithm.online and (reward is not None or generation is not None):
        which = "reward" if reward is not None else "generation"
        raise UsageError(f"{name} trains on a dataset and samples nothing: leave {which}= out.")
    if reference is not None and algorithm.plan.renew_reference:
        raise UsageError(f"{name} makes the policy its own reference, round by round: leave reference= out.")
    if algorithm.online and (least := algorithm.source.compares) > 1:
        n = generation.n if isinstance(generation, GenerationSettings) else (generation or {}).get("n")
        # Any other value of n is judged where all settings of the sampling are.
        if isinstance(n, int) and 1 <= n < least:
            raise UsageError(
                f"{name} compares completions of the same prompt, and learns nothing from {n}: set n of generation "
                f"(--n) to {least} or more."
            )


def _check_cache(algorithm: Algorithm) -> None:
    """Refuse a cache of the reference's log-probs that could not be used, or would not be enough."""
    name = algorithm.name
    if not algorithm.needs_reference:
        raise UsageError(f"{name} uses no reference model: leave reference_cache= out.")
    if algorithm.online:
        raise UsageError(f"{name} samples new completions, which no cache knows: leave reference_cache= out.")
    if "kl" in algorithm.objective.needs.statistics:
        raise UsageError(
            f"{name} compares the reference's whole distribution at every token with the policy's, and a cache has one "
            "log-prob of it: leave reference_cache= out."
        )


def check_batches(algorithm: Algorithm, needs: Needs, args: TrainingArguments) -> None:
    """Refuse batch sizes with which a loss would degenerate in silence.

    Args:
        algorithm: what is trained.
        needs: of the objective that is trained.
        args: with batch sizes.

    Raises:
        UsageError: with the setting to change.
    """
    name = algorithm.name
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if "mismatched" in needs.observes and rows < 2:
        raise UsageError(
            f"{name} estimates its reference point from other examples of the step, and a step of 1 example has "
            "none: set per_device_train_batch_size or gradient_accumulation_steps to 2 or more."
        )
    if needs.coupled:
        if args.per_device_train_batch_size < 2:
            raise UsageError(f"{name} compares examples of a batch: per_device_train_batch_size must be 2 or more.")
        if args.gradient_accumulation_steps > 1:
            raise UsageError(
                f"{name} couples the examples of a batch, so accumulation would change the loss: set "
                "gradient_accumulation_steps=1 and a larger per_device_train_batch_size."
            )


def prepare_data(
    source: Any,
    which: str,
    *,
    algorithm: Algorithm,
    needs: Needs,
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    context: int | None,
    seed: int,
) -> TokenizedDataset | None:
    """A dataset as the algorithm takes it, with what is worth knowing about it said.

    Args:
        source: whatever `prepare_dataset` takes, one that it made, or None.
        which: what the dataset is called in lines, such as "train".
        algorithm: what is trained.
        needs: of the objective that is trained.
        tokenizer: of the policy.
        settings: how rows are read and encoded.
        context: tokens that the model can read.
        seed: of the partners of mismatched rows.
    """
    name, kind = algorithm.name, algorithm.data_kind
    labels = () if algorithm.online else needs.labels
    if isinstance(source, TokenizedDataset):
        source.check(kind, labels, name)
        return source.without_reference()
    if source is None:
        return None
    dataset = prepare_dataset(
        source,
        kind,
        tokenizer,
        settings,
        context=context,
        mismatched="mismatched" in needs.observes,
        seed=seed,
        labels=labels,
        reader=name,
        singles=needs.singles,
    )
    for line in [*dataset.notes, *_unread(dataset, needs, name), *dataset.audit.lines()]:
        say(f"{which} data: {line}")
    return dataset


def _unread(dataset: TokenizedDataset, needs: Needs, name: str) -> list[str]:
    """A line about numbers that the data has and the objective does not look at."""
    # The scores of a ranking give its order, which every ranked objective reads.
    known = set(optional_labels(Axis.EXAMPLE)) & set(dataset.examples[0].labels)
    unread = sorted(known - {*needs.labels, *needs.optional})
    return [f"{name} does not use {', '.join(unread)} of this data"] if unread else []


def _brings_adapter(model: str | Path | nn.Module) -> bool:
    """Whether this model, or the folder that it is loaded from, has an adapter of its own."""
    if isinstance(model, (str, Path)):
        return (Path(model) / "adapter_config.json").is_file()
    return is_adapter_model(model)
