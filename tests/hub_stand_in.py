"""As much of the Hugging Face Hub's interface as writing and reading a small repository takes, on the loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

TOKEN = "hf_of_the_tests"
COMMIT = "a" * 40


class HubStandIn(ThreadingHTTPServer):
    """Repositories by name, each its files; ``private`` are those that were asked to be. Only ``TOKEN`` writes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            self._answer({"url": f"{self.server.endpoint}/{name}", "id": name})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[match[1]][line["value"]["path"]] = content
            self._answer({"commitUrl": f"{self.server.endpoint}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+|/tree/.+)?", path):
            files = self.server.repositories.get(match[1])
            if files is None:
                self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif (match[2] or "").startswith("/tree/"):
                self._answer(
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                        for name, content in files.items()
                    ]
                )
            else:
                self._answer({"id": match[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.server.repositories.get(match[1], {}).get(match[2])
            if content is None:
                self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._answer(content, 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self._answer({"error": path}, 404)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass

    def _answer(self, content, status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(content):
    return hashlib.sha1(content).hexdigest()
