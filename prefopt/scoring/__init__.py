"""Tokens → log-probabilities of the completion tokens. Loss mathematics never sees logits."""

from prefopt.scoring.layout import Layout, lengths_of, to_completions
from prefopt.scoring.score import Rows, rows_of, score

__all__ = ["Layout", "Rows", "lengths_of", "rows_of", "score", "to_completions"]
