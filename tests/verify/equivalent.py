"""Mutants that are the same loss, each with the reason: objective → text of the mutant → why nothing can tell it."""

EQUIVALENT: dict[str, dict[str, str]] = {}
