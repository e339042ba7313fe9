"""`prefopt check`."""

from typing import Any

from prefopt.cli.options import Said
from prefopt.cli.train import assemble
from prefopt.core.errors import UsageError
from prefopt.data import DataSettings, TokenizedDataset
from prefopt.models import load_tokenizer
from prefopt.models.origin import origin_of
from prefopt.training.build import DataReader, resolved
from prefopt.training.spec import RunSpec

DEFAULTS = {"algorithm": "dpo", "out": "nothing-is-written"}


def run_check(said: Said) -> None:
    """Print the audit of datasets for an algorithm, and the first example as the model will see it."""
    spec = RunSpec(**assemble(said, word="data.train", defaults=DEFAULTS, among=("data",)).arguments())
    if spec.train_dataset is None:
        raise UsageError("check what? Give a path or hub id, or --config FILE with data: {train: ...}.")
    tokenizer = load_tokenizer(spec.model, trust_remote_code=spec.trust_remote_code)
    # However many rows are lost, the audit says so.
    settings = DataSettings.of({**(spec.data or {}), "max_dropped": 1.0})
    context = origin_of(spec.model, spec.trust_remote_code).context
    reader = DataReader(resolved(spec.algorithm), tokenizer, settings, context, settings.seed)
    named = {"train": spec.train_dataset, "eval": spec.eval_dataset}
    given = {name: source for name, source in named.items() if source is not None}
    datasets = {name: reader.read(source) for name, source in given.items()}
    for name, dataset in datasets.items():
        if len(datasets) > 1:
            print(f"{name} data")
        for line in reader.lines(dataset):
            print(line)
    print()
    _show_first(datasets["train"], tokenizer)
    for dataset in datasets.values():
        dataset.audit.check(DataSettings.of(spec.data).max_dropped)


def _show_first(dataset: TokenizedDataset, tokenizer: Any) -> None:
    first = dataset.examples[0]
    print(f"prompt ({len(first.prompt)} tokens):\n{tokenizer.decode(first.prompt)}\n")
    for number, ids in enumerate(first.completions, 1):
        print(f"completion {number} ({len(ids)} tokens):\n{tokenizer.decode(ids)}\n")
    if first.labels:
        print("labels: " + ", ".join(f"{name}={value}" for name, value in first.labels.items()))
