"""A Hugging Face Hub on loopback, for the real client: repositories, LFS uploads, commits, downloads, tags, faults.

Owns nothing of mtloop. Everything is kept in memory. A client must be started with HF_ENDPOINT=server.url and
HF_HUB_DISABLE_XET=1 in its environment: huggingface_hub reads both once, when it is imported.

Source: the requests that huggingface_hub 1.33 and 2.4 make.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

USER = "tester"
ORGANISATION = "team"  # the user may write there
WRITE_TOKEN = "write-token-of-the-tests"  # not like a real one: only who knows it can strike it out
READ_TOKEN = "hf_readTokenOfTheTests"
LFS_SUFFIXES = (".safetensors", ".spm", ".bin")


class Commit(NamedTuple):
    """A commit and all files as they stand after it: path -> sha256."""

    oid: str
    message: str
    files: dict[str, str]


@dataclass
class Repo:
    """A repository, its commits oldest first."""

    name: str
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        """Return the commit of main, of a tag or of an id."""
        wanted = self.commits[-1].oid if revision == "main" else self.tags.get(revision, revision)
        found = [commit for commit in self.commits if commit.oid == wanted]
        if not found:
            raise Refusal(404, "no such revision", "RevisionNotFound")
        return found[0]


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" holds the pattern: a status, or silence."""

    pattern: str
    times: int
    status: int | None = None
    silence_s: float | None = None  # None: until the server closes


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str, code: str = "", **body: Any) -> None:
        self.status, self.text, self.code = status, text, code
        self.body = {"error": text, **body}


class HubServer:
    """The server; a context manager.

    Attributes:
        url: What HF_ENDPOINT must be.
        requests: Every request received, as "METHOD /path".
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._faults: list[Fault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def commits(self, repo: str) -> list[tuple[str, dict[str, str]]]:
        """Return (message, all files after it as path -> sha256) of each commit but the empty first."""
        with self.lock:
            return [(commit.message, commit.files) for commit in self.repos[repo].commits[1:]]

    def fail(self, path_regex: str, status: int, times: int = 1) -> None:
        """Answer the next `times` requests whose "METHOD /path" holds the pattern with a status."""
        self._faults.append(Fault(path_regex, times, status=status))

    def hang(self, path_regex: str, times: int = 1_000_000, *, silence_s: float | None = None) -> None:
        """Say nothing to matching requests for `silence_s` seconds and then serve them; None: for ever."""
        self._faults.append(Fault(path_regex, times, silence_s=silence_s))

    def mishandle(self, request: str, authorization: str) -> None:
        """Let the first fault that matches happen; a status comes with a text that gives the token away."""
        with self.lock:
            self.requests.append(request)
            fault = next((f for f in self._faults if f.times > 0 and re.search(f.pattern, request)), None)
            if fault is None:
                return
            fault.times -= 1
        if fault.status is not None:
            raise Refusal(fault.status, f"injected for {authorization}")
        self.closing.wait(fault.silence_s)
        if self.closing.is_set():
            raise ConnectionAbortedError


class _Handler(BaseHTTPRequestHandler):
    """Reads a request whole, finds its route and answers JSON or bytes."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub: HubServer = self.server.hub
        path = unquote(urlsplit(self.path).path)
        body = self._read_body()
        try:
            hub.mishandle(f"{self.command} {path}", self.headers.get("Authorization") or "")
            with hub.lock:
                self._answer(200, self._route(hub, path, body))
        except Refusal as refusal:
            self._answer(refusal.status, refusal.body, {"X-Error-Code": refusal.code, "X-Error-Message": refusal.text})
        except ConnectionError:  # the client gave up, or the server is closing
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self, hub: HubServer, path: str, body: bytes) -> Any:
        verb = "GET" if self.command == "HEAD" else self.command
        for method, pattern, may, serve in ROUTES:
            if method == verb and (match := re.fullmatch(pattern, path)):
                self._check_token(may)
                groups = match.groupdict()
                name = groups.pop("repo", None)
                if name is not None and name not in hub.repos:
                    raise Refusal(404, "no such repository", "RepoNotFound")
                return serve(hub, body, *([hub.repos[name]] if name else []), **groups)
        raise Refusal(404, f"no route for {verb} {path}")

    def _check_token(self, may: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if may == "anyone":  # an upload's address is its own permission
            return
        if token not in (WRITE_TOKEN, READ_TOKEN):
            raise Refusal(401, "Invalid username or password.")
        if may == "write" and token != WRITE_TOKEN:
            raise Refusal(403, "Forbidden: this token may only read")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        if not isinstance(content, Download):
            content = Download(json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})
        payload, headers = content
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(payload))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)


class Download(NamedTuple):
    """A file's bytes and the headers that describe it."""

    payload: bytes
    headers: dict[str, str]


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def blob_id(hub: HubServer, path: str, sha: str) -> str:
    """Return the id by which the client recognises a file: sha256 of an LFS file, git's sha1 of any other."""
    content = hub.blobs[sha]
    return sha if is_lfs(path) else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def create_repo(hub: HubServer, body: bytes) -> Any:
    asked = json.loads(body)
    owner = asked.get("organization") or USER
    name = f"{owner}/{asked['name']}"
    if owner not in (USER, ORGANISATION):
        raise Refusal(403, f"Forbidden: you may not write to {owner}")
    if name in hub.repos:
        raise Refusal(409, "You already created this model repo", url=f"{hub.url}/{name}")
    first = hashlib.sha1(name.encode()).hexdigest()
    hub.repos[name] = Repo(name, [Commit(first, "initial commit", {})])
    return {"url": f"{hub.url}/{name}"}


