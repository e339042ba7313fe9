"""A reward for short stories: they should end happily, without repeating themselves.

prefopt train grpo --model MODEL --data prompts.json --reward docs/examples/happy_endings.py:happy_ending
"""

import re

HAPPY = {"happy", "happily", "smiled", "laughed", "hugged", "loved", "love", "fun", "glad", "proud", "safe", "thank"}
SAD = {"sad", "cried", "scared", "hurt", "angry", "lost", "alone", "afraid", "sorry"}
ENDING = 20
"""Words that count as the end of a story."""


def happy_ending(prompts: list, completions: list) -> list[float]:
    """Happy words minus sad ones among the last words, three at the most, minus the share of trigrams that repeat."""
    return [min(tone(text), 3) / 3 - repetition(text) for text in completions]


def tone(text: str) -> int:
    """Different happy words minus different sad ones at the end of a text."""
    end = set(re.findall(r"[a-z]+", text.lower())[-ENDING:])
    return len(end & HAPPY) - len(end & SAD)


def repetition(text: str) -> float:
    """The share of word trigrams that have stood in the text before; 1 for fewer than three words."""
    words = re.findall(r"[a-z]+", text.lower())
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 1.0
