"""Asking a chat model over HTTP: an OpenAI-compatible endpoint, with retries and bounded concurrency."""

import json
import os
import random
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import httpx2

from prefopt.core.errors import UsageError

RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})
"""Answers that may be another one a moment later."""

LONGEST_WAIT = 60.0
"""Seconds that one wait between attempts takes at the most, whatever the server asks for."""

LONGEST_ANSWER = 2**22
"""Bytes of an answer that are read; a longer one is refused."""

LONGEST_WORDS = 200
"""Characters of the server's own words that a message shows."""

KEY_PART = 6
"""Letters and digits of the key that may not stand together in a message."""


class Answer(NamedTuple):
    """What became of one request.

    Attributes:
        text: the model's words, or None where every attempt failed.
        problem: why, in a few words; for an answer with text, why it ended (``"stop"``, ``"length"``).
    """

    text: str | None
    problem: str


class _Retry(Exception):
    """An attempt failed in a way that may pass. ``after`` is the wait that the server asks for, in seconds."""

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after


@dataclass(frozen=True, kw_only=True)
class ChatEndpoint:
    """``POST {base_url}/chat/completions``, as vLLM, llama.cpp, Ollama and OpenAI offer it.

    Args:
        base_url: up to and without ``/chat/completions``, for instance ``http://localhost:8000/v1``.
        api_key_env: name of the environment variable that holds the key; empty for no key. The key is read for each
            request, and neither stored nor shown.
        body: what every request holds besides its messages: the model, the temperature ...
        timeout: seconds without a byte from the server after which an attempt is given up.
        retries: further attempts after a timeout, a broken connection, an unreadable answer, or a status in `RETRIED`.
        backoff: seconds before the first further attempt, doubled for each, shortened at random by up to a half.
        concurrency: requests under way at once.

    Nothing that is asked or answered is logged. Redirects are refused: one would carry the key to another host.

    Raises:
        UsageError: an address that is not http(s), or carries a password or a query.
    """

    base_url: str
    api_key_env: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    concurrency: int = 8

    def __post_init__(self) -> None:
        if "@" in self.base_url:
            raise UsageError("judge: leave the password out of the address; name a variable with api_key_env.")
        if "?" in self.base_url or "#" in self.base_url:
            # A key in a query would be shown wherever the address is, in other programs' logs too.
            raise UsageError(
                "judge: leave the query (?...) out of the address; a key goes into a variable named by api_key_env."
            )
        if not _is_address(self.base_url):
            raise UsageError(f"judge: {self.base_url!r} is no address such as http://localhost:8000/v1.")

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    def ask(self, questions: Sequence[str], *, max_failed: float = 0.0) -> list[Answer]:
        """The model's answer to each question, in their order.

        Args:
            questions: each is sent as the one user message of a conversation of its own.
            max_failed: share of the questions that may stay without an answer, in [0, 1).

        Raises:
            UsageError: the key is missing or refused, the server refuses the request (another 4xx), the first requests
                all fail, or more than ``max_failed`` do.
        """
        self._headers()
        stop = threading.Event()
        answers: list[Answer | None] = [None] * len(questions)
        client = self._client()
        # Not as a context, which would wait for requests under way even after an error.
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            futures = {pool.submit(self._persist, client, text, stop): i for i, text in enumerate(questions)}
            self._gather(futures, answers, max_failed)
        except BaseException:
            # Also after an interrupt: requests under way make no further attempt, the others do not begin. The client
            # stays open for those under way; it is closed when the last of them lets go of it.
            stop.set()
            raise
        else:
            client.close()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [answer for answer in answers if answer is not None]

    def _client(self) -> httpx2.Client:
        """One client for all requests of an `ask`, which keeps connections open between them."""
        limits = httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        try:
            return httpx2.Client(timeout=self.timeout, follow_redirects=False, limits=limits)
        except (ValueError, ImportError, OSError) as error:
            # A proxy whose scheme is unknown or needs a package that is missing, or certificates that are not there.
            raise UsageError(
                f"judge: the proxy or the certificates that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, "
                f"SSL_CERT_FILE) cannot be used: {error}; unset the variable, or name the server in NO_PROXY."
            ) from None

    def _gather(self, futures: dict[Future, int], answers: list[Answer | None], max_failed: float) -> None:
        failed, answered = 0, 0
        for future in as_completed(futures):
            answer = future.result()
            answers[futures[future]] = answer
            failed, answered = failed + (answer.text is None), answered + (answer.text is not None)
            # Without a first success there is no server there, and waiting for all to fail may take hours.
            hopeless = answered == 0 and failed >= min(self.concurrency, len(futures))
            if answer.text is None and (hopeless or failed > max_failed * len(futures)):
                raise UsageError(
                    f"judge: {self.url} gave no answer to {failed} of {failed + answered} requests, each tried "
                    f"{self.retries + 1} times; the last: {answer.problem}. Is the server up, and "
                    f"timeout={self.timeout:g} s long enough?"
                )

    def _persist(self, client: httpx2.Client, question: str, stop: threading.Event) -> Answer:
        """Attempts until one succeeds, all are used up, or ``stop`` is set."""
        problem = "stopped"
        for attempt in range(self.retries + 1):
            if stop.is_set():
                break
            try:
                return self._attempt(client, question)
            except _Retry as error:
                problem = str(error)
                delay = self.backoff * 2**attempt * random.Random().uniform(0.5, 1.0)
                if attempt < self.retries:
                    stop.wait(min(LONGEST_WAIT, max(delay, error.after)))
        return Answer(None, problem)

    def _attempt(self, client: httpx2.Client, question: str) -> Answer:
        body = {**self.body, "messages": [{"role": "user", "content": question}]}
        try:
            with client.stream(
                "POST", self.url, content=json.dumps(body).encode(), headers=self._headers()
            ) as response:
                if not response.is_success:
                    self._refused(response, question)
                raw = _read(response)
        except httpx2.TimeoutException:
            raise _Retry(f"no answer within {self.timeout:g} s") from None
        except httpx2.ConnectError as error:
            raise _Retry(self._safe(str(error)) or "no connection") from None
        except httpx2.HTTPError as error:
            # The text of the error may repeat what the server sent.
            raise _Retry(f"the connection broke ({type(error).__name__})") from None
        return self._answer(raw)

    def _refused(self, response: httpx2.Response, question: str) -> NoReturn:
        """Raise what an HTTP status means."""
        code = response.status_code
        # The server's own phrase may be anything.
        status = f"{code} {httpx2.codes.get_reason_phrase(code)}".strip()
        if code in RETRIED:
            raise _Retry(status, _seconds(response.headers.get("Retry-After")))
        if code in (401, 403):
            remedy = (
                f"check the key in the environment variable {self.api_key_env}"
                if self.api_key_env
                else "name the environment variable that holds the key with api_key_env"
            )
        elif code == 404:
            remedy = f"check the address and the model {self.body.get('model')!r}"
        elif code < 400:
            remedy = "it sends requests elsewhere; give the address that it ends at"
        else:
            remedy = self._explained(response, question) or "the server takes no such request"
        raise UsageError(f"judge: {self.url} refused: {status}; {remedy}.")

    def _explained(self, response: httpx2.Response, question: str) -> str:
        """The server's own words, unless they repeat what was asked or the key."""
        try:
            message = _parsed(_read(response))["error"]["message"]
        except (_Retry, httpx2.HTTPError, ValueError, KeyError, TypeError):
            return ""
        if not isinstance(message, str):
            return ""
        shown = self._safe(message)
        pieces = (shown[i : i + 12] for i in range(len(shown) - 11))
        return "" if any(piece in question for piece in pieces) else shown.rstrip(".")

    def _answer(self, raw: bytes) -> Answer:
        try:
            choice = _parsed(raw)["choices"][0]
            # A model that was cut while it was still thinking has no content.
            text, reason = choice["message"].get("content") or "", choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Retry("an answer that is not a chat completion in JSON") from None
        if not isinstance(text, str):
            raise _Retry("an answer whose content is not text")
        # A reason is one word in every implementation; anything else would be shown unread.
        known = isinstance(reason, str) and re.fullmatch(r"[a-z_]{1,32}", reason)
        return Answer(text, (known and self._safe(reason)) or "no reason given")

    def _safe(self, text: str) -> str:
        """Words of the server as a message may show them: one short line without control characters.

        Returns:
            An empty string where the words hold a part of the key, in whatever way it is broken up.
        """
        text, key = text[: 20 * LONGEST_WORDS], _letters(self._key())
        found, part = _letters(text), min(len(key), KEY_PART)
        if key and any(key[i : i + part] in found for i in range(len(key) - part + 1)):
            return ""
        line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
        return line[:LONGEST_WORDS]

    def _key(self) -> str:
        """The key, or an empty text where there is none. A line break at its end, as files have, is no part of it."""
        return os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""

    def _headers(self) -> dict[str, str]:
        # Uncompressed, so that the bound on the bytes that are read is one on the answer.
        headers = {"Content-Type": "application/json", "User-Agent": "prefopt", "Accept-Encoding": "identity"}
        if not self.api_key_env:
            return headers
        key = self._key()
        if not key:
            raise UsageError(f"judge: the environment variable {self.api_key_env} holds no key; set it.")
        if not (key.isascii() and key.isprintable()):
            # The HTTP client would refuse it with a message that shows it.
            raise UsageError(
                f"judge: the key in the environment variable {self.api_key_env} has unprintable characters."
            )
        return headers | {"Authorization": f"Bearer {key}"}


def _is_address(url: str) -> bool:
    try:
        # Each refuses what the others let pass; the last one is what a socket does. Reading the port checks it.
        parts, _ = urlsplit(url), httpx2.URL(url)
        (parts.hostname or "").encode("idna")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except (ValueError, httpx2.InvalidURL):
        return False


def _read(response: httpx2.Response) -> bytes:
    """The body, as the server sent it: a compressed one was not asked for and is not unpacked.

    Raises:
        _Retry: the body is too long.
    """
    found = bytearray()
    for part in response.iter_raw():
        found += part
        if len(found) > LONGEST_ANSWER:
            raise _Retry(f"an answer of more than {LONGEST_ANSWER >> 20} MiB")
    return bytes(found)


def _parsed(raw: bytes) -> Any:
    """The JSON of a body.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _letters(text: str) -> str:
    """Letters and digits alone, for comparing texts however they are broken up."""
    return "".join(one for one in text.lower() if one.isalnum())


def _seconds(header: str | None) -> float:
    """A Retry-After in seconds; the form with a date is left to the backoff."""
    return float(header) if header and header.isascii() and header.strip().isdigit() else 0.0
