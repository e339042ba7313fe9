"""What a judge model's answer says: the first, the second, or a tie."""

import re

_NOUN = r"(?i:response|answer|assistant|completion|option)"
_BRACKETED = re.compile(r"\[\[\s*(a|b|c|tie)\s*\]\]", re.IGNORECASE)
_ALONE = re.compile(rf"(?:{_NOUN}\s+)?(a|b|a tie|tie|tied|draw|equal|neither|both)", re.IGNORECASE)
_OPENING = re.compile(rf"(?:{_NOUN}\s+)?\W{{0,3}}(A|B|[Tt]ie)\W{{0,3}}(?:[.,:;)\n]|\s[-—–]\s)", re.IGNORECASE)
# Letters are capitals here: a small a is an article, and so is a capital one before a noun.
_STATED = re.compile(
    r"\b(?i:answer|verdict|winner|choice|decision|preferred|better|best|choose|prefer|select)\b"
    rf"(?:\s+(?:is|the|one|a|goes|to|{_NOUN}))*[\s:=*_\"'`(\[-]*(?P<word>A|B|[Tt]ie)\b(?!\s+tie|['’])"
)
_SUBJECT = re.compile(
    r"\b(?P<word>A|B)\b[*_\"'`)\]]*\s+(?:wins|(?:is|was|seems)\s+(?:\w+ly\s+|much\s+|far\s+|the\s+)*"
    r"(?:better|best|stronger|preferable|preferred|superior|winner))\b"
)
_TIE = re.compile(r"\b(?:tie|tied|draw|equally)\b", re.IGNORECASE)
_DENIED_TIE = re.compile(r"\b(?:not|no|isn't|never|without)\s+(?:a\s+)?(?:tie|tied|draw|equally)\b", re.IGNORECASE)
_EDGES = " \t\n.*_\"'`()[]{}:!#-"


def read_verdict(answer: str) -> float | None:
    """1 where the answer prefers A, 0 where it prefers B, ½ for a tie, None where that cannot be told.

    Thinking between ``<think>`` tags is left out. Read are, in this order: ``[[A]]`` (``[[C]]`` is a tie, as in
    MT-bench); a whole answer, a last or a first line that is nothing but a verdict (``B``, ``**A**``, ``Response B.``,
    ``tie``); an answer that opens with one ("B. Because ..."); the last statement such as "the better one is B" or "A
    is better"; the word tie. A letter that is merely mentioned says nothing.
    """
    text = re.sub(r"<think>.*?(?:</think>|$)", " ", answer, flags=re.DOTALL).strip()
    bracketed = _BRACKETED.findall(text)
    if bracketed:
        return _value(bracketed[-1])
    lines = [line.strip(_EDGES) for line in text.splitlines() if line.strip(_EDGES)]
    for line in lines[-1:] + lines[:1]:
        alone = _ALONE.fullmatch(line)
        if alone:
            return _value(alone[1])
    opening = _OPENING.match(text)
    if opening:
        return _value(opening[1])
    stated = sorted((*_STATED.finditer(text), *_SUBJECT.finditer(text)), key=lambda match: match.start("word"))
    if stated:
        return _value(stated[-1]["word"])
    return 0.5 if _TIE.search(_DENIED_TIE.sub(" ", text)) else None


def _value(word: str) -> float:
    return {"a": 1.0, "b": 0.0}.get(word.lower(), 0.5)
