"""From micro-batches of token ids to what an objective reads: scored containers, observations, counts."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.core.batches import Batch, Completions, Labelled
from prefopt.core.errors import UsageError
from prefopt.core.micro_batch import MicroBatch, PaddedRows
from prefopt.core.objective import Objective
from prefopt.data import TokenizedDataset
from prefopt.models import Reference
from prefopt.scoring import Rows, in_order, in_parts, rows_of, score


class Scorer:
    """Scores micro-batches for one objective.

    Args:
        objective: decides what is scored and into which container it goes.
        reference: the reference model; None where the objective needs none.
        temperature: at which completions were sampled that the objective compares with their sampling law.
        value_head: of a critic on the policy's own hidden states.
    """

    def __init__(
        self,
        objective: Objective,
        reference: Reference | None,
        *,
        temperature: float = 1.0,
        value_head: nn.Module | None = None,
    ) -> None:
        needs = objective.needs
        if "mismatched" in needs.observes and needs.batch is not Labelled:
            raise UsageError(
                f"{objective.name}: a loss that needs mismatched completions (kto) cannot be part of a sum on "
                f"{needs.batch.kind}; sum it with losses on labelled rows."
            )
        self.objective = objective
        self.reference = reference
        self.temperature = temperature
        self.value_head = value_head

    def container(self, model: nn.Module, batch: MicroBatch) -> Batch:
        """The micro-batch, scored by ``model`` (with gradient if enabled), as the objective's container.

        It must have its reference log-probs, from `score_reference`.
        """
        values, labels = self._values(model, batch.rows, batch.ref_logps), batch.padded_labels
        if "values" in values:
            labels = {**labels, "values": batch.rows.layout.pad(values.pop("values"))}
        return self.objective.needs.batch.assemble(self._summed(batch.rows, values), labels)

    def completions(
        self, model: nn.Module, padded: PaddedRows, ref_logps: Float[Tensor, " k"] | None = None
    ) -> Completions:
        """Rows scored by ``model``, in their order.

        Args:
            model: the policy.
            padded: the rows.
            ref_logps: the reference's log-probs of their completion tokens, where the objective reads them.
        """
        return self._summed(padded, self._values(model, padded, ref_logps))

    def _values(self, model: nn.Module, padded: PaddedRows, ref_logps: Tensor | None) -> dict[str, Tensor]:
        """What is scored, flat; of a reward model one number a row."""
        needs = self.objective.needs
        if needs.rewards:
            return {"rewards": rewards_of(model, padded)}
        reference = self._reference_rows(model, padded) if "kl" in needs.statistics else None
        head = self.value_head if needs.values else None
        options = {"statistics": needs.statistics, "reference": reference, "value_head": head}
        values = score(model, padded, temperature=self.temperature, **options)
        return {**values, "ref_logps": ref_logps} if needs.reference else values

    def _summed(self, padded: PaddedRows, values: dict[str, Tensor]) -> Completions:
        if "rewards" in values:
            return Completions.of_rewards(values["rewards"], padded.lengths)
        return padded.layout.completions(values, tokens=self.objective.needs.tokens)

    @torch.no_grad()
    def score_reference(self, policy: nn.Module, batch: MicroBatch) -> MicroBatch:
        """The micro-batch with the reference's log-probs of its rows and its mismatched rows, where it lacks them."""
        missing: dict[str, PaddedRows] = {}
        if batch.ref_logps is None:
            missing["ref_logps"] = batch.rows
        if batch.mismatched is not None and batch.mismatched_ref_logps is None:
            missing["mismatched_ref_logps"] = batch.mismatched
        if not self.objective.needs.reference or not missing:
            return batch
        with self.reference.activated(policy) as reference:
            scored = {
                name: score(reference, padded, temperature=self.temperature)["logps"]
                for name, padded in missing.items()
            }
        return replace(batch, **scored)

    @torch.no_grad()
    def observe(self, model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
        """What the objective wants to see of this micro-batch before any loss of the step."""
        observes = self.objective.needs.observes
        if not observes:
            return {}
        if observes == {"mismatched"}:
            # The rows themselves are not looked at, so they are not scored here.
            rows = Completions.unscored(batch.rows.lengths)
        else:
            rows = self.completions(model, batch.rows, batch.ref_logps)
        container = self.objective.needs.batch.assemble(rows, batch.padded_labels)
        if "mismatched" in observes:
            mismatched = self.completions(model, batch.mismatched, batch.mismatched_ref_logps)
            container = Labelled(completions=rows, desirable=container.desirable, mismatched=mismatched)
        return self.objective.observe(container)

    def counts(self, batch: MicroBatch) -> Mapping[str, int]:
        """The units of the micro-batch, before any scoring."""
        rows = Completions.unscored(batch.rows.lengths)
        return self.objective.counts(self.objective.needs.batch.assemble(rows, batch.padded_labels))

    @torch.no_grad()
    def gap(self, model: nn.Module, batch: MicroBatch) -> float:
        """The largest difference between policy and reference, in nats per token."""
        own = score(model, batch.rows, temperature=self.temperature)["logps"]
        return (own - batch.ref_logps).abs().max().item()

    @torch.no_grad()
    def noise(self, model: nn.Module, batch: MicroBatch) -> float:
        """The largest difference between two passes of the same policy, in nats per token."""
        one, other = (score(model, batch.rows, temperature=self.temperature)["logps"] for _ in range(2))
        return (one - other).abs().max().item()

    @torch.no_grad()
    def _reference_rows(self, model: nn.Module, padded: PaddedRows) -> Rows:
        """What the reference's logits are made from, at the positions at which the policy is scored."""
        policy = getattr(model, "module", model)
        with self.reference.activated(policy) as reference:
            rows = rows_of(reference, padded)
            # A head that is the policy's too, and has an adapter, is another one as soon as the policy is back.
            shared = reference is policy and not isinstance(policy.get_output_embeddings(), nn.Linear)
            return rows.whole() if shared else rows


def rewards_of(model: nn.Module, padded: PaddedRows) -> Float[Tensor, " r"]:
    """r(x, y) of every row, [R]: the reward model's own output, at the last token before the padding.

    Rows of very different lengths are not padded to one length.
    """
    parts = in_parts(model, padded)
    rewards = [model(**part.inputs, use_cache=False).logits[:, 0] for part in parts]
    return in_order(rewards, [part.rows for part in parts])


@torch.no_grad()
def pair_accuracy(policy: nn.Module, reference: Reference | None, pairs: TokenizedDataset, rows: int) -> float:
    """The share of pairs whose chosen completion has the higher log π − log π_ref (log π without one); ties count ½.

    Args:
        policy: the model.
        reference: its reference, or None.
        pairs: a dataset of pairs.
        rows: pairs per forward pass.
    """
    was_training = policy.training
    policy.eval()
    device = next(policy.parameters()).device
    outcomes = []
    for start in range(0, len(pairs), rows):
        padded = pairs.collate([pairs[i] for i in range(start, min(start + rows, len(pairs)))]).to(device).rows
        values = score(policy, padded)
        if reference is not None:
            with reference.activated(policy) as frozen:
                values["logps"] = values["logps"] - score(frozen, padded)["logps"]
        chosen, rejected = padded.layout.completions(values).logps.chunk(2)
        outcomes.append((1 + torch.sign(chosen - rejected)) / 2)
    policy.train(was_training)
    return torch.cat(outcomes).mean().item()
