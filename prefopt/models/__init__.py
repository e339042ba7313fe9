"""Load, quantize, adapt, keep a reference, export."""

from prefopt.models.adapters import is_adapter_model, save_policy
from prefopt.models.critic import Critic, make_critic
from prefopt.models.export import export_merged
from prefopt.models.load import ModelSettings, load_policy, load_tokenizer, load_trained
from prefopt.models.reference import Reference, make_reference
from prefopt.models.reward_head import head_of, is_classifier, settle_padding
from prefopt.models.saved import RUN_FILE, SavedModel

__all__ = [
    "RUN_FILE",
    "Critic",
    "ModelSettings",
    "Reference",
    "SavedModel",
    "export_merged",
    "head_of",
    "is_adapter_model",
    "is_classifier",
    "load_policy",
    "load_tokenizer",
    "load_trained",
    "make_critic",
    "make_reference",
    "save_policy",
    "settle_padding",
]
