"""The policy's accuracy on held-out pairs, for a watch."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefopt.data import DataSettings, prepare_dataset
from prefopt.models import Reference
from prefopt.models.origin import context_of
from prefopt.scoring.scorer import pair_accuracy
from prefopt.training.context import TrainingContext


class HeldOutAccuracy:
    """Measures how many held-out pairs the policy orders correctly, by its log-ratio to the reference.

    Args:
        context: The run.
        reference: The reference; None for the policy's log-probability alone.
        tokenizer: The policy's tokenizer.
        settings: The settings by which pairs are read and encoded.
    """

    def __init__(
        self,
        context: TrainingContext,
        reference: Reference | None,
        tokenizer: PreTrainedTokenizerBase,
        settings: DataSettings,
    ) -> None:
        self.context, self.reference, self.tokenizer, self.settings = context, reference, tokenizer, settings

    def __call__(self, pairs: Any) -> Callable[[], float]:
        """What measures the accuracy on these pairs, with the weights of the moment."""
        policy, args = self.context.policy, self.context.args
        tokens = context_of(policy.config)
        dataset = prepare_dataset(
            pairs, "pairs", self.tokenizer, self.settings, context=tokens, reader="watch", held_out=True
        )

        def measure() -> float:
            with self.context.accelerator.autocast():
                return pair_accuracy(policy, self.reference, dataset, args.per_device_eval_batch_size)

        return measure
