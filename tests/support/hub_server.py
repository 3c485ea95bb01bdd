"""A Hugging Face Hub on loopback, for the real client: models, data sets, uploads, commits, downloads, tags, faults.

The archives of OPUS are served from the same address. A data set's name in `repos` is datasets/OWNER/NAME.

Owns nothing of mtloop. Blobs and commits are kept on disk, in a folder that goes with the server. A client must be
started with HF_ENDPOINT=server.url and HF_HUB_DISABLE_XET=1 in its environment: huggingface_hub reads both once, when
it is imported.

Source: the requests that huggingface_hub 1.33 and 2.4 make.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "tester"
ORGANISATION = "team"  # the user may write there
WRITE_TOKEN = "write-token-of-the-tests"  # not like a real one: only who knows it can strike it out
READ_TOKEN = "hf_readTokenOfTheTests"
LANGUAGES = {"en", "fr", "de", "it", "eng", "fra"}  # some of ISO 639's
LFS_SUFFIXES = (".safetensors", ".spm", ".bin", ".pt", ".parquet")


@dataclass
class Commit:
    """A commit and all files after it: path -> sha256."""

    oid: str
    message: str
    files: dict[str, str]
    description: str = ""


@dataclass
class Repo:
    """A repository: its branches, each a list of commits, oldest first, and its tags, name -> commit."""

    name: str  # OWNER/NAME
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    is_private: bool = False

    @property
    def commits(self) -> list[Commit]:
        return self.branches["main"]

    def branch(self, name: str) -> list[Commit]:
        if name not in self.branches:
            raise Refusal(404, f"no such branch: {name}", "RevisionNotFound")
        return self.branches[name]

    def at(self, revision: str) -> Commit:
        """Return the newest commit of a branch, or that of a tag or of an id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        wanted = self.tags.get(revision, revision)
        found = [commit for commits in self.branches.values() for commit in commits if commit.oid == wanted]
        if not found:
            raise Refusal(404, "no such revision", "RevisionNotFound")
        return found[0]


@dataclass
class Fault:
    """A fault of the next `times` requests whose "METHOD /path" matches the pattern.

    Attributes:
        pattern: A regular expression.
        times: How many requests.
        status: Answered with instead of what was asked for.
        retry_after: Seconds, in a header of that answer.
        silence_s: Nothing is said for so long, and then the request is served; infinity: until the server closes.
        reset: "before" or "after" it was served, "within" its body, or in the middle of the
            "answer": the connection is cut.
        drip_s: Seconds between two bytes of the answer.
    """

    pattern: str
    times: int
    status: int | None = None
    retry_after: int | None = None
    silence_s: float = 0.0
    reset: str = ""
    drip_s: float = 0.0


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str, code: str = "", headers: dict[str, str] | None = None, **body: Any):
        self.status, self.text, self.code, self.headers = status, text, code, headers or {}
        self.body = {"error": text, **body}


