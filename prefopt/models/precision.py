"""In which precision this machine computes."""

import torch


def compute_dtype() -> torch.dtype:
    """bfloat16 where an accelerator computes in it, else float32."""
    # Cards that only emulate it have no fast kernels for it.
    has = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has else torch.float32
