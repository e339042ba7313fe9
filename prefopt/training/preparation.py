"""What is known of an optimizer step before any of its losses: the reference, the objective's state, and counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from prefopt.core.counts import global_counts
from prefopt.core.errors import UsageError
from prefopt.core.loss import State
from prefopt.core.micro_batch import MicroBatch
from prefopt.data import TokenizedExample, collate
from prefopt.scoring import in_half
from prefopt.scoring.scorer import Scorer
from prefopt.training.splitting import MicroBatchSplitter

# Nats per token by which policy and reference may differ at the start; equal weights give 0 on one machine.
START_TOLERANCE = 1e-3
# How many times what two passes of the same policy differ by is taken for the same, in half precision.
NOISE = 4.0


@dataclass(frozen=True)
class StepContext:
    """What is the same for all micro-batches of an optimizer step.

    Attributes:
        denominators: counts over all micro-batches and ranks, by unit.
        state: the objective's state for this step.
    """

    denominators: Mapping[str, float]
    state: State


class StepPreparer:
    """Goes over all micro-batches of a step, without gradient, before the losses do.

    Args:
        scorer: The component that turns micro-batches into the objective's container.
        policy: The model that is trained, without the wrappers of parallel training.
        accelerator: The processes that train.
        splitter: Divides micro-batches that do not fit into memory.
        starts_equal: Whether policy and reference must be the same model at step 0, which the first call checks.
    """

    def __init__(
        self,
        scorer: Scorer,
        policy: nn.Module,
        accelerator: Accelerator,
        splitter: MicroBatchSplitter,
        *,
        starts_equal: bool,
    ) -> None:
        self.scorer, self.policy, self.accelerator, self.splitter = scorer, policy, accelerator, splitter
        self.starts_equal = starts_equal

    @torch.no_grad()
    def step(self, model: nn.Module, batches: list[MicroBatch], state: State) -> tuple[list[MicroBatch], StepContext]:
        """Score the micro-batches of a step with the reference, and let the objective prepare it.

        Args:
            model: the policy, as it is trained.
            batches: of this process; from `collate`, on its device.
            state: the objective's, as the last step left it.

        Returns:
            The micro-batches with the reference's log-probs, and what is the same for all of them.
        """
        model.eval()
        observed: list[dict[str, Tensor]] = []
        with self.accelerator.autocast():
            batches = [self.with_reference(batch) for batch in batches]
            self._check_start(model, batches[0])
            for batch in batches:
                observed += self._observe(batch)
        counts = [self.scorer.counts(batch) for batch in batches]
        denominators = global_counts(counts, self.accelerator.gather, self.accelerator.device)
        return batches, StepContext(denominators, self.scorer.objective.prepare(state, self._gather(observed)))

    @torch.no_grad()
    def evaluation(self, batches: Iterable[MicroBatch], state: State) -> State:
        """The state for a whole dataset: what is remembered stays as it is, what belongs to a step spans all of it."""
        observed: list[dict[str, Tensor]] = []
        if self.scorer.objective.needs.observes:
            for batch in batches:
                observed += self._observe(self.with_reference(batch))
        gathered = self._gather(observed)
        if self.scorer.objective.needs.observes and not gathered:
            return state
        return self.scorer.objective.prepare(state, gathered, frozen=True)

    @torch.no_grad()
    def reference_logps(
        self, model: nn.Module, rows: Sequence[TokenizedExample], *, pad_token_id: int
    ) -> list[np.ndarray]:
        """Of rows with one completion each, the reference's log-probs of the tokens that count."""
        model.eval()
        batch = collate(rows, pad_token_id).to(self.accelerator.device)
        with self.accelerator.autocast():
            batch = self.with_reference(batch)
            self._check_start(model, batch)
        parts = batch.ref_logps.cpu().split(batch.rows.lengths.tolist())
        return [part.numpy() for part in parts]

    def with_reference(self, batch: MicroBatch) -> MicroBatch:
        """A micro-batch with what was missing of the reference's log-probs."""
        parts: list[tuple[int, int, MicroBatch]] = []

        def score(part: MicroBatch, start: int, end: int) -> None:
            parts.append((start, end, self.scorer.score_reference(self.policy, part)))

        self.splitter.each(batch, score)
        if len(parts) == 1:
            return parts[0][2]
        return batch.with_reference_of(parts) if self.scorer.objective.needs.reference else batch

    def _observe(self, batch: MicroBatch) -> list[dict[str, Tensor]]:
        """What `prepare` must see of a micro-batch, in one or more parts."""
        observed: list[dict[str, Tensor]] = []
        self.splitter.each(batch, lambda part, *_: observed.append(self.scorer.observe(self.policy, part)))
        return observed

    def _gather(self, observed: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Concatenate observations over micro-batches and ranks, on this rank's device."""
        if not self.scorer.objective.needs.observes:
            return {}
        parts = observed
        if self.accelerator.num_processes > 1:
            parts = gather_object([{key: value.cpu() for key, value in part.items()} for part in observed])
        device = self.accelerator.device
        return {key: torch.cat([part[key] for part in parts]).to(device) for key in parts[0]} if parts else {}

    def _check_start(self, model: nn.Module, batch: MicroBatch) -> None:
        """Policy and reference are the same model at step 0 unless another reference was asked for."""
        if not self.starts_equal:
            return
        self.starts_equal = False
        gap = self.scorer.gap(model, batch)
        # Kernels that leave the order of their sums open (experts of a mixture, on a card) show in half precision.
        if gap <= START_TOLERANCE or (in_half(model) and gap <= NOISE * self.scorer.noise(model, batch)):
            return
        raise UsageError(
            f"at step 0 the policy differs from its reference by up to {gap:.3g} nats per token, although no "
            "reference was given: the adapter does not start at zero (init_lora_weights), or the model draws "
            "random numbers (dropout). Pass reference= if that is meant."
        )
