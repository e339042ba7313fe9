"""What trained models are worth: reports on held-out data."""

from prefopt.evaluation.reward_page import write_reward_report
from prefopt.evaluation.reward_report import RewardReport, ScoredPairs, report_on, score_pairs

__all__ = ["RewardReport", "ScoredPairs", "report_on", "score_pairs", "write_reward_report"]
