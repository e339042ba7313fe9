"""From micro-batches of token ids to what an objective reads: scored containers, observations, counts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.core.batches import Batch, Completions, Labelled
from prefopt.core.errors import UsageError
from prefopt.core.objective import Objective
from prefopt.data import TokenizedDataset
from prefopt.models import Reference
from prefopt.scoring import Layout, Rows, in_order, in_parts, lengths_of, pad_tokens, rows_of, score, to_completions

MicroBatch = dict[str, Any]


class StepScorer:
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

    def container(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """The micro-batch, scored by ``model`` (with gradient if enabled), as the objective's container.

        Reference log-probs must have been added by `score_reference`.
        """
        layout, labels = _layout(batch), labels_of(batch)
        values = self._values(model, batch, layout)
        if "values" in values:
            labels["values"] = pad_tokens(layout, values.pop("values"))
        return self.objective.needs.batch.assemble(self._completions(batch, layout, values), labels)

    def completions(self, model: nn.Module, batch: Mapping[str, Any]) -> Completions:
        """All rows of a micro-batch in layout order."""
        layout = _layout(batch)
        return self._completions(batch, layout, self._values(model, batch, layout))

    def _values(self, model: nn.Module, batch: Mapping[str, Any], layout: Layout) -> dict[str, Tensor]:
        """What is scored, flat; of a reward model one number a row."""
        needs = self.objective.needs
        if needs.rewards:
            return {"rewards": rewards_of(model, batch)}
        reference = self._reference_rows(model, batch, layout) if "kl" in needs.statistics else None
        head = self.value_head if needs.values else None
        options = {"statistics": needs.statistics, "reference": reference, "value_head": head}
        values = score(model, batch, layout, temperature=self.temperature, **options)
        if needs.reference:
            values["ref_logps"] = batch["ref_logps"]
        return values

    def _completions(self, batch: Mapping[str, Any], layout: Layout, values: dict[str, Tensor]) -> Completions:
        if "rewards" in values:
            return Completions.of_rewards(values["rewards"], lengths_of(batch["completion_mask"]))
        return to_completions(layout, values, tokens=self.objective.needs.tokens)

    @torch.no_grad()
    def score_reference(self, policy: nn.Module, batch: MicroBatch) -> None:
        """Add the reference's per-token log-probs of the batch, and of its mismatched rows, where they are missing."""
        missing = [rows for rows in (batch, batch.get("mismatched")) if rows is not None and "ref_logps" not in rows]
        if not self.objective.needs.reference or not missing:
            return
        with self.reference.activated(policy) as reference:
            for rows in missing:
                rows["ref_logps"] = score(reference, rows, _layout(rows), temperature=self.temperature)["logps"]

    @torch.no_grad()
    def observe(self, model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
        """What the objective wants to see of this micro-batch before any loss of the step."""
        observes = self.objective.needs.observes
        if not observes:
            return {}
        if observes == {"mismatched"}:
            # The rows themselves are not looked at, so they are not scored here.
            rows = Completions.unscored(lengths_of(batch["completion_mask"]))
        else:
            rows = self.completions(model, batch)
        container = self.objective.needs.batch.assemble(rows, labels_of(batch))
        if "mismatched" in observes:
            mismatched = self.completions(model, batch["mismatched"])
            container = Labelled(completions=rows, desirable=container.desirable, mismatched=mismatched)
        return self.objective.observe(container)

    def counts(self, batch: MicroBatch) -> Mapping[str, int]:
        """The units of the micro-batch, before any scoring."""
        rows = Completions.unscored(lengths_of(batch["completion_mask"]))
        return self.objective.counts(self.objective.needs.batch.assemble(rows, labels_of(batch)))

    @torch.no_grad()
    def gap(self, model: nn.Module, batch: MicroBatch) -> float:
        """The largest difference between policy and reference, in nats per token."""
        own = score(model, batch, _layout(batch), temperature=self.temperature)["logps"]
        return (own - batch["ref_logps"]).abs().max().item()

    @torch.no_grad()
    def noise(self, model: nn.Module, batch: MicroBatch) -> float:
        """The largest difference between two passes of the same policy, in nats per token."""
        one, other = (score(model, batch, _layout(batch), temperature=self.temperature)["logps"] for _ in range(2))
        return (one - other).abs().max().item()

    @torch.no_grad()
    def _reference_rows(self, model: nn.Module, batch: Mapping[str, Any], layout: Layout) -> Rows:
        """What the reference's logits are made from, at the positions at which the policy is scored."""
        policy = getattr(model, "module", model)
        with self.reference.activated(policy) as reference:
            rows = rows_of(reference, batch, layout)
            # A head that is the policy's too, and has an adapter, is another one as soon as the policy is back.
            shared = reference is policy and not isinstance(policy.get_output_embeddings(), nn.Linear)
            return rows.whole() if shared else rows


def _layout(rows: Mapping[str, Tensor]) -> Layout:
    return Layout.of(rows["input_ids"], rows["completion_mask"])


def labels_of(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The labels of a micro-batch; per-token ones as rows, padded like its completions."""
    layout = _layout(batch)
    by_token = {name: pad_tokens(layout, values) for name, values in batch.get("tokens", {}).items()}
    return {**batch["extras"], **by_token}


def rewards_of(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """r(x, y) of every row, [R]: the reward model's own output, at the last token before the padding.

    Rows of very different lengths are not padded to one length.
    """
    parts = in_parts(model, batch)
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
        batch = pairs.collate([pairs[i] for i in range(start, min(start + rows, len(pairs)))])
        batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        layout = _layout(batch)
        values = score(policy, batch, layout)
        if reference is not None:
            with reference.activated(policy) as frozen:
                values["logps"] = values["logps"] - score(frozen, batch, layout)["logps"]
        chosen, rejected = to_completions(layout, values).logps.chunk(2)
        outcomes.append((1 + torch.sign(chosen - rejected)) / 2)
    policy.train(was_training)
    return torch.cat(outcomes).mean().item()