class Blobs:
    """Contents by their sha256, as files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def __contains__(self, sha: str) -> bool:
        return (self._folder / sha).exists()

    def __getitem__(self, sha: str) -> bytes:
        return (self._folder / sha).read_bytes()

    def __setitem__(self, sha: str, content: bytes) -> None:
        (self._folder / sha).write_bytes(content)


class HubServer:
    """The server; a context manager. Without a port it takes a free one.

    Attributes:
        url: What HF_ENDPOINT must be.
        folder: Where blobs/ and repos.json are.
        repos: The repositories by OWNER/NAME, those of data sets by datasets/OWNER/NAME.
        archives: The archives of OPUS: path (OPUS-KDE4/v2/moses/de-en.txt.zip) -> sha256.
        short_names: Names without an owner, of the first repositories: t5-small -> google-t5/t5-small.
        requests: Every request received, as "METHOD /path".
        cards: Every README.md that was sent to /api/validate-yaml.
    """

    def __init__(self, port: int = 0) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="hub-")
        self.folder = Path(self._home.name)
        self.repos: dict[str, Repo] = {}
        self.archives: dict[str, str] = {}
        self.short_names: dict[str, str] = {}
        self.blobs = Blobs(self.folder / "blobs")
        self.requests: list[str] = []
        self.cards: list[str] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._faults: list[Fault] = []
        self._listen(port)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def _listen(self, port: int) -> None:
        self._server: Any = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self._home.cleanup()

    def leave(self) -> None:
        """Stop listening, and cut open connections."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def come_back(self) -> None:
        """Listen again, on the same port, with the same repositories."""
        self.closing.clear()
        self._listen(self.port)
        self.__enter__()

    def commits(self, repo: str, branch: str = "main") -> list[tuple[str, dict[str, str]]]:
        """Return (message, all files after it as path -> sha256) of each commit but the empty first."""
        with self.lock:
            return [(commit.message, commit.files) for commit in self.repos[repo].branches[branch][1:]]

    def store(self, content: bytes) -> str:
        """Store a content and return its sha256."""
        sha = hashlib.sha256(content).hexdigest()
        self.blobs[sha] = content
        return sha

    def publish(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> None:
        """Add a commit with exactly these files to a branch; create the repository and the branch if missing."""
        with self.lock:
            there = self.repos.setdefault(repo, Repo(repo.removeprefix("datasets/"), {"main": [first_commit(repo)]}))
            commits = there.branches.setdefault(branch, [first_commit(f"{repo} {branch}")])
            shas = {path: self.store(content) for path, content in files.items()}
            oid = hashlib.sha1(repr((commits[-1].oid, shas)).encode()).hexdigest()
            commits.append(Commit(oid, "published", shas))

    def keep(self) -> None:
        """Save the state of the repositories."""
        text = json.dumps({name: asdict(repo) for name, repo in self.repos.items()})
        (self.folder / "repos.json").write_text(text)

    def fail(self, pattern: str, status: int, times: int = 1, *, retry_after: int | None = None) -> None:
        """Answer with a status."""
        self._faults.append(Fault(pattern, times, status=status, retry_after=retry_after))

    def hang(self, pattern: str, times: int = 1_000_000, *, silence_s: float = float("inf")) -> None:
        """Wait, and then serve."""
        self._faults.append(Fault(pattern, times, silence_s=silence_s))

    def reset(self, pattern: str, times: int = 1, *, when: str = "before") -> None:
        """Cut the connection before or after serving, within the request, or in the middle of the answer."""
        self._faults.append(Fault(pattern, times, reset=when))

    def drip(self, pattern: str, times: int = 1, *, every_s: float) -> None:
        """Serve, and send the answer byte by byte."""
        self._faults.append(Fault(pattern, times, drip_s=every_s))

    def heal(self) -> None:
        """Forget the faults."""
        self._faults.clear()

    def next_fault(self, request: str) -> Fault:
        """Record the request and return the first fault that matches it."""
        with self.lock:
            self.requests.append(request)
            fault = next((f for f in self._faults if f.times > 0 and re.search(f.pattern, request)), None)
            if fault is None:
                return Fault("", 0)
            fault.times -= 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    """Reads a request whole, finds its route and answers JSON or bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else an answer's body waits 40 ms for the client's receipt of its head
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub: HubServer = self.server.hub
        path = unquote(urlsplit(self.path).path)
        if hub.closing.is_set():
            return self._cut()
        fault = hub.next_fault(f"{self.command} {path}")
        body = self._read_body(half=fault.reset == "within")
        if fault.silence_s:
            hub.closing.wait(None if fault.silence_s == float("inf") else fault.silence_s)
        if hub.closing.is_set() or fault.reset in ("before", "within"):
            return self._cut()
        try:
            if fault.status is not None:
                headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                # The text gives the token away: whoever prints it must strike it out.
                raise Refusal(fault.status, f"injected for {self.headers.get('Authorization')}", headers=headers)
            with hub.lock:
                content = self._route(hub, body)
                hub.keep()
            if fault.reset == "after":
                return self._cut()
            self._answer(200, content, drip_s=fault.drip_s, is_cut=fault.reset == "answer")
        except Refusal as refusal:
            told = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.text, **refusal.headers}
            self._answer(refusal.status, refusal.body, told)
        except ConnectionError:  # the client gave up
            self.close_connection = True

    def _cut(self) -> None:
        """Reset the connection, without closing it properly."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _route(self, hub: HubServer, body: bytes) -> Any:
        verb = "GET" if self.command == "HEAD" else self.command
        path, _, query = self.path.partition("?")
        for short, name in hub.short_names.items():  # the Hub redirects
            path = re.sub(rf"^(/api/models|/api/datasets|/datasets|)/{short}(?=/|$)", rf"\1/{name}", path)
        for method, pattern, may, serve in ROUTES:
            # The slashes of a revision are quoted: it is one part of the path.
            if method == verb and (match := re.fullmatch(pattern, path)):
                groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                kind, name = groups.pop("kind", "models"), groups.pop("repo", "")
                repo = hub.repos.get(f"datasets/{name}" if kind == "datasets" else name)
                self._check_token("read" if may == "public" and repo is not None and repo.is_private else may)
                if name and repo is None:
                    raise Refusal(404, "no such repository", "RepoNotFound")
                if serve is tree:
                    groups["recursive"] = parse_qs(query).get("recursive", ["False"])[0]
                return serve(hub, body, *([repo] if repo else []), **groups)
        raise Refusal(404, f"no route for {verb} {path}")

    def _check_token(self, may: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if may == "anyone" or (may == "public" and not token):  # an upload's address is its own permission
            return
        if token not in (WRITE_TOKEN, READ_TOKEN):
            raise Refusal(401, "Invalid username or password.")
        if may == "write" and token != WRITE_TOKEN:
            raise Refusal(403, "Forbidden: this token may only read")

    def _read_body(self, *, half: bool = False) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0) // (2 if half else 1))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
            if half:
                break
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(
        self,
        status: int,
        content: Any,
        headers: dict[str, str] | None = None,
        *,
        drip_s: float = 0.0,
        is_cut: bool = False,
    ) -> None:
        if not isinstance(content, Download):
            content = Download(json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})
        elif wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            status, content = 206, content.part(int(wanted[1]), int(wanted[2] or len(content.payload) - 1))
        payload, headers = content
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(payload))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if is_cut:
            self.wfile.write(payload[: len(payload) // 2])
            return self._cut()
        if not drip_s:
            self.wfile.write(payload)
            return
        for byte in payload:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(drip_s)


class Download(NamedTuple):
    """A file's bytes and the headers that describe it."""

    payload: bytes
    headers: dict[str, str]

    def part(self, first: int, last: int) -> Download:
        """Return the bytes from `first` to `last`, both included."""
        size = len(self.payload)
        if first >= size:
            raise Refusal(416, "no such range")
        headers = {**self.headers, "Content-Range": f"bytes {first}-{min(last, size - 1)}/{size}"}
        return Download(self.payload[first : last + 1], headers)


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def blob_id(hub: HubServer, path: str, sha: str) -> str:
    """Return the id by which the client recognises a file: sha256 of an LFS file, git's sha1 of any other."""
    content = hub.blobs[sha]
    return sha if is_lfs(path) else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def first_commit(name: str) -> Commit:
    """Return the empty commit that a branch starts with."""
    return Commit(hashlib.sha1(name.encode()).hexdigest(), "initial commit", {})


def create_repo(hub: HubServer, body: bytes) -> Any:
    asked = json.loads(body)
    owner = asked.get("organization") or USER
    name = f"{owner}/{asked['name']}"
    if owner not in (USER, ORGANISATION):
        raise Refusal(403, f"Forbidden: you may not write to {owner}")
    if name in hub.repos:
        raise Refusal(409, "You already created this model repo", url=f"{hub.url}/{name}")
    is_private = bool(asked.get("private")) or asked.get("visibility") == "private"  # huggingface_hub 1 and 2
    hub.repos[name] = Repo(name, {"main": [first_commit(name)]}, is_private=is_private)
    return {"url": f"{hub.url}/{name}"}


def validate_yaml(hub: HubServer, body: bytes) -> Any:
    """Validate a card as the Hub does: invalid YAML, unknown licenses and languages, and empty names are errors."""
    content = json.loads(body)["content"]
    hub.cards.append(content)
    errors = []
    try:
        data = yaml.safe_load(content.split("---")[1])
        if data.get("license") not in (None, "apache-2.0", "mit", "cc-by-4.0", "other"):
            errors.append({"message": '"license" must be one of [apache-2.0, mit, cc-by-4.0, other, ...]'})
        if not set(data.get("language") or []) <= LANGUAGES:
            errors.append({"message": '"language" must be ISO 639-1, 639-2 or 639-3 codes'})
        for result in (result for model in data.get("model-index", []) for result in model["results"]):
            if not all(result["dataset"].get(name) for name in ("type", "name")):
                errors.append({"message": '"model-index[0].results[0].dataset" is not allowed to be empty'})
    except (yaml.YAMLError, IndexError, AttributeError) as error:
        errors.append({"message": f"the metadata cannot be read: {error}"})
    if errors:
        raise Refusal(400, "invalid metadata", errors=errors, warnings=[])
    return {"errors": [], "warnings": []}


def commits_to_add_to(repo: Repo, branch: str) -> list[Commit]:
    """Return the commits of a branch; a repository without a branch gets its main one."""
    return repo.branches.setdefault(branch, []) if branch == "main" and not repo.branches else repo.branch(branch)


def preupload(hub: HubServer, body: bytes, repo: Repo, branch: str) -> Any:
    there, answers = repo.branch(branch)[-1].files if repo.branches else {}, []
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
    if oid not in hub.blobs or len(hub.blobs[oid]) != json.loads(body)["size"]:
        raise Refusal(404, "the object is not there")
    return {}


def commit(hub: HubServer, body: bytes, repo: Repo, branch: str) -> Any:
    commits = commits_to_add_to(repo, branch)
    files, header = dict(commits[-1].files) if commits else {}, {}
    parent = commits[-1].oid if commits else None
    for entry in map(json.loads, body.splitlines()):
        value = entry["value"]
        if entry["key"] == "header":
            header = value
        elif entry["key"] == "file":
            content = base64.b64decode(value["content"])
            files[value["path"]] = hub.store(content)
        elif entry["key"] == "lfsFile":
            if value["oid"] not in hub.blobs:
                raise Refusal(400, f"{value['path']} was not uploaded")
            files[value["path"]] = value["oid"]
        elif entry["key"] == "deletedFile":
            del files[value["path"]]
    if header.get("parentCommit") not in (None, parent):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    oid = hashlib.sha1(repr((parent, header, files)).encode()).hexdigest()
    commits.append(Commit(oid, header["summary"], files, header.get("description", "")))
    return {"commitUrl": f"{hub.url}/{repo.name}/commit/{oid}", "commitOid": oid}


def list_commits(hub: HubServer, body: bytes, repo: Repo, at: str) -> Any:
    date = "2026-11-24T12:00:00.000Z"
    return [
        {"id": one.oid, "title": one.message, "message": one.description, "authors": [{"user": USER}], "date": date}
        for one in reversed(repo.branch(at))
    ]


def revision(hub: HubServer, body: bytes, repo: Repo, at: str = "main") -> Any:
    found = repo.at(at)
    info = {"id": repo.name, "sha": found.oid, "private": repo.is_private}
    if "README.md" in found.files:
        info["cardData"] = yaml.safe_load(hub.blobs[found.files["README.md"]].decode().split("---")[1])
    return {**info, "siblings": [{"rfilename": path} for path in found.files]}


def entry(hub: HubServer, files: Mapping[str, str], path: str) -> dict[str, Any] | None:
    """Describe a file or a folder; None if there is neither."""
    if path not in files:
        is_folder = any(file.startswith(f"{path}/") for file in files)
        oid = hashlib.sha1(path.encode()).hexdigest()
        return {"type": "directory", "path": path, "size": 0, "oid": oid} if is_folder else None
    sha = files[path]
    size = len(hub.blobs[sha])
    lfs = {"lfs": {"oid": sha, "size": size, "pointerSize": 130}} if is_lfs(path) else {}
    return {"type": "file", "path": path, "size": size, "oid": blob_id(hub, path, sha), **lfs}


def tree(hub: HubServer, body: bytes, repo: Repo, at: str, path: str, recursive: str) -> Any:
    """List a folder, or all that lies below it."""
    files, start = repo.at(at).files, f"{path}/" if path else ""
    inside = [file.removeprefix(start).split("/") for file in files if file.startswith(start)]
    if path and not inside:
        raise Refusal(404, "no such folder", "EntryNotFound")
    depths = range(1, max(map(len, inside), default=0) + 1) if recursive.lower() == "true" else (1,)
    paths = {start + "/".join(parts[:depth]) for parts in inside for depth in depths}
    return [entry(hub, files, one) for one in sorted(paths)]


def paths_info(hub: HubServer, body: bytes, repo: Repo, at: str) -> Any:
    found = [entry(hub, repo.at(at).files, path.strip("/")) for path in parse_qs(body.decode())["paths"]]
    return [one for one in found if one is not None]


def refs(hub: HubServer, body: bytes, repo: Repo) -> Any:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
        for name, commits in repo.branches.items()
    ]
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in repo.tags.items()]
    return {"branches": branches, "tags": tags, "converts": []}


