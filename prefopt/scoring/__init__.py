"""Tokens → log-probabilities of the completion tokens. Loss mathematics never sees logits."""

from prefopt.scoring.layout import Layout, lengths_of, pad_tokens, to_completions
from prefopt.scoring.passes import in_order
from prefopt.scoring.score import Rows, rows_of, score, score_values
from prefopt.scoring.sharing import in_half, in_parts, share_prompts, why_not_shared

__all__ = [
    "Layout",
    "Rows",
    "in_half",
    "in_order",
    "in_parts",
    "lengths_of",
    "pad_tokens",
    "rows_of",
    "score",
    "score_values",
    "share_prompts",
    "to_completions",
    "why_not_shared",
]
