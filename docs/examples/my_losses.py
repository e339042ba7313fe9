"""Somebody's DPO, with a mistake that still trains: the reference is not scaled by beta."""

import torch
import torch.nn.functional as F


def loss(
    policy_chosen_logps: torch.Tensor,
    policy_rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float = 0.1,
) -> torch.Tensor:
    policy = policy_chosen_logps - policy_rejected_logps
    reference = ref_chosen_logps - ref_rejected_logps
    return -F.logsigmoid(beta * policy - reference).mean()
