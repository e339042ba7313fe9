"""`prefopt check`."""

from typing import Any

from transformers import AutoConfig

from prefopt.algorithms import get_algorithm
from prefopt.data import DataSettings, TokenizedDataset, prepare_dataset
from prefopt.models import load_tokenizer


def run_check(data: str, model: str, algorithm: str, settings: dict[str, Any]) -> None:
    """Print the audit of a dataset for an algorithm, and the first example as the model will see it."""
    resolved = get_algorithm(algorithm)
    tokenizer = load_tokenizer(model)
    dataset = prepare_dataset(
        data,
        resolved.data_kind,
        tokenizer,
        DataSettings.of(settings),
        context=getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None),
        mismatched="mismatched" in resolved.objective.needs.observes,
        labels=() if resolved.online else resolved.objective.needs.labels,
        reader=resolved.name,
        singles=resolved.objective.needs.singles,
    )
    for line in [*dataset.notes, *dataset.audit.lines()]:
        print(line)
    print()
    _show_first(dataset, tokenizer)


def _show_first(dataset: TokenizedDataset, tokenizer: Any) -> None:
    first = dataset.examples[0]
    print(f"prompt ({len(first.prompt)} tokens):\n{tokenizer.decode(first.prompt)}\n")
    for number, ids in enumerate(first.completions, 1):
        print(f"completion {number} ({len(ids)} tokens):\n{tokenizer.decode(ids)}\n")
    if first.labels:
        print("labels: " + ", ".join(f"{name}={value}" for name, value in first.labels.items()))
