"""An OpenAI-compatible endpoint on this machine, in place of the judge that costs money."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeServer(ThreadingHTTPServer):
    """Answers with ``answer(prompt)``, or ``body`` if that is set, and counts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prompts: list[str] = []
        self.keys: list[str | None] = []
        self.answer: Any = lambda prompt: "1"
        self.body: bytes | None = None
        self.status = 200
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        prompt = body["messages"][0]["content"]
        server.prompts.append(prompt)
        server.keys.append(self.headers["Authorization"])
        answer = {"choices": [{"message": {"content": server.answer(prompt)}}]}
        content = json.dumps(answer).encode() if server.body is None else server.body
        self.send_response(server.status)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
