"""Tokens → log-probabilities of the completion tokens. Loss mathematics never sees logits."""

from prefopt.scoring.layout import Layout, lengths_of, to_completions
from prefopt.scoring.score import logits_of, score

__all__ = ["Layout", "lengths_of", "logits_of", "score", "to_completions"]
