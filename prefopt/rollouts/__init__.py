"""Completions of the current policy: generation, rewards, credit and selection, and the loader that feeds training."""

from prefopt.rollouts.credit import (
    AgainstMixture,
    BatchNormalised,
    CentredOnGroup,
    Credit,
    DynamicSampling,
    Gae,
    GroupRelative,
    LeaveOneOut,
    Plain,
)
from prefopt.rollouts.ensemble import Ensemble
from prefopt.rollouts.generator import GenerationSettings, Generator, Mixture, Sample, TransformersGenerator
from prefopt.rollouts.judge import Judge
from prefopt.rollouts.maker import RolloutMaker
from prefopt.rollouts.rewards import Reward, make_reward
from prefopt.rollouts.rollout import MIXTURE, POLICY, REFERENCE, Group, Rollout, Source
from prefopt.rollouts.selection import (
    AboveThreshold,
    BestAndWorst,
    BestOf,
    PolicyAgainstReference,
    Selection,
    StatisticalRejection,
)
from prefopt.rollouts.source import EvaluationRollouts, Plan, PromptStream, RolloutLoader

__all__ = [
    "MIXTURE",
    "POLICY",
    "REFERENCE",
    "AboveThreshold",
    "AgainstMixture",
    "BatchNormalised",
    "BestAndWorst",
    "BestOf",
    "CentredOnGroup",
    "Credit",
    "DynamicSampling",
    "Ensemble",
    "EvaluationRollouts",
    "Gae",
    "GenerationSettings",
    "Generator",
    "Group",
    "GroupRelative",
    "Judge",
    "LeaveOneOut",
    "Mixture",
    "Plain",
    "Plan",
    "PolicyAgainstReference",
    "PromptStream",
    "Reward",
    "Rollout",
    "RolloutLoader",
    "RolloutMaker",
    "Sample",
    "Selection",
    "Source",
    "StatisticalRejection",
    "TransformersGenerator",
    "make_reward",
]
