"""Dropout off where a policy is compared with itself."""

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def turn_off_dropout(model: nn.Module) -> list[float]:
    """Set every rate of dropout to 0, those of adapters too; the rates that were above 0.

    The rates and not the mode: in evaluation mode transformers does not checkpoint activations. Configs keep their
    rates, which are saved with the model.
    """
    rates = []
    for module in model.modules():
        # Attention and layer dropout are numbers of the module that applies them.
        numbers = [name for name, value in vars(module).items() if isinstance(value, float) and "drop" in name]
        for name in ["p"] if isinstance(module, _DropoutNd) else numbers:
            rates.append(getattr(module, name))
            setattr(module, name, 0.0)
    return [rate for rate in rates if rate > 0]
