"""Per-token values of sampled completions: log-probabilities of policy and reference, values of a critic."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.data import TokenizedExample, collate
from prefopt.models import Critic, Reference
from prefopt.rollouts.rollout import Group, example_of
from prefopt.scoring import score, score_values


class TokenScorer:
    """Scores sampled tokens with the weights of now.

    Args:
        policy: The model that is trained.
        pad_token_id: The token that rows are padded with.
        temperature: The temperature at which the completions were sampled.
        reference: The reference model, where its log-probabilities are asked for.
        critic: The critic, where its values are asked for.
        rows: The number of completions in a forward pass.
        autocast: Gives the context of mixed precision.
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        pad_token_id: int,
        temperature: float = 1.0,
        reference: Reference | None = None,
        critic: Critic | None = None,
        rows: int = 16,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.policy, self.pad_token_id = policy, pad_token_id
        # At temperature 0 the generator's log-probs are those of the logits as they are.
        self.temperature = temperature or 1.0
        self.reference, self.critic, self.rows, self.autocast = reference, critic, rows, autocast

    @torch.no_grad()
    def score(self, groups: Sequence[Group], needs: frozenset[str]) -> list[Group]:
        """The groups with per-token arrays: ``old_logps``, and what else of ``ref_logps`` and ``values`` is needed."""
        flat = [example_of(group.prompt, sample) for group in groups for sample in group.samples]
        # Completions of a prompt go together, for they can share it; then prompts of one length waste no padding.
        order = sorted(range(len(flat)), key=lambda i: (len(flat[i].prompt), flat[i].id))
        tokens: list[dict[str, np.ndarray]] = [{} for _ in flat]
        with self.autocast():
            for start in range(0, len(order), self.rows):
                chosen = order[start : start + self.rows]
                values = self._values([flat[i] for i in chosen], needs)
                ends = np.cumsum([len(flat[i].completions[0]) for i in chosen])
                for name, value in values.items():
                    for i, own in zip(chosen, np.split(value.float().cpu().numpy(), ends[:-1]), strict=True):
                        tokens[i][name] = own
        sizes = np.cumsum([0, *(len(group.samples) for group in groups)])
        return [replace(group, tokens=tokens[a:b]) for group, a, b in zip(groups, sizes[:-1], sizes[1:], strict=True)]

    def _values(self, examples: list[TokenizedExample], needs: frozenset[str]) -> dict[str, Tensor]:
        """What is needed of one forward pass of each role, flat over the completion tokens."""
        policy, critic = self.policy, self.critic
        was_training = policy.training
        policy.eval()
        device = next(policy.parameters()).device
        padded = collate(examples, pad_token_id=self.pad_token_id).to(device).rows
        # A head on the policy's own hidden states is read in the policy's pass, any other critic in one of its own.
        joint = critic is not None and not critic.separate
        head = critic.head if joint and "values" in needs else None
        scored = score(policy, padded, temperature=self.temperature, value_head=head)
        values = {"old_logps": scored["logps"]}
        if "ref_logps" in needs:
            with self.reference.activated(policy) as reference:
                values["ref_logps"] = score(reference, padded, temperature=self.temperature)["logps"]
        if "values" in needs and joint:
            values["values"] = scored["values"]
        elif "values" in needs:
            with critic.activated(policy) as model:
                values["values"] = score_values(model, padded, critic.head)
        policy.train(was_training)
        return values
