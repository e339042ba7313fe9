"""`prefopt check`."""

from typing import Any

from prefopt.cli.options import Said
from prefopt.cli.train import assemble
from prefopt.core.console import quiet
from prefopt.core.errors import UsageError
from prefopt.data import DataSettings, TokenizedDataset
from prefopt.models import load_tokenizer
from prefopt.models.load import check_model
from prefopt.models.origin import origin_of
from prefopt.training.arguments import training_arguments
from prefopt.training.build import (
    DataReader,
    check_assembly,
    check_batches,
    model_settings,
    resolved,
    shared_prompts,
)
from prefopt.training.loading import step_loader
from prefopt.training.spec import RunSpec

DEFAULTS = {"algorithm": "dpo", "out": "nothing-is-written"}


def run_check(said: Said) -> None:
    """Print the audit of datasets for an algorithm, and the first example as the model will see it.

    Raises:
        PrefoptError: Whatever `prefopt train` would refuse before it loads weights.
    """
    spec = RunSpec(**assemble(said, word="data.train", defaults=DEFAULTS, among=("data",)).arguments())
    if spec.train_dataset is None:
        raise UsageError("check what? Give a path or hub id, or --config FILE with data: {train: ...}.")
    algorithm, needs = resolved(spec.algorithm), resolved(spec.algorithm).objective.needs
    if said.config:
        # Without the file of a run, nothing is known of its reward or its reference.
        check_assembly(algorithm, spec)
    model = model_settings(algorithm, spec)
    check_model(spec.model, model)
    origin = origin_of(spec.model, spec.trust_remote_code)
    with quiet():  # a check is not about the recipe
        args = training_arguments(
            spec.args,
            algorithm.recipe,
            algorithm=algorithm.name,
            trains_adapter=spec.adapter is not None or origin.lora is not None,
            quantized=model.quantize,
        )
    check_batches(algorithm, needs, args)
    tokenizer = load_tokenizer(spec.model, trust_remote_code=spec.trust_remote_code)
    # However many rows are lost, the audit says so.
    settings = DataSettings.of({**(spec.data or {}), "max_dropped": 1.0})
    reader = DataReader(algorithm, tokenizer, settings, origin.context, args.seed)
    datasets = {"train": reader.read(spec.train_dataset)}
    if spec.eval_dataset is not None:
        datasets["eval"] = reader.read(spec.eval_dataset, held_out=True)
    for name, dataset in datasets.items():
        if len(datasets) > 1:
            print(f"{name} data")
        for line in reader.lines(dataset):
            print(line)
    if "eval" in datasets and (line := shared_prompts(datasets["train"], datasets["eval"])):
        print(line)
    print()
    _show_first(datasets["train"], tokenizer)
    for name, dataset in datasets.items():
        dataset.audit.check(DataSettings.of(spec.data).max_dropped)
        if not algorithm.online:
            size = args.per_device_train_batch_size if name == "train" else args.per_device_eval_batch_size
            step_loader(dataset, args, size, needs=needs, seed=args.seed, shuffle=name == "train")


def _show_first(dataset: TokenizedDataset, tokenizer: Any) -> None:
    first = dataset.examples[0]
    print(f"prompt ({len(first.prompt)} tokens):\n{tokenizer.decode(first.prompt)}\n")
    for number, ids in enumerate(first.completions, 1):
        print(f"completion {number} ({len(ids)} tokens):\n{tokenizer.decode(ids)}\n")
    if first.labels:
        print("labels: " + ", ".join(f"{name}={value}" for name, value in first.labels.items()))
