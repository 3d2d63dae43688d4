"""A hub in this process, for the real ``huggingface_hub``: repositories are made, files uploaded and fetched.

It speaks what the client says to the hub for one folder up (in the commit, or by git-LFS) and one file down, without the hub's
newer storage (Xet). Metadata of a card is read as YAML, and refused where it is none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_good"
#: Files that the hub keeps outside git.
_LARGE = (".zip", ".gz", ".safetensors")


class Hub(ThreadingHTTPServer):
    """The server; ``repositories`` maps ``(kind, id)`` to files by name, ``private`` has those of them that are."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, kind: str, repo_id: str) -> str:
        files = self.repositories[kind, repo_id]
        told = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
        return hashlib.sha1(told.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _say(self, status: int, data: Any = None, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_PUT(self) -> None:
        body, (oid,) = self._body(), re.findall(r"^/put/(\w+)$", self.path)
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self._say(200, {})

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if not self._is_known():
            return self._say(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            wanted = json.loads(body)["objects"]
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/put/{one['oid']}"}}} for one in wanted
            ]
            return self._say(200, {"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/(model|dataset)s/([\w.-]+/[\w.-]+)/(preupload|commit)/main", path)
        if found is None or (found[1], found[2]) not in self.server.repositories:
            return self._say(404, {"error": f"no {path}"})
        if found[3] == "preupload":
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = [("lfs" if name.endswith(_LARGE) else "regular") for name in names]
            files = [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in zip(names, modes, strict=True)]
            return self._say(200, {"files": files})
        return self._commit(found[1], found[2], [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted: dict[str, Any]) -> None:
        kind, repo_id = wanted.get("type", "model"), f"{wanted['organization']}/{wanted['name']}"
        if repo_id.startswith("others/"):
            return self._say(403, {"error": "You don't have the rights"})
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.server.repositories:
            return self._say(409, {"error": "You already created this repo", "url": url})
        self.server.repositories[kind, repo_id] = {}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(repo_id)
        self._say(200, {"url": url, "name": repo_id})

    def _validate(self, content: str) -> None:
        try:
            _, head, _ = content.split("---\n", 2)
            assert isinstance(yaml.safe_load(head), dict)
        except (ValueError, AssertionError, yaml.YAMLError) as error:
            return self._say(400, {"errors": [{"message": repr(error)}], "warnings": []})
        self._say(200, {"errors": [], "warnings": []})

    def _commit(self, kind: str, repo_id: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repositories[kind, repo_id]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile" and value["algo"] == "sha256"
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.commit(kind, repo_id)
        address = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}/commit/{commit}"
        self._say(200, {"success": True, "commitOid": commit, "commitUrl": address})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/([\w./-]+)", self.path)
        if found is None:
            return self._say(404, {"error": f"no {self.path}"})
        kind, repo_id = "dataset" if found[1] else "model", found[2]
        files = self.server.repositories.get((kind, repo_id))
        if files is None or (repo_id in self.server.private and not self._is_known()):
            return self._say(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        commit = self.server.commit(kind, repo_id)
        if found[3] not in ("main", commit):
            return self._say(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        if found[4] not in files:
            return self._say(404, {"error": "no such file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = files[found[4]]
        self._say(200, data, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(data).hexdigest()}"')


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub while the body runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
