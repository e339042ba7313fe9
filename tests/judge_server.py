"""A chat-completions server on loopback, for tests of the judge."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any] | str
"""A verdict in words, or a status with a body (JSON, or bytes as they are)."""


class Server:
    """Answers with ``reply(number, first, second)``, and remembers what it was sent.

    Attributes:
        base_url: to give to the judge.
        requests: headers and bodies, in the order of arrival.
        most: how many requests were under way at once at the most.
    """

    def __init__(self, reply: Callable[[int, str, str], Reply], headers: dict[str, str]) -> None:
        self.reply = reply
        self.headers = headers
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.now = self.most = 0

    def take(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        with self.lock:
            self.requests.append((path, headers, body))
            number = len(self.requests) - 1
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            question = body["messages"][0]["content"]
            texts = re.search(r"<response_a>\n(.*)\n</response_a>.*<response_b>\n(.*)\n</response_b>", question, re.S)
            return self.reply(number, *(texts.groups() if texts else (question, "")))
        finally:
            with self.lock:
                self.now -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    # With the default of 5, connections that come at once wait a second for their second attempt.
    request_queue_size = 64


@contextmanager
def serving(reply: Callable[[int, str, str], Reply], headers: dict[str, str] | None = None) -> Iterator[Server]:
    """Serve until the block ends."""
    server = Server(reply, headers or {})
    http = _Server(("127.0.0.1", 0), _handler(server))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.base_url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = server.take(self.path, dict(self.headers), body)
            status, answer = (200, _completion(reply)) if isinstance(reply, str) else reply
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                # The client has given up.
                self.close_connection = True

        def log_message(self, *_: Any) -> None: ...

    return Handler


def _completion(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
