"""A stand-in for the Hugging Face hub: enough to publish an SAE and load it back."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories as {name: {path: content}}; every file travels inside its commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What points a process's hub client here."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "HF_TOKEN": "hf_stand_in",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            request = json.loads(body)
            name = "/".join(filter(None, (request.get("organization"), request["name"])))
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{self.server.environment['HF_ENDPOINT']}/{name}", "name": name})
            return
        if parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
            return
        files = self.server.repositories["/".join(parts[2:4])]
        if parts[4] == "preupload":
            asked = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self._json({"files": [{"path": file["path"], **plain} for file in asked]})
            return
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.server.environment['HF_ENDPOINT']}/{'/'.join(parts[2:4])}/commit/0"
        self._json({"commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""})

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        is_info = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_info else parts[:2])
        files = self.server.repositories.get(name)
        if files is None:
            self._missing("RepoNotFound")
        elif is_info:
            self._json({"id": name, "sha": "0" * 40, "siblings": [{"rfilename": f} for f in files]})
        elif (content := files.get("/".join(parts[4:]))) is None:  # owner/name/resolve/main/…
            self._missing("EntryNotFound")
        else:
            large = parts[-1].endswith(".safetensors")  # kept by LFS, which names files so
            etag = f'"{(hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()}"'
            self._send(content, {"ETag": etag, "X-Repo-Commit": "0" * 40})

    do_HEAD = do_GET

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(b"", {"X-Error-Code": code}, status=404)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
