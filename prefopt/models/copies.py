"""Models that stand beside the policy: copies of it, without a second copy of what never differs."""

import copy
from collections.abc import Iterable

from torch import nn


def copy_of(model: nn.Module, unused: Iterable[nn.Parameter] = ()) -> nn.Module:
    """A copy of a model that shares what is frozen in it, and ``unused`` weights."""
    shared = [weight for weight in model.parameters() if not weight.requires_grad]
    return copy.deepcopy(model, {id(weight): weight for weight in (*shared, *unused)})


def beside(policy: nn.Module, model: nn.Module) -> nn.Module:
    """A model on the policy's device. It may share some of the policy's weights, which are there already."""
    device = next(policy.parameters()).device
    if any(weight.device != device for weight in model.parameters()):
        model.to(device)
    return model
