"""A server on this machine that answers the few calls of huggingface_hub that are used."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest

TOKEN = "hf_loopback"


class Hub:
    """Repositories by name: their commits, each a mapping of files; ``private`` ones, requests."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def sha(self, repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.commits[repo]
        if not commits:  # of a repository that was just created
            return "0" * 40, {}
        names = {self.sha(repo, i): i for i in range(len(commits))}
        names |= {"main": len(commits) - 1}
        if revision not in names:
            return None
        return self.sha(repo, names[revision]), commits[names[revision]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *rest: Any) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b'{"error":"no"}', X_Error_Code=code, X_Error_Message="no")

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.hub.asked.append((self.command, path))
        parts = path.removeprefix("api/models/").split("/")
        repo = "/".join(parts[:2])
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo not in self.hub.commits or (repo in self.hub.private and not known):
            return self._refuse(404 if known else 401, "RepoNotFound")
        found = self.hub.find(repo, parts[3] if len(parts) > 3 else "main")
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        sha, files = found
        if parts[2] == "resolve":
            if (name := "/".join(parts[4:])) not in files:
                return self._refuse(404, "EntryNotFound")
            body = files[name]
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self._send(200, body, ETag=etag, X_Repo_Commit=sha)
        if parts[2] == "tree":
            return self._json(
                [
                    {"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()}
                    for k, v in files.items()
                ]
            )
        return self._json(
            {"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]}
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.hub.asked.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Unauthorized")
        if path == "api/repos/create":
            given = json.loads(body)
            repo = "/".join(part for part in (given.get("organization"), given["name"]) if part)
            self.hub.commits.setdefault(repo, [])
            if given.get("private") or given.get("visibility") == "private":
                self.hub.private.add(repo)
            return self._json({"url": f"{self.hub.url}/{repo}"})
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repo, action = "/".join(path.split("/")[2:4]), path.split("/")[4]
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            return self._json({"files": [{**m, "shouldIgnore": False} for m in modes]})
        lines = [json.loads(line) for line in body.splitlines()]
        new = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        gone = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
        commits = self.hub.commits[repo]
        before = commits[-1] if commits else {}
        commits.append({**{k: v for k, v in before.items() if k not in gone}, **new})
        sha = self.hub.sha(repo, len(commits) - 1)
        return self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers on a free port of 127.0.0.1."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def in_its_place(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A server in the place of the Hub, no token, and an empty cache in the folder."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_TOKEN_PATH": str(folder / "token"),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield server
