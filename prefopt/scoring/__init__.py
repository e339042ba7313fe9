"""Tokens → log-probabilities of the completion tokens. Loss mathematics never sees logits."""

from prefopt.scoring.layout import Layout, lengths_of, pad_tokens, to_completions
from prefopt.scoring.score import Rows, rows_of, score, score_values

__all__ = ["Layout", "Rows", "lengths_of", "pad_tokens", "rows_of", "score", "score_values", "to_completions"]