def tag(hub: HubServer, body: bytes, repo: Repo, at: str) -> Any:
    name = json.loads(body)["tag"]
    if name in repo.tags:
        raise Refusal(409, "the tag exists")
    repo.tags[name] = repo.at(at).oid
    return {}


def delete_tag(hub: HubServer, body: bytes, repo: Repo, at: str) -> Any:
    if at not in repo.tags:
        raise Refusal(404, "no such tag", "RevisionNotFound")
    del repo.tags[at]
    return {}


def create_branch(hub: HubServer, body: bytes, repo: Repo, at: str) -> Any:
    if at in repo.branches:
        raise Refusal(409, "the branch exists")
    repo.branches[at] = list(repo.commits)
    return {}


def resolve(hub: HubServer, body: bytes, repo: Repo, at: str, path: str) -> Download:
    found = repo.at(at)
    if path not in found.files:
        raise Refusal(404, "no such file", "EntryNotFound", headers={"X-Repo-Commit": found.oid})
    sha = found.files[path]
    headers = {"ETag": f'"{blob_id(hub, path, sha)}"', "X-Repo-Commit": found.oid, "Accept-Ranges": "bytes"}
    if is_lfs(path):
        headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(hub.blobs[sha]))}
    return Download(hub.blobs[sha], headers)


