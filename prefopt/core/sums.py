"""Weighted sums of objectives as text, ``"dpo(beta=0.2) + 0.2*sft"``, for YAML and the command line."""

import ast
import re
from typing import Any

from prefopt.core import registry
from prefopt.core.errors import UsageError
from prefopt.core.objective import Objective, combine


def build(text: str, **hyperparameters: Any) -> Objective:
    """The objective that ``text`` names: ``"dpo"``, ``"dpo(beta=0.2)"``, ``"dpo(beta=0.2) + 0.2*sft"``.

    Raises:
        UsageError: the text cannot be read, or what it names cannot be built or combined.
    """
    known = (registry.REGISTRY, registry.ALIASES, registry.AMBIGUOUS)
    if any(text in names for names in known) or not (any(sign in text for sign in "+*") or _DIFFERENCE.search(text)):
        return registry.build(text, **hyperparameters)
    if hyperparameters:
        inside = ", ".join(f"{key}={value}" for key, value in hyperparameters.items())
        raise UsageError(f"say which part of {text!r} is meant: write its hyperparameters in brackets, ({inside}).")
    try:
        return _build_node(ast.parse(text.strip(), mode="eval").body, text)
    except SyntaxError:
        raise UsageError(_CANNOT_READ.format(text)) from None


_DIFFERENCE = re.compile(r"[\w)]\s+-\s*\w")
"""A minus sign between two objectives, which is no hyphen in a name."""
_NO_DIFFERENCE = (
    "{!r} takes one loss from another: weights are at least 0, for less of a loss has no minimum. "
    "Write a sum, such as 'dpo + 0.2*sft'."
)
_CANNOT_READ = "cannot read {!r}; write a combination as 'dpo(beta=0.2) + 0.2*sft'."


def _build_node(node: ast.expr, text: str) -> Objective:
    if isinstance(node, (ast.Name, ast.Call)):
        return registry.build(ast.unparse(node))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return combine((1.0, _build_node(node.left, text)), (1.0, _build_node(node.right, text)))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, ast.Constant):
        weight = node.left.value
        if isinstance(weight, (int, float)):
            return combine((weight, _build_node(node.right, text)))
    negative = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)
    raise UsageError((_NO_DIFFERENCE if negative else _CANNOT_READ).format(text))
