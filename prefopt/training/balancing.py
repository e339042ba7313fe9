"""The load-balancing loss of a mixture of experts, which the model computes and the objective knows nothing about."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.core.micro_batch import MicroBatch
from prefopt.models.adapters import is_adapter_model
from prefopt.models.checks import balances, balancing_coefficient


class ExpertBalance:
    """Adds a policy's own load-balancing loss, times its coefficient, where the model's config asks for it.

    Each forward pass has one; a step takes their mean over its tokens. It is not linear in the tokens, so it depends a
    little on the micro-batches, as it does in every trainer.

    Args:
        policy: the model that is trained.
        rewards: whether it is a reward model, which computes none.
    """

    def __init__(self, policy: nn.Module, *, rewards: bool) -> None:
        base = policy.get_base_model() if is_adapter_model(policy) else policy
        self.base = base if balances(base.config) and not rewards else None
        self.coefficient = balancing_coefficient(base.config) or 0.0
        self._tokens = 1
        self._found: list[tuple[Tensor, int]] = []

    def begin(self, batches: Sequence[MicroBatch]) -> None:
        """A step with these micro-batches begins."""
        if self.base is not None:
            self._tokens = sum(int(batch.rows.attention_mask.sum()) for batch in batches)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the losses of the forward passes with gradient in this block, for `share`."""
        self._found = []
        if self.base is None:
            yield
            return
        handle = self.base.register_forward_hook(self._keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def share(self) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What the collected passes add to the loss of their step, and what to log."""
        if not self._found:
            return 0.0, {}
        total = sum(loss * tokens for loss, tokens in self._found)
        mean = total.detach() / sum(tokens for _, tokens in self._found)
        return self.coefficient * total / self._tokens, {"aux_loss": mean[None]}

    def _keep(self, _: nn.Module, __: tuple, inputs: Mapping[str, Any], output: Any) -> None:
        loss = getattr(output, "aux_loss", None)
        if torch.is_grad_enabled() and isinstance(loss, Tensor):
            self._found.append((loss, int(inputs["attention_mask"].sum())))
