"""Completions of the current policy: generation, advantages and selection, and the loader that feeds training."""

from typing import TYPE_CHECKING

from prefopt.core.importing import on_first_use
from prefopt.rollouts.advantage_estimators import (
    AdvantageEstimator,
    AgainstMixture,
    BatchNormalized,
    CenteredOnGroup,
    DynamicSampling,
    Gae,
    GroupRelative,
    KLShapedEstimator,
    LeaveOneOut,
    Plain,
)
from prefopt.rollouts.kl_controller import KLPenalty
from prefopt.rollouts.processor import RolloutProcessor
from prefopt.rollouts.rollout import MIXTURE, POLICY, REFERENCE, Group, Rollout, example_of
from prefopt.rollouts.sample import Sample
from prefopt.rollouts.schedule import UpdateSchedule
from prefopt.rollouts.selection import (
    AboveThreshold,
    BestAndWorst,
    BestOf,
    PolicyAgainstReference,
    Selection,
    StatisticalRejection,
)
from prefopt.rollouts.settings import GenerationSettings

if TYPE_CHECKING:
    from prefopt.rollouts.collector import RolloutCollector as RolloutCollector
    from prefopt.rollouts.draws import SampleKeys as SampleKeys
    from prefopt.rollouts.generator import Generator as Generator
    from prefopt.rollouts.generator import Mixture as Mixture
    from prefopt.rollouts.generator import TransformersGenerator as TransformersGenerator
    from prefopt.rollouts.loader import EvaluationRollouts as EvaluationRollouts
    from prefopt.rollouts.loader import PromptStream as PromptStream
    from prefopt.rollouts.loader import RolloutLoader as RolloutLoader

# What samples needs transformers and peft, which take seconds to import; what says how to learn from samples does not.
_HOME = {
    "EvaluationRollouts": "prefopt.rollouts.loader",
    "Generator": "prefopt.rollouts.generator",
    "Mixture": "prefopt.rollouts.generator",
    "PromptStream": "prefopt.rollouts.loader",
    "RolloutLoader": "prefopt.rollouts.loader",
    "SampleKeys": "prefopt.rollouts.draws",
    "RolloutCollector": "prefopt.rollouts.collector",
    "TransformersGenerator": "prefopt.rollouts.generator",
}

__getattr__ = on_first_use(__name__, _HOME)

__all__ = [
    "MIXTURE",
    "POLICY",
    "REFERENCE",
    "AboveThreshold",
    "AdvantageEstimator",
    "AgainstMixture",
    "BatchNormalized",
    "BestAndWorst",
    "BestOf",
    "CenteredOnGroup",
    "DynamicSampling",
    "EvaluationRollouts",
    "Gae",
    "GenerationSettings",
    "Generator",
    "Group",
    "GroupRelative",
    "KLPenalty",
    "KLShapedEstimator",
    "LeaveOneOut",
    "Mixture",
    "Plain",
    "PolicyAgainstReference",
    "PromptStream",
    "Rollout",
    "RolloutCollector",
    "RolloutLoader",
    "RolloutProcessor",
    "Sample",
    "SampleKeys",
    "Selection",
    "StatisticalRejection",
    "TransformersGenerator",
    "UpdateSchedule",
    "example_of",
]