def archive(hub: HubServer, body: bytes, path: str) -> Download:
    """Serve an archive of OPUS."""
    if path not in hub.archives:
        raise Refusal(404, "no such archive")
    sha = hub.archives[path]
    return Download(hub.blobs[sha], {"Content-Type": "application/zip", "ETag": f'"{sha}"', "Accept-Ranges": "bytes"})


_NAME, _AT, _BRANCH = r"(?P<repo>[^/]+/[^/]+)", r"(?P<at>[^/]+)", r"(?P<branch>[^/]+)"
_REPO = f"/api/(?P<kind>models|datasets)/{_NAME}"
_OBJECT = r"/lfs/(?P<oid>[0-9a-f]{64})"
ROUTES: list[tuple[str, str, str, Any]] = [  # method, path, who may, what answers
    ("GET", "/api/whoami-v2", "read", lambda *_: {"type": "user", "name": USER}),
    ("POST", "/api/repos/create", "write", create_repo),
    ("POST", "/api/validate-yaml", "anyone", validate_yaml),
    ("GET", f"{_REPO}/auth-check/write", "write", lambda *_: {}),
    ("GET", f"{_REPO}", "public", revision),
    ("GET", f"{_REPO}/revision/{_AT}", "public", revision),
    ("GET", f"{_REPO}/tree/{_AT}(?:/(?P<path>.+))?", "public", tree),
    ("POST", f"{_REPO}/paths-info/{_AT}", "public", paths_info),
    ("GET", f"{_REPO}/refs", "public", refs),
    ("POST", f"{_REPO}/tag/{_AT}", "write", tag),
    ("DELETE", f"{_REPO}/tag/{_AT}", "write", delete_tag),
    ("POST", f"{_REPO}/branch/{_AT}", "write", create_branch),
    ("GET", f"{_REPO}/commits/{_AT}", "public", list_commits),
    ("POST", f"{_REPO}/preupload/{_BRANCH}", "write", preupload),
    ("POST", f"{_REPO}/commit/{_BRANCH}", "write", commit),
    ("POST", f"/{_NAME}.git/info/lfs/objects/batch", "write", lfs_batch),
    ("PUT", _OBJECT, "anyone", lfs_put),
    ("POST", f"{_OBJECT}/verify", "write", lfs_verify),
    ("GET", f"(?:/(?P<kind>datasets))?/{_NAME}/resolve/{_AT}/(?P<path>.+)", "public", resolve),
    ("GET", r"/(?P<path>OPUS-[^/]+/[^/]+/moses/[^/]+\.txt\.zip)", "anyone", archive),
]
