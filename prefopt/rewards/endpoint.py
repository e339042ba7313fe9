"""Asking a chat model over HTTP: an OpenAI-compatible endpoint, with retries and bounded concurrency."""

import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

from prefopt.core.errors import UsageError

RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})
"""Answers that may be another one a moment later."""

LONGEST_WAIT = 60.0
"""Seconds that one wait between attempts takes at the most, whatever the server asks for."""

LONGEST_ANSWER = 2**22
"""Bytes of an answer that are read."""


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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host, and a POST would arrive there as a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


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

    Nothing that is asked or answered is logged.

    Raises:
        UsageError: an address that is not http(s) or carries a password.
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
        # Not as a context, which would wait for requests under way even after an error.
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        try:
            futures = {pool.submit(self._persist, text, stop): i for i, text in enumerate(questions)}
            self._gather(futures, answers, max_failed)
        finally:
            # Also after an interrupt: those under way make no further attempt, the others do not begin.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return [answer for answer in answers if answer is not None]

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

    def _persist(self, question: str, stop: threading.Event) -> Answer:
        """Attempts until one succeeds, all are used up, or ``stop`` is set."""
        problem = "stopped"
        for attempt in range(self.retries + 1):
            if stop.is_set():
                break
            try:
                return self._attempt(question)
            except _Retry as error:
                problem = str(error)
                delay = self.backoff * 2**attempt * random.Random().uniform(0.5, 1.0)
                if attempt < self.retries:
                    stop.wait(min(LONGEST_WAIT, max(delay, error.after)))
        return Answer(None, problem)

    def _attempt(self, question: str) -> Answer:
        body = {**self.body, "messages": [{"role": "user", "content": question}]}
        request = urllib.request.Request(
            self.url, data=json.dumps(body).encode(), headers=self._headers(), method="POST"
        )
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                raw = response.read(LONGEST_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error, question)
        except TimeoutError:
            raise _Retry(f"no answer within {self.timeout:g} s") from None
        except urllib.error.URLError as error:
            late = isinstance(error.reason, TimeoutError)
            raise _Retry(f"no answer within {self.timeout:g} s" if late else f"{error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Retry(f"{type(error).__name__}: {error}") from None
        return _read(raw)

    def _refused(self, error: urllib.error.HTTPError, question: str) -> NoReturn:
        """Raise what an HTTP status means."""
        status = f"{error.code} {error.reason}"
        if error.code in RETRIED:
            raise _Retry(status, _seconds(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            remedy = (
                f"check the key in the environment variable {self.api_key_env}"
                if self.api_key_env
                else "name the environment variable that holds the key with api_key_env"
            )
        elif error.code == 404:
            remedy = f"check the address and the model {self.body.get('model')!r}"
        elif error.code < 400:
            remedy = "it sends requests elsewhere; give the address that it ends at"
        else:
            remedy = self._explained(error, question) or "the server takes no such request"
        raise UsageError(f"judge: {self.url} refused: {status}; {remedy}.")

    def _explained(self, error: urllib.error.HTTPError, question: str) -> str:
        """The server's own words, unless they repeat what was asked."""
        try:
            message = json.loads(error.read(LONGEST_ANSWER))["error"]["message"]
        except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
            return ""
        message = " ".join(str(message).split())
        shown = message[:200]
        pieces = (shown[i : i + 12] for i in range(len(shown) - 11))
        key = self._key()
        if any(piece in question for piece in pieces) or (key and key in message):
            return ""
        return shown.rstrip(".")

    def _key(self) -> str:
        """The key, or an empty text where there is none. A line break at its end, as files have, is no part of it."""
        return os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "prefopt"}
        if not self.api_key_env:
            return headers
        key = self._key()
        if not key:
            raise UsageError(f"judge: the environment variable {self.api_key_env} holds no key; set it.")
        if not (key.isascii() and key.isprintable()):
            # The HTTP library would refuse it with a message that shows it.
            raise UsageError(
                f"judge: the key in the environment variable {self.api_key_env} has unprintable characters."
            )
        return headers | {"Authorization": f"Bearer {key}"}


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        return False


def _read(raw: bytes) -> Answer:
    try:
        choice = json.loads(raw)["choices"][0]
        # A model that was cut while it was still thinking has no content.
        text, reason = choice["message"].get("content") or "", choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Retry("an answer that is not a chat completion in JSON") from None
    if not isinstance(text, str):
        raise _Retry("an answer whose content is not text")
    return Answer(text, str(reason))


def _seconds(header: str | None) -> float:
    """A Retry-After in seconds; the form with a date is left to the backoff."""
    return float(header) if header and header.strip().isdigit() else 0.0
