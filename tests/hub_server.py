"""A small Hugging Face Hub on the loopback interface: the part of its file API that downloads and pushes really use.

Repositories are kept in memory as commits, so that a pinned revision gives other bytes than ``main``. As on the real
Hub, safetensors and Parquet files carry the SHA-256 of their content as ETag (they are LFS files) and all else its git
hash. What the client is told to upload as ``regular`` comes with the commit, so no LFS or Xet upload is needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
"""The one token that may push and read gated repositories."""

LFS = (".safetensors", ".parquet")
"""Endings of the files that the Hub keeps in LFS."""

TRUNCATIONS = 5
"""So often breaks a truncated file off; never to end would let a client that does not give up hang."""

FIRST_COMMIT = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
"""What the Hub puts into a repository when it is created."""

Fault = Literal["gated", "silent", "silent_files", "down", "slow", "truncated", "cut", "corrupted"]
"""What a repository does wrong.

``gated``: files need the token; ``silent``: accepts every request and never answers; ``silent_files``: only files do
not answer; ``down``: status 503; ``slow``: two seconds for safetensors, in eight pieces; ``truncated``: half of the
announced bytes of safetensors at the first :data:`TRUNCATIONS` attempts; ``cut``: safetensors that are shorter than
the size announced before; ``corrupted``: one other byte.
"""


@dataclass
class Repository:
    """Commits (SHA → path → content), oldest first, and what branches and tags point at."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put a commit on top of a branch and return its 40 hexadecimal digits."""
        former = self.commits.get(self.names.get(branch, ""), {})
        content = {**former, **files}
        seed = repr((len(self.commits), sorted(content.items()))).encode()
        commit = hashlib.sha1(seed).hexdigest()
        self.commits[commit] = content
        self.names[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        return self.names.get(revision) or (revision if revision in self.commits else None)


class HubServer:
    """The server, with its repositories, the requests that it has seen and its faults.

    Attributes:
        url: what ``HF_ENDPOINT`` would be.
        repositories: id → repository; that of a data set is ``datasets/organisation/name``.
        requests: method and path of every request, in order.
        faults: repository id → what it does wrong.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.faults: dict[str, Fault] = {}
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of silent requests and stop."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, repository: str, files: str | Path | Mapping[str, bytes], branch: str = "main") -> str:
        """Commit a folder, or files by name, to a repository that is created when needed; returns the commit."""
        if not isinstance(files, Mapping):
            files = {path.name: path.read_bytes() for path in Path(files).iterdir() if path.is_file()}
        return self.repositories.setdefault(repository, Repository()).add(files, branch)

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        found = self.repositories[repository]
        return found.commits[found.names.get(revision, revision)]

    def fetched(self) -> set[str]:
        """Names of the files whose content or size was asked for."""
        return {request.rpartition("/")[2] for request in self.requests if "/resolve/" in request}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET
    do_POST = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate_yaml(json.loads(body)["content"])
        if match := re.fullmatch(r"/api/(?:models|(datasets))/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path):
            name, action, revision = match[2], match[3] or "revision", match[4] or "main"
        elif match := re.fullmatch(r"(?:/(datasets))?/([^/]+/[^/]+)/resolve/([^/]+|refs/[^/]+/[^/]+)/(.+)", path):
            name, action, revision = match[2], "resolve", match[3]
        else:
            return self._refuse(404, "")
        if match[1]:
            name = f"datasets/{name}"
        fault = self.hub.faults.get(name)
        if fault == "silent" or (fault == "silent_files" and action == "resolve"):
            self.hub.closing.wait(60)
            self.close_connection = True
            return None
        if fault == "down":
            return self._refuse(503, "")
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        if action in ("preupload", "commit", "branch") and not self._may_write():
            return self._refuse(401, "")
        if action == "preupload":
            return self._preupload(json.loads(body))
        if action == "commit":
            return self._commit(name, repository, revision, body)
        if action == "branch":
            repository.names.setdefault(revision, repository.names.get("main", ""))
            return self._send({})
        commit = repository.resolve(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        if action == "resolve":
            return self._file(repository.commits[commit], commit, match[4], fault)
        if action == "tree":
            return self._send([_entry(path, data) for path, data in repository.commits[commit].items()])
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        return self._send({"id": name, "sha": commit, "siblings": siblings, "gated": fault == "gated"})

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'nobody'}/{asked['name']}"
        if self.hub.faults.get(name) == "silent":
            self.hub.closing.wait(60)
            self.close_connection = True
            return None
        if not self._may_write():
            return self._refuse(401, "")
        if name in self.hub.repositories:
            return self._send({"url": f"{self.hub.url}/{name}"}, status=409)
        self.hub.add(name, FIRST_COMMIT)
        return self._send({"url": f"{self.hub.url}/{name}"})

    def _validate_yaml(self, content: str) -> None:
        """As strict as the Hub where it matters here: valid YAML, and a base model that is an id."""
        match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        found = yaml.safe_load(match[1]) if match else {}
        base = found.get("base_model") or "none/none"
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            return self._send({"errors": [{"message": f'"base_model" is not valid: {base}'}]}, status=400)
        return self._send({"errors": [], "warnings": []})

    def _preupload(self, asked: dict[str, Any]) -> None:
        self._send(
            {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked["files"]
                ]
            }
        )

    def _commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        files = {}
        for line in body.splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
        commit = repository.add(files, branch)
        self._send({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _file(self, files: dict[str, bytes], commit: str, path: str, fault: Fault | None) -> None:
        if fault == "gated" and not self._may_write():
            return self._refuse(401, "GatedRepo")
        if path not in files:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data, is_weights = files[path], path.endswith(LFS)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(data)}"', "Accept-Ranges": "bytes"}
        if is_weights:
            headers |= {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        if self.command == "GET" and is_weights and fault == "corrupted":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.command == "GET" and is_weights and fault == "cut":
            data = data[: len(data) // 2]
        self.send_response(200)
        for header, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        attempts = sum(request.startswith("GET ") and request.endswith(path) for request in self.hub.requests)
        if is_weights and fault == "truncated" and attempts <= TRUNCATIONS:
            # As a proxy that ignores Range: every attempt starts anew and breaks off at the same place.
            data = data[: len(data) // 2]
            self.close_connection = True
        pieces = 8 if is_weights and fault == "slow" else 1
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            self.wfile.write(data[start : start + size])
            if pieces > 1:
                time.sleep(2 / pieces)
        return None

    def _send(self, answer: Any, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in {"X-Error-Code": code, **(headers or {}), "Content-Length": "0"}.items():
            self.send_header(header, value)
        self.end_headers()


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git_hash(data)}
    if path.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry
