"""What a trainer is put together from: checked, loaded and made before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from prefopt.algorithms import Algorithm, get_algorithm
from prefopt.core.console import say
from prefopt.core.errors import UsageError
from prefopt.core.labels import Axis, optional_labels
from prefopt.core.needs import Needs
from prefopt.core.objective import Objective
from prefopt.data import DataSettings, Encoder, TokenizedDataset, prepare_dataset
from prefopt.models import (
    ModelSettings,
    Reference,
    SavedModel,
    load_policy,
    make_reference,
    settle_padding,
)
from prefopt.models.checks import check_architecture, check_reference_tokens, check_tokens
from prefopt.models.load import check_model
from prefopt.models.origin import Origin, origin_of
from prefopt.rollouts import GenerationSettings
from prefopt.rollouts.processor import check_processor
from prefopt.training.arguments import training_arguments
from prefopt.training.fitting import fit_model, name_of, reference_tokenizer, tokenizer_of
from prefopt.training.rollout_source import RolloutSource
from prefopt.training.sources import DatasetSource, ExampleSource
from prefopt.training.spec import RunSpec


@dataclass(frozen=True)
class Parts:
    """What a trainer is put together from.

    Attributes:
        algorithm: The algorithm that is trained.
        args: The algorithm's recipe with the user's settings over it.
        policy: The model that is trained.
        tokenizer: The policy's tokenizer, or the one that was given.
        reference: The reference, where the algorithm needs one.
        source: Where examples come from.
        adapter_kind: ``"lora"`` or ``"qlora"`` where an adapter is trained.
        reader: What makes datasets of further sources.
        train_dataset: The training data, if any was given.
        eval_dataset: The held-out data, if any was given, or several by name.
    """

    algorithm: Algorithm
    args: TrainingArguments
    policy: nn.Module
    tokenizer: PreTrainedTokenizerBase
    reference: Reference | None
    source: ExampleSource
    adapter_kind: str | None
    reader: "DataReader"
    train_dataset: TokenizedDataset | None
    eval_dataset: TokenizedDataset | dict[str, TokenizedDataset] | None


def assemble(spec: RunSpec) -> Parts:
    """Load and make what a trainer works with, and say what was decided on the way.

    What costs nothing is checked first; then the data are prepared, which needs the tokenizer and the model's config
    alone; weights come last.

    Raises:
        UsageError, DataError, ModelError: What cannot work, with the remedy.
    """
    algorithm = resolved(spec.algorithm)
    check_assembly(algorithm, spec)
    data = DataSettings.of(spec.data)
    settings = model_settings(algorithm, spec)
    check_model(spec.model, settings)
    origin = origin_of(spec.model, spec.trust_remote_code)
    check_architecture(origin.config, name_of(spec.model))
    trains_adapter = spec.adapter is not None or origin.lora is not None
    args = training_arguments(
        spec.args,
        algorithm.recipe,
        algorithm=algorithm.name,
        trains_adapter=trains_adapter,
        quantized=settings.quantize,
    )
    # Data.
    tokenizer = tokenizer_of(spec)
    reader = DataReader(algorithm, tokenizer, data, origin.context, args.seed, origin.vocabulary)
    train = reader(spec.train_dataset, "train")
    # A dict of splits, as `datasets` loads it, is one source.
    several = isinstance(spec.eval_dataset, Mapping) and not hasattr(spec.eval_dataset, "column_names")
    given = spec.eval_dataset if several else {"eval": spec.eval_dataset}
    held_out = {name: reader(source, name, held_out=True) for name, source in given.items()}
    for name, dataset in held_out.items():
        if train is not None and dataset is not None and (line := shared_prompts(train, dataset)):
            say(f"{name} data: {line}")
    # Weights.
    set_seed(args.seed)
    policy = load_policy(spec.model, settings)
    fit_model(policy, algorithm, args, Encoder(tokenizer, data).stop_ids())
    if settings.rewards:
        # The padding of a reward model is known only when its head is.
        tokenizer, lines = settle_padding(policy, tokenizer)
        reader = replace(reader, tokenizer=tokenizer)
        train = _padded(train, tokenizer)
        held_out = {name: _padded(one, tokenizer) for name, one in held_out.items()}
        for line in lines:
            say(f"{algorithm.name}: {line}")
    reference = _reference(algorithm, spec, policy, origin, settings, tokenizer)
    source: ExampleSource = DatasetSource(algorithm.objective)
    if algorithm.online:
        # A resumed run continues with the rollout in its checkpoint; there is nothing to skip over.
        args.ignore_data_skip = True
        source = RolloutSource(
            algorithm,
            policy,
            tokenizer,
            reference=reference,
            reward=spec.reward,
            generation=spec.generation,
            data=data,
            trust_remote_code=spec.trust_remote_code,
        )
    return Parts(
        algorithm=algorithm,
        args=args,
        policy=policy,
        tokenizer=tokenizer,
        reference=reference,
        source=source,
        adapter_kind=("qlora" if settings.quantize else "lora") if trains_adapter else None,
        reader=reader,
        train_dataset=train,
        eval_dataset=held_out if several else held_out["eval"],
    )


def _padded(dataset: TokenizedDataset | None, tokenizer: PreTrainedTokenizerBase) -> TokenizedDataset | None:
    return None if dataset is None else dataset.padded_with(tokenizer.pad_token_id)


def resolved(algorithm: str | Objective | Algorithm) -> Algorithm:
    """The algorithm that a user's argument stands for."""
    return get_algorithm(algorithm) if isinstance(algorithm, (str, Objective)) else algorithm


def model_settings(algorithm: Algorithm, spec: RunSpec) -> ModelSettings:
    """How the policy of a run is loaded; an adapter goes back on the base that it was trained on, unless said else."""
    adapter = spec.adapter
    if adapter is None and isinstance(spec.model, (str, Path)) and SavedModel.of(spec.model).quantized:
        adapter = "qlora"
    return ModelSettings(
        adapter=adapter,
        lora=dict(spec.lora or {}),
        trust_remote_code=spec.trust_remote_code,
        rewards=algorithm.objective.needs.rewards,
    )


def _reference(
    algorithm: Algorithm,
    spec: RunSpec,
    policy: nn.Module,
    origin: Origin,
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase,
) -> Reference | None:
    if not algorithm.needs_reference:
        return None
    reference = make_reference(
        policy,
        spec.reference,
        arrived_with_adapter=origin.lora is not None,
        settings=settings,
        renewable=algorithm.schedule.renew_reference,
        cached=spec.reference_cache is not None,
    )
    if spec.reference is not None:
        other = getattr(reference, "model", policy)
        check_reference_tokens(tokenizer, reference_tokenizer(spec), policy, other)
    say(f"{algorithm.name}: the reference is {reference.description}.")
    return reference


def check_assembly(algorithm: Algorithm, spec: RunSpec) -> None:
    """Refuse what an algorithm does not use, and what it cannot do without.

    Raises:
        UsageError: With what to leave out or to give.
    """
    name, generation = algorithm.name, spec.generation
    if algorithm.processor is not None:
        check_processor(algorithm.processor, name)
    if spec.reference is not None and not algorithm.needs_reference:
        raise UsageError(f"{name} uses no reference model: leave reference= out.")
    if spec.reference_cache is not None:
        _check_cache(algorithm)
    if algorithm.online and spec.reward is None:
        raise UsageError(f"{name} needs a reward: pass reward=, a function (or --reward FILE.py:NAME).")
    if not algorithm.online and (spec.reward is not None or generation):
        which = "reward" if spec.reward is not None else "generation"
        raise UsageError(f"{name} trains on a dataset and samples nothing: leave {which}= out.")
    if spec.reference is not None and algorithm.schedule.renew_reference:
        raise UsageError(f"{name} makes the policy its own reference, round by round: leave reference= out.")
    if algorithm.online and (least := algorithm.processor.compares) > 1:
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


