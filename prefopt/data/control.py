"""Control tokens that are written in somebody's words: they stay text, and never become the token.

Before words reach the chat template, the text of every control token in them is put between two marks. What the
template writes itself has no marks. So the two can be told apart when the rendered text is tokenized, and words that
hold no such text are tokenized exactly as they would be without any of this.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from prefopt.data.examples import Text
from prefopt.data.reasons import Reason, SkipRow

# Two noncharacters of Unicode: no text that is interchanged may hold them.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
_MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")
# What an assistant writes by itself, although templates write it too and some tokenizers call it special.
_CONTENT = re.compile(r"</?(?:think|thinking|tool_calls?)>")
# Delimiters that are ordinary entries of a vocabulary.
_BRACKETED = re.compile(r"<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]")
# Tokenizers of the SentencePiece family put a space before whatever they are given, so that a text tokenized alone
# would begin with a space that it does not have. Behind an anchor it does not; the anchor is cut off.
ANCHORS = ("\n", "a", ".", ":")

Encode = Callable[[list[str]], list[list[int]]]
"""From texts without marks to their ids."""


class ControlTokens:
    """The control tokens of a tokenizer and its chat template.

    They are BOS, EOS and all other special tokens, and whatever token the chat template writes. In an assistant's words
    tokens of content, such as ``<think>`` and ``<tool_call>``, are not among them: it is the assistant who writes them.

    Args:
        tokenizer: a `PreTrainedTokenizerBase`.
        skeleton: what the chat template writes before, between and after the words of a short conversation; empty
            without a template.

    Attributes:
        openers: With what a text begins that was rendered beforehand.
        numbers: The ids of the tokens.
    """

    def __init__(self, tokenizer: Any, skeleton: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        added = [(token.content, token.special) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()]
        special = {text for text, is_special in added if is_special} | set(tokenizer.all_special_tokens)
        written = "\0".join([*_literals(tokenizer), *skeleton])
        content = {text for text, is_special in added if not is_special and text in written}
        entries = {text for text in _BRACKETED.findall(written) if self._number(text) is not None}
        # Templates write whitespace as ordinary text, although some vocabularies have tokens of it.
        everyone = {text for text in special | content | entries if text and not text.isspace()}
        assistant = {
            text for text in everyone if text in special | (entries - content) and not _CONTENT.fullmatch(text)
        }
        self._patterns = {False: _pattern(everyone), True: _pattern(assistant)}
        self.numbers = {self._number(text) for text in everyone} - {None}
        opening = _pattern(special).search(skeleton[0]) if skeleton else None
        self.openers = {tokenizer.bos_token, opening and opening.group()} - {None, ""}

    def _number(self, text: str) -> int | None:
        """The id of a token; None where the vocabulary has none of this name."""
        number = self.tokenizer.convert_tokens_to_ids(text)
        unknown = number == self.tokenizer.unk_token_id and text != self.tokenizer.unk_token
        return None if unknown else number

    def guard(self, words: Any, *, assistant: bool = False) -> Any:
        """Words with marks around the text of control tokens.

        Args:
            words: a string; or lists and mappings of strings, at any depth.
            assistant: whether the assistant speaks, so that tokens of content remain tokens.
        """
        if isinstance(words, str):
            # Marks in the data could make a token out of words; they have no meaning there.
            words = words.replace(OPEN, "\ufffd").replace(CLOSE, "\ufffd") if OPEN in words or CLOSE in words else words
            return self._patterns[assistant].sub(f"{OPEN}\\g<0>{CLOSE}", words)
        if isinstance(words, Mapping):
            return {
                self.guard(key, assistant=assistant): self.guard(v, assistant=assistant) for key, v in words.items()
            }
        if isinstance(words, (list, tuple)):
            return [self.guard(value, assistant=assistant) for value in words]
        return words

    def turn(self, message: Mapping) -> dict:
        """A message with its words guarded; its role is none of them."""
        guard = partial(self.guard, assistant=message["role"] == "assistant")
        return {key: value if key == "role" else guard(value) for key, value in message.items()}

    def found_in(self, text: Text, *, assistant: bool = False) -> bool:
        """Whether words hold the text of a control token; the ``assistant`` speaks where a string is its completion."""
        if isinstance(text, str):
            return bool(self._patterns[assistant].search(text))
        return any(OPEN in one for turn in text for one in _strings(self.turn(turn)))

    def encode(self, text: str, encode: Encode) -> list[int]:
        """Ids of a text with marks: what is between them is written out, the rest becomes tokens as always.

        Args:
            text: from a template or not, with marks.
            encode: of texts without marks.

        Raises:
            SkipRow: the tokenizer has no other way to write a control token's text than the token.
        """
        ids: list[int] = []
        place = 0
        for found in _MARKED.finditer(text):
            ids += self._piece(text[place : found.start()], encode, first=place == 0)
            # A template that splits words may leave half of a pair: it separates what is on its two sides.
            if found.group(1):
                ids += self._as_text(found.group(1), first=found.start() == 0)
            place = found.end()
        return ids + self._piece(text[place:], encode, first=place == 0)

    def _as_text(self, text: str, *, first: bool) -> list[int]:
        ids = self._piece(text, self._without_added, first=first)
        if self.numbers.isdisjoint(ids):
            return ids
        # The token is an ordinary entry of the vocabulary too; its characters one by one are not.
        ids = [number for letter in text for number in apart(letter, self._without_added)]
        if not (self.numbers - {self.tokenizer.unk_token_id}).isdisjoint(ids):
            raise SkipRow(Reason.CONTROL_TEXT, token=text)
        return ids

    def _piece(self, text: str, encode: Encode, *, first: bool) -> list[int]:
        return [] if not text else encode([text])[0] if first else apart(text, encode)

    def _without_added(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts in which no added token is looked for."""
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is None:
            return [self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
        # There `split_special_tokens` leaves added tokens that are not special.
        return [_stages(core, text) for text in texts]


def _stages(core: Any, text: str) -> list[int]:
    """What a tokenizer of the library tokenizers does with a text that holds no added token."""
    text = text if core.normalizer is None else core.normalizer.normalize_str(text)
    words = [text] if core.pre_tokenizer is None else [word for word, _ in core.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in core.model.tokenize(word)]


def written_out(text: str) -> str:
    """A text without its marks."""
    return text.replace(OPEN, "").replace(CLOSE, "")


def apart(text: str, encode: Encode) -> list[int]:
    """Ids of a text that follows another one, without the space that the tokenizer would put before it."""
    for anchor in ANCHORS:
        alone, joined = encode([anchor, anchor + text])
        if joined[: len(alone)] == alone:
            return joined[len(alone) :]
    return encode([text])[0]


def _pattern(texts: set[str]) -> re.Pattern:
    # The longest first: it may hold another one.
    return re.compile("|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text)))) or "(?!)")


def _strings(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for pair in value.items() for one in pair for text in _strings(one)]
    if isinstance(value, list):
        return [text for one in value for text in _strings(one)]
    return [value] if isinstance(value, str) else []


def _literals(tokenizer: Any) -> set[str]:
    """Whatever a chat template can write by itself."""
    import jinja2

    template = getattr(tokenizer, "chat_template", None)
    sources = template.values() if isinstance(template, Mapping) else [template] if template else []
    texts: set[str] = set()
    for source in sources:
        try:
            texts |= {text for _, kind, text in jinja2.Environment().lex(source) if kind in ("data", "string")}
        except jinja2.TemplateError:
            # An invalid template is reported where it is applied.
            continue
    return texts
