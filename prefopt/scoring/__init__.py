"""Tokens → log-probabilities of the completion tokens. Loss mathematics never sees logits."""

from prefopt.scoring.passes import in_order
from prefopt.scoring.score import Rows, rows_of, score, score_values
from prefopt.scoring.sharing import in_half, in_parts, share_prompts, why_not_shared

__all__ = [
    "Rows",
    "in_half",
    "in_order",
    "in_parts",
    "rows_of",
    "score",
    "score_values",
    "share_prompts",
    "why_not_shared",
]