@dataclass(frozen=True)
class DataReader:
    """Makes datasets as an algorithm takes them.

    Attributes:
        algorithm: The algorithm.
        tokenizer: The policy's tokenizer.
        settings: How rows are read and encoded.
        context: The tokens that the model can read; None where that is not known.
        seed: The seed of the partners of mismatched rows.
        vocabulary: The tokens for which the model has an embedding; None where that is not known.
    """

    algorithm: Algorithm
    tokenizer: PreTrainedTokenizerBase
    settings: DataSettings
    context: int | None
    seed: int
    vocabulary: int | None = None

    def __call__(self, source: Any, which: str, *, held_out: bool = False) -> TokenizedDataset | None:
        """The dataset of a source, with what is worth knowing about it said.

        Args:
            source: Whatever `prepare_dataset` takes, a dataset that it made, or None.
            which: The name of the dataset in lines, such as "train".
            held_out: Whether it is for an evaluation.
        """
        if source is None:
            return None
        dataset = self.read(source, held_out=held_out)
        if isinstance(source, TokenizedDataset):
            return dataset
        for line in self.lines(dataset):
            say(f"{which} data: {line}")
        return dataset

    def read(self, source: Any, *, held_out: bool = False) -> TokenizedDataset:
        """The dataset of a source; of a source with splits, the one that is trained on or one that is held out."""
        algorithm, needs = self.algorithm, self.algorithm.objective.needs
        # What is sampled is labelled by its reward.
        labels = () if algorithm.online else needs.labels
        if isinstance(source, TokenizedDataset):
            source.check(algorithm.data_kind, labels, algorithm.name)
            self._check_tokens(source)
            return source.without_reference()
        dataset = prepare_dataset(
            source,
            algorithm.data_kind,
            self.tokenizer,
            self.settings,
            context=self.context,
            mismatched="mismatched" in needs.observes,
            seed=self.seed,
            labels=labels,
            reader=algorithm.name,
            singles=needs.singles,
            held_out=held_out,
        )
        self._check_tokens(dataset)
        return dataset

    def _check_tokens(self, dataset: TokenizedDataset) -> None:
        if self.vocabulary is not None:
            numbers = [int(ids.max()) for one in dataset.examples for ids in (one.prompt, *one.completions) if len(ids)]
            check_tokens(self.tokenizer, [*numbers, *dataset.stop_ids], self.vocabulary, "the data")

    def lines(self, dataset: TokenizedDataset) -> list[str]:
        """What is worth knowing about a dataset."""
        algorithm = self.algorithm
        unread = _unread(dataset, algorithm.objective.needs, algorithm.name)
        return [*dataset.notes, *unread, *_unbalanced(dataset, algorithm), *dataset.audit.lines()]


def shared_prompts(train: TokenizedDataset, held_out: TokenizedDataset) -> str:
    """A line about held-out examples whose prompts are trained on; empty where there are none."""
    known = {example.prompt.tobytes() for example in train.examples}
    shared = sum(example.prompt.tobytes() in known for example in held_out.examples)
    return f"{shared} of {len(held_out)} examples have a prompt that is trained on, too" if shared else ""


def _unbalanced(dataset: TokenizedDataset, algorithm: Algorithm) -> list[str]:
    """A line about labels of which one is rare, and whose weights are not set for that.

    KTO's paper recommends a ratio of the weighted numbers between 1 and 3/2 (eq. 9).
    """
    weights = [getattr(algorithm.objective, name, None) for name in ("desirable_weight", "undesirable_weight")]
    if dataset.labels is None or not all(weights):
        return []
    good, bad = int(dataset.labels.sum()), int((~dataset.labels).sum())
    if not good or not bad or 0.5 <= (weights[0] * good) / (weights[1] * bad) <= 3:
        return []
    rare, value = ("desirable", weights[1] * bad / good) if good < bad else ("undesirable", weights[0] * good / bad)
    return [
        f"warning: {algorithm.name} learns little from so few {rare} rows: set {rare}_weight={value:.3g}, so that both "
        "labels count the same"
    ]


def _unread(dataset: TokenizedDataset, needs: Needs, name: str) -> list[str]:
    """A line about numbers that the data has and the objective does not look at."""
    # The scores of a ranking give its order, which every ranked objective reads.
    known = set(optional_labels(Axis.EXAMPLE)) & set(dataset.examples[0].labels)
    unread = sorted(known - {*needs.labels, *needs.optional})
    return [f"{name} does not use {', '.join(unread)} of this data"] if unread else []
