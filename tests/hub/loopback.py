"""A Hub on this machine: the part of its HTTP API that `huggingface_hub` and `load_dataset` speak, and its bad days.

Repos live in memory. `fail` and `drop` disturb the next requests of a kind; `requests` logs all of them.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_loopback"
READ_TOKEN = "hf_read_only"
USER = "ada"
_KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


@dataclasses.dataclass
class Repo:
    """Files by path; those in `large` are stored by LFS."""

    private: bool
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    large: set[str] = dataclasses.field(default_factory=set)
    commits: list[str] = dataclasses.field(default_factory=lambda: ["Initial commit"])

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(self.commits).encode()).hexdigest()


@dataclasses.dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD path" matches: a status, or a dropped connection."""

    pattern: str
    status: int | None
    headers: dict[str, str]
    times: int


class Hub:
    """The server; use as a context manager. `endpoint` is its address."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.on_request = lambda line: None
        self._faults: list[Fault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, pattern: str, status: int, times: int = 1, **headers: str) -> None:
        """Answer with an error; `Retry_After="1"` gives a header."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self._faults.append(Fault(pattern, status, headers, times))

    def drop(self, pattern: str, times: int = 1) -> None:
        """Close the connection in the middle of the request."""
        self._faults.append(Fault(pattern, None, {}, times))

    def fault_of(self, line: str) -> Fault | None:
        """The fault that this request meets, used up by it."""
        for fault in self._faults:
            if fault.times and re.search(fault.pattern, line):
                fault.times -= 1
                return fault
        return None

    def sent(self, pattern: str) -> list[str]:
        """The requests that match."""
        return [line for line in self.requests if re.search(pattern, line)]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    # -- the way in and out

    def do_GET(self) -> None:
        self.path = unquote(urlsplit(self.path).path) + (f"?{query}" if (query := urlsplit(self.path).query) else "")
        line = f"{self.command} {self.path}"
        self.hub.requests.append(line)
        self.hub.on_request(line)
        length = int(self.headers.get("Content-Length") or 0)
        if fault := self.hub.fault_of(line):
            if fault.status is None:
                self.rfile.read(length // 2)
                self.close_connection = True
                self.connection.close()
                return
            self.rfile.read(length)
            self._send(fault.status, {"error": "a bad day"}, **fault.headers)
            return
        body = self._read_chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        path = urlsplit(self.path).path
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                answer(self, body, **match.groupdict())
                return
        self._send(404, {"error": f"no such address: {line}"}, X_Error_Code="RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _authorised(self) -> bool:
        return self._may_write() or self.headers.get("Authorization") == f"Bearer {READ_TOKEN}"

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, kind: str, repo: str, write: bool = False) -> Repo | None:
        """The repo, or None once the refusal has been sent."""
        found = self.hub.repos.get((kind, repo))
        if write and not self._authorised():
            self._send(401, {"error": "Invalid username or password."})
        elif write and not (self._may_write() and repo.startswith(f"{USER}/")):
            self._send(403, {"error": "You don't have the rights"})
        elif found is None or (found.private and not self._authorised()):
            self._send(401 if not self._authorised() else 404, {"error": "not found"}, X_Error_Code="RepoNotFound")
        else:
            return found
        return None

    # -- accounts and repos

    def whoami(self, _: bytes) -> None:
        if not self._authorised():
            self._send(401, {"error": "Invalid username or password."})
            return
        self._send(200, {"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    def create(self, body: bytes) -> None:
        request = json.loads(body)
        owner, name = request.get("organization") or USER, request["name"]
        if not self._authorised():
            self._send(401, {"error": "Invalid username or password."})
            return
        if owner != USER or not self._may_write():
            self._send(403, {"error": "You don't have the rights"})
            return
        kind = f"{request.get('type', 'model')}s"
        url = f"{self.hub.endpoint}/{_KINDS[kind]}{owner}/{name}"
        private = request.get("private", request.get("visibility") == "private")
        known = (kind, f"{owner}/{name}") in self.hub.repos
        self.hub.repos.setdefault((kind, f"{owner}/{name}"), Repo(bool(private)))
        content = {"url": url, "name": f"{owner}/{name}", "id": "0", "error": "exists"}
        self._send(409 if known else 200, content)

    def auth_check(self, _: bytes, kind: str, repo: str) -> None:
        if self._repo(kind, repo, write=True):
            self._send(200, {})

    def validate_yaml(self, _: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def info(self, _: bytes, kind: str, repo: str, revision: str = "main") -> None:
        if found := self._repo(kind, repo):
            siblings = [{"rfilename": path} for path in sorted(found.files)]
            content = {"_id": "0", "id": repo, "sha": found.sha, "private": found.private, "siblings": siblings}
            self._send(200, {**content, "tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False})

    # -- writing

    def preupload(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        if found := self._repo(kind, repo, write=True):
            files = []
            for file in json.loads(body)["files"]:
                large = file["path"].endswith((".parquet", ".jpg", ".safetensors"))
                oid = _oid(found, file["path"]) if file["path"] in found.files else None
                mode = "lfs" if large else "regular"
                files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._send(200, {"files": files})

    def lfs_batch(self, body: bytes, kind_prefix: str, repo: str) -> None:
        kind = (kind_prefix or "models/").rstrip("/")
        if self._repo(kind, repo, write=True):
            objects = []
            for item in json.loads(body)["objects"]:
                if item["oid"] not in self.hub.objects:
                    upload = {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}
                    verify = {"href": f"{self.hub.endpoint}/lfs-verify"}
                    item["actions"] = {"upload": upload, "verify": verify}
                objects.append(item)
            self._send(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._send(400, {"error": "the content is not what was announced"})
            return
        self.hub.objects[oid] = body
        self._send(200, {})

    def lfs_verify(self, body: bytes) -> None:
        item = json.loads(body)
        known = len(self.hub.objects.get(item["oid"], b"")) == item["size"]
        self._send(200 if known else 404, {})

    def commit(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        if not (found := self._repo(kind, repo, write=True)):
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                found.commits.append(value["summary"])
            elif line["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.objects[value["oid"]]
                found.large.add(value["path"])
            elif line["key"] == "deletedFile":
                del found.files[value["path"]]
        url = f"{self.hub.endpoint}/{_KINDS[kind]}{repo}/commit/{found.sha}"
        self._send(200, {"commitUrl": url, "commitOid": found.sha, "hookOutput": "", "success": True})

    # -- reading

    def tree(self, _: bytes, kind: str, repo: str, revision: str, folder: str = "") -> None:
        if not (found := self._repo(kind, repo)):
            return
        query = parse_qs(urlsplit(self.path).query)
        recursive = query.get("recursive", [""])[0].lower() in ("1", "true")
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        entries: dict[str, dict] = {}
        for path in sorted(found.files):
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                if recursive or depth == 1:
                    name = prefix + "/".join(parts[:depth])
                    entries[name] = {"type": "directory", "oid": "0", "size": 0, "path": name}
            if recursive or len(parts) == 1:
                entries[path] = _entry(found, path)
        if prefix and not entries:
            self._send(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            return
        self._send(200, list(entries.values()))

    def paths_info(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        if found := self._repo(kind, repo):
            try:
                paths = json.loads(body)["paths"]
            except json.JSONDecodeError:
                paths = parse_qs(body.decode())["paths"]
            folders = {path.rpartition("/")[0] for path in found.files}
            entries = [_entry(found, path) for path in paths if path in found.files]
            entries += [{"type": "directory", "oid": "0", "size": 0, "path": path} for path in paths if path in folders]
            self._send(200, entries)

    def resolve(self, _: bytes, kind_prefix: str, repo: str, revision: str, path: str) -> None:
        kind = (kind_prefix or "models/").rstrip("/")
        if not (found := self._repo(kind, repo)):
            return
        if path not in found.files:
            self._send(404, {"error": "no such file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=found.sha)
            return
        content = found.files[path]
        headers = {"ETag": f'"{_oid(found, path)}"', "X_Repo_Commit": found.sha, "Accept_Ranges": "bytes"}
        headers |= {"X_Linked_Etag": f'"{_oid(found, path)}"', "X_Linked_Size": str(len(content))}
        headers["Content_Type"] = "application/octet-stream"
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1) + 1
            headers["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self._send(206, content[start:stop], **headers)
        else:
            self._send(200, content, **headers)


def _oid(repo: Repo, path: str) -> str:
    content = repo.files[path]
    if path in repo.large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _entry(repo: Repo, path: str) -> dict:
    entry = {"type": "file", "oid": _oid(repo, path), "size": len(repo.files[path]), "path": path}
    if path in repo.large:
        entry["lfs"] = {"oid": _oid(repo, path), "size": entry["size"], "pointerSize": 134}
    return entry


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_REPO}"
_FILES = rf"/(?P<kind_prefix>datasets/|spaces/)?{_REPO}"
_ROUTES = [
    (r"/api/whoami-v2", _Handler.whoami),
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.validate_yaml),
    (rf"{_API}/auth-check/write", _Handler.auth_check),
    (rf"{_API}(/revision/(?P<revision>.+))?", _Handler.info),
    (rf"{_API}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"{_API}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?", _Handler.tree),
    (rf"{_API}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    (rf"{_FILES}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"/lfs/(?P<oid>\w+)", _Handler.lfs_upload),
    (r"/lfs-verify", _Handler.lfs_verify),
    (rf"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A Hub for the length of a block."""
    with Hub() as hub:
        yield hub
