"""Load, quantize, adapt, keep a reference, export."""

from prefopt.models.adapters import is_adapter_model, save_policy
from prefopt.models.critic import Critic, make_critic
from prefopt.models.export import export_merged
from prefopt.models.load import ModelSettings, load_policy, load_tokenizer
from prefopt.models.reference import Reference, make_reference
from prefopt.models.reward_head import head_of, is_classifier, settle_padding

__all__ = [
    "Critic",
    "ModelSettings",
    "Reference",
    "export_merged",
    "head_of",
    "is_adapter_model",
    "is_classifier",
    "load_policy",
    "load_tokenizer",
    "make_critic",
    "make_reference",
    "save_policy",
    "settle_padding",
]