def preupload(hub: HubServer, body: bytes, repo: Repo) -> Any:
    there, answers = repo.commits[-1].files, []
    for path in [file["path"] for file in json.loads(body)["files"]]:
        oid = blob_id(hub, path, there[path]) if path in there else None
        mode = "lfs" if is_lfs(path) else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": answers}


def lfs_batch(hub: HubServer, body: bytes, repo: Repo) -> Any:
    objects = []
    for asked in json.loads(body)["objects"]:
        href = f"{hub.url}/lfs/{asked['oid']}"
        actions = {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
        objects.append(asked if asked["oid"] in hub.blobs else {**asked, **actions})
    return {"transfer": "basic", "objects": objects}


def lfs_put(hub: HubServer, body: bytes, oid: str) -> Any:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refusal(400, "the content is not what its name says")
    hub.blobs[oid] = body
    return {}


def lfs_verify(hub: HubServer, body: bytes, oid: str) -> Any:
    if len(hub.blobs.get(oid, b"")) != json.loads(body)["size"]:
        raise Refusal(404, "the object is not there")
    return {}


def commit(hub: HubServer, body: bytes, repo: Repo) -> Any:
    files, message = dict(repo.commits[-1].files), ""
    for entry in map(json.loads, body.splitlines()):
        value = entry["value"]
        if entry["key"] == "header":
            message = value["summary"]
        elif entry["key"] == "file":
            content = base64.b64decode(value["content"])
            files[value["path"]] = hashlib.sha256(content).hexdigest()
            hub.blobs[files[value["path"]]] = content
        elif entry["key"] == "lfsFile":
            if value["oid"] not in hub.blobs:
                raise Refusal(400, f"{value['path']} was not uploaded")
            files[value["path"]] = value["oid"]
        elif entry["key"] == "deletedFile":
            del files[value["path"]]
    oid = hashlib.sha1(repr((repo.commits[-1].oid, message, files)).encode()).hexdigest()
    repo.commits.append(Commit(oid, message, files))
    return {"commitUrl": f"{hub.url}/{repo.name}/commit/{oid}", "commitOid": oid}


def revision(hub: HubServer, body: bytes, repo: Repo, at: str = "main") -> Any:
    found = repo.at(at)
    return {"id": "", "sha": found.oid, "siblings": [{"rfilename": path} for path in found.files]}


def tree(hub: HubServer, body: bytes, repo: Repo, at: str) -> Any:
    entries = []
    for path, sha in sorted(repo.at(at).files.items()):
        size = len(hub.blobs[sha])
        entries.append({"type": "file", "path": path, "size": size, "oid": blob_id(hub, path, sha)})
        if is_lfs(path):
            entries[-1]["lfs"] = {"oid": sha, "size": size, "pointerSize": 130}
    return entries


def refs(hub: HubServer, body: bytes, repo: Repo) -> Any:
    main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].oid}
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in repo.tags.items()]
    return {"branches": [main], "tags": tags, "converts": []}


def tag(hub: HubServer, body: bytes, repo: Repo, at: str) -> Any:
    name = json.loads(body)["tag"]
    if name in repo.tags:
        raise Refusal(409, "the tag exists")
    repo.tags[name] = repo.at(at).oid
    return {}


def resolve(hub: HubServer, body: bytes, repo: Repo, at: str, path: str) -> Download:
    found = repo.at(at)
    if path not in found.files:
        raise Refusal(404, "no such file", "EntryNotFound")
    sha = found.files[path]
    headers = {"ETag": f'"{blob_id(hub, path, sha)}"', "X-Repo-Commit": found.oid}
    if is_lfs(path):
        headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(hub.blobs[sha]))}
    return Download(hub.blobs[sha], headers)


_NAME, _AT = r"(?P<repo>[^/]+/[^/]+)", r"(?P<at>[^/]+)"
_OBJECT = r"/lfs/(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[str, str, str, Any]] = [  # method, path, who may, what answers
    ("GET", "/api/whoami-v2", "read", lambda *_: {"type": "user", "name": USER}),
    ("POST", "/api/repos/create", "write", create_repo),
    ("POST", "/api/validate-yaml", "read", lambda *_: {"errors": [], "warnings": []}),
    ("GET", f"/api/models/{_NAME}/auth-check/write", "write", lambda *_: {}),
    ("GET", f"/api/models/{_NAME}", "read", revision),
    ("GET", f"/api/models/{_NAME}/revision/{_AT}", "read", revision),
    ("GET", f"/api/models/{_NAME}/tree/{_AT}", "read", tree),
    ("GET", f"/api/models/{_NAME}/refs", "read", refs),
    ("POST", f"/api/models/{_NAME}/tag/{_AT}", "write", tag),
    ("POST", f"/api/models/{_NAME}/preupload/main", "write", preupload),
    ("POST", f"/api/models/{_NAME}/commit/main", "write", commit),
    ("POST", f"/{_NAME}.git/info/lfs/objects/batch", "write", lfs_batch),
    ("PUT", _OBJECT, "anyone", lfs_put),
    ("POST", f"{_OBJECT}/verify", "write", lfs_verify),
    ("GET", f"/{_NAME}/resolve/{_AT}/(?P<path>.+)", "read", resolve),
]
