"""Completions of the current policy: generation, rewards, selection, and the loader that feeds them to training."""

from prefopt.rollouts.generator import GenerationSettings, Generator, Sample, TransformersGenerator
from prefopt.rollouts.rewards import Reward, make_reward
from prefopt.rollouts.selection import BestOf, Group, Selection
from prefopt.rollouts.source import RolloutLoader

__all__ = [
    "BestOf",
    "GenerationSettings",
    "Generator",
    "Group",
    "Reward",
    "RolloutLoader",
    "Sample",
    "Selection",
    "TransformersGenerator",
    "make_reward",
]
