"""What trained models are worth: reports on held-out data."""

from prefopt.evaluation.policy_page import write_policy_report
from prefopt.evaluation.policy_report import PolicyReport, Scored, compare, divergence, score_policy
from prefopt.evaluation.reward_page import write_reward_report
from prefopt.evaluation.reward_report import RewardReport, ScoredPairs, report_on, score_pairs

__all__ = [
    "PolicyReport",
    "RewardReport",
    "Scored",
    "ScoredPairs",
    "compare",
    "divergence",
    "report_on",
    "score_pairs",
    "score_policy",
    "write_policy_report",
    "write_reward_report",
]
