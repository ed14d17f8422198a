"""An OpenAI-compatible server on a real socket that answers with faults, and keeps a log of what it was paid for.

Not a mock of a client: responses are what broken servers send, down to half a body and a connection that hangs.
"""

import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG_S = 30.0
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Fault:
    """One response that is no answer."""

    name: str
    """``STATUS``, ``hang``, ``drip``, ``close``, ``cut``, ``chunks``, ``malformed``, ``empty`` or ``array``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "made up"}}'


@dataclass(frozen=True)
class Served:
    """One request as the server saw it."""

    digest: str
    """Of its body."""
    what: str
    """``answered`` once the last byte was sent, or the fault."""
    began: float
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def said(messages: Messages, seed: int) -> str:
    """An answer that depends on the request alone."""
    return f"said {len(messages)} {seed}"


class FaultServer:
    """Use as a context manager."""

    def __init__(
        self,
        *,
        say: Callable[[Messages, int], str] = said,
        plan: Callable[[int, Mapping[str, Any]], Fault | None] | None = None,
        rates: Mapping[str, float] | None = None,
        latency_s: float = 0.0,
        port: int = 0,
    ) -> None:
        """
        Args:
            say: text of the answer to messages and a seed.
            plan: the fault of the n-th request, from 0, with its body.
            rates: probabilities of faults, where there is no plan.
        """
        self.say, self.latency_s, self.finish = say, latency_s, "stop"
        self._faults = [Fault(name) for name in rates or {}]
        self._rates = [*(rates or {}).values()]
        self._random = random.Random(0)
        self.plan = plan or self._at_random
        self.served: list[Served] = []
        self.most_at_once = self._at_once = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._number = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = _QuietServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "FaultServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """What goes into ``base_url``."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def answered(self) -> Counter[str]:
        """How often each request was answered to the last byte: what the server charges for."""
        with self._lock:
            return Counter(each.digest for each in self.served if each.what == "answered")

    def counts(self) -> Counter[str]:
        """Answers and faults."""
        with self._lock:
            return Counter(each.what for each in self.served)

    def _at_random(self, number: int, body: Mapping[str, Any]) -> Fault | None:
        at = self._random.random()
        for fault, rate in zip(self._faults, self._rates, strict=True):
            at -= rate
            if at < 0:
                return fault
        return None

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        content = handler.rfile.read(length := int(handler.headers["Content-Length"]))
        if len(content) < length:  # the client has gone
            handler.close_connection = True
            return
        body, began = json.loads(content), time.monotonic()
        with self._lock:
            number, self._number = self._number, self._number + 1
            fault = self.plan(number, body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

        def log(what: str) -> None:
            with self._lock:
                self.served.append(Served(digest, what, began, dict(handler.headers.items()), body))

        if fault is not None:
            log(fault.name)
        self.stopping.wait(self.latency_s)
        try:
            self._respond(handler, fault, body)
            if fault is None:
                log("answered")
        except OSError:
            handler.close_connection = True
            if fault is None:
                log("gone")
        finally:
            with self._lock:
                self._at_once -= 1

    def _respond(self, handler: BaseHTTPRequestHandler, fault: Fault | None, body: Mapping[str, Any]) -> None:
        text = self.say(body["messages"], int(body.get("seed", 0)))
        usage = {"prompt_tokens": sum(len(m["content"].split()) for m in body["messages"]),
                 "completion_tokens": len(text.split())}  # fmt: skip
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": self.finish}
        answer = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        kind = fault.name if fault else ""
        if fault is not None and kind.isdigit():
            _send(handler, int(kind), fault.body.encode(), fault.headers)
        elif kind == "hang":
            self.stopping.wait(HANG_S)
            handler.close_connection = True
        elif kind == "close":
            handler.close_connection = True
        elif kind == "drip":
            _head(handler, len(answer))
            for byte in answer:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                if self.stopping.wait(0.1):
                    return
        elif kind == "cut":
            _head(handler, len(answer))
            handler.wfile.write(answer[: len(answer) // 2])
            handler.close_connection = True
        elif kind == "chunks":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            half = answer[: len(answer) // 2]
            handler.wfile.write(f"{len(half):x}\r\n".encode() + half + b"\r\n")
            handler.close_connection = True
        elif kind == "malformed":
            _send(handler, 200, answer[: len(answer) // 2], {})
        elif kind == "empty":
            _send(handler, 200, b'{"choices": []}', {})
        elif kind == "array":
            _send(handler, 200, b"[1, 2]", {})
        else:
            assert not kind, f"no such fault: {kind}"
            _send(handler, 200, answer, {})


class _QuietServer(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that the client has given up are no errors of the test."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _head(handler: BaseHTTPRequestHandler, length: int, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()
