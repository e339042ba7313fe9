"""Load, quantize, adapt, keep a reference, export."""

from prefopt.models.adapters import is_adapter_model, save_policy
from prefopt.models.export import export_merged
from prefopt.models.load import ModelSettings, load_policy, load_tokenizer
from prefopt.models.reference import Reference, make_reference

__all__ = [
    "ModelSettings",
    "Reference",
    "export_merged",
    "is_adapter_model",
    "load_policy",
    "load_tokenizer",
    "make_reference",
    "save_policy",
]
