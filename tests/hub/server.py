"""A stand-in for the Hugging Face Hub: what its client asks for, over real HTTP, in memory, on this machine only.

It answers as the Hub does, errors included, and can be told to fail. Repositories are those of models; what reads them
works for those of datasets, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MAIN = "refs/heads/main"
LARGE = (".safetensors", "tokenizer.json", ".bin")  # what goes to large file storage
CHUNK = 2**14


@dataclass(frozen=True)
class File:
    data: bytes
    large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds: of a large file, a note with its hash."""
        if not self.large:
            return self.data
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()
        )

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.pointer) + self.pointer).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.blob_id


@dataclass
class Repository:
    owner: str
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)  # full name -> commit
    commits: dict[str, dict[str, File]] = field(default_factory=dict)  # commit -> path -> file
    messages: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, files: dict[str, File], message: str, parent: str = "") -> str:
        """Commit `files` as the new head of `ref`."""
        facts = [ref, message, parent, len(self.commits), sorted((name, file.etag) for name, file in files.items())]
        commit = hashlib.sha1(json.dumps(facts).encode()).hexdigest()
        self.commits[commit], self.messages[commit], self.parents[commit] = files, message, parent
        self.refs[ref] = commit
        return commit

    def ref(self, revision: str) -> str:
        return revision if revision.startswith("refs/") else f"refs/heads/{revision}"

    def resolve(self, revision: str) -> str:
        if revision in self.commits:
            return revision
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.refs[name]
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **more: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.more = status, code, message, more


class Hub:
    """
    The state of the stand-in.

    Attributes:
        tokens: token -> user. Users may write to what they own.
        uploads: SHA-256 -> how often a large file arrived whole.
        cut_uploads: break the connection of every upload after so many bytes.
        corrupt: paths of which one byte is changed in every download.
        failing: paths whose downloads fail.
        cut_downloads: path -> break the connection of its next download after so many bytes.
        on_preupload, on_commit, on_download: called before such a request is answered.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.tokens = {"hf_writer": "org", "hf_stranger": "stranger"}
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # large file storage
        self.uploads: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()
        self.cut_uploads: int | None = None
        self.corrupt: set[str] = set()
        self.failing: set[str] = set()
        self.cut_downloads: dict[str, int] = {}
        self.on_preupload: Callable[[], Any] = lambda: None
        self.on_commit: Callable[[], Any] = lambda: None
        self.on_download: Callable[[], Any] = lambda: None
        self.lock = threading.RLock()

    def create(self, repo_id: str, private: bool = False, **files: bytes) -> Repository:
        """A repository as new ones are; `files` are committed on top."""
        repository = Repository(repo_id.split("/")[0], private)
        repository.add(MAIN, {".gitattributes": File(b"*.safetensors filter=lfs\n")}, "initial commit")
        self.repositories[repo_id] = repository
        if files:
            self.change(repo_id, **files)
        return repository

    def change(self, repo_id: str, **files: bytes) -> str:
        """Commit files to the main branch, as somebody else would."""
        repository = self.repositories[repo_id]
        parent = repository.refs[MAIN]
        new = {name: File(data, name.endswith(LARGE)) for name, data in files.items()}
        return repository.add(MAIN, repository.commits[parent] | new, "somebody else's", parent)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, but for .gitattributes."""
        repository = self.repositories[repo_id]
        files = repository.commits[repository.resolve(revision)]
        return {name: file.data for name, file in files.items() if name != ".gitattributes"}

    def head(self, repo_id: str, ref: str = MAIN) -> str:
        return self.repositories[repo_id].refs[ref]


class Handler(BaseHTTPRequestHandler):
    """One connection. The routes are methods that end in the name of the HTTP method."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    # what is the same for all requests

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self._read_body(None if self.command != "PUT" else self.hub.cut_uploads)
        if self.body is None:
            self.close_connection = True
            return
        try:
            for methods, pattern, route in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods:
                    route(self, **{name: unquote(value) for name, value in match.groupdict(default="").items()})
                    return
            raise Refusal(404, "EntryNotFound", f"no such route: {self.command} {url.path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send({"error": refusal.message, **refusal.more}, refusal.status, headers)

    def _read_body(self, limit: int | None) -> bytes | None:
        """The body of the request; `None` if the connection is to break after `limit` bytes."""
        body = bytearray()
        for chunk in self._chunks():
            body += chunk
            if limit is not None and len(body) > limit:
                return None
        return bytes(body)

    def _chunks(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            chunk = self.rfile.read(min(left, CHUNK))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk

    def _send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def _repository(self, repo: str, write: bool = False) -> Repository:
        """The repository, if the caller may see it; the Hub does not tell a hidden one from none."""
        user, repository = self._user(), self.hub.repositories.get(repo)
        if repository is None or (repository.private and user != repository.owner):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != repository.owner:
            raise Refusal(403 if user else 401, "", "You don't have the required permissions to perform this action")
        return repository

    # routes

    def whoami(self) -> None:
        if (user := self._user()) is None:
            raise Refusal(401, "", "Invalid username or password.")
        self._send({"name": user, "type": "user", "orgs": []})

    def validate_yaml(self) -> None:
        self._send({"errors": [], "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        user = self._user()
        owner = asked.get("organization") or user
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        if user != owner:
            raise Refusal(403, "", f"You don't have the rights to create a model under the namespace {owner!r}")
        repo_id = f"{owner}/{asked['name']}"
        url = f"{self.hub.endpoint}/{repo_id}"
        with self.hub.lock:
            if repo_id in self.hub.repositories:
                raise Refusal(409, "", "You already created this model repo", url=url)
            self.hub.create(repo_id, asked.get("visibility") == "private" or bool(asked.get("private")))
        self._send({"url": url, "name": repo_id})

    def info(self, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        commit = repository.resolve(revision or "main")
        names = [{"rfilename": name} for name in sorted(repository.commits[commit])]
        self._send({"id": repo, "sha": commit, "private": repository.private, "siblings": names, "tags": []})

    def refs(self, repo: str) -> None:
        refs = [
            {"name": name.removeprefix("refs/heads/"), "ref": name, "targetCommit": commit}
            for name, commit in self._repository(repo).refs.items()
        ]
        pulls = [ref for ref in refs if ref["ref"].startswith("refs/pr/")]
        branches = [ref for ref in refs if ref["ref"].startswith("refs/heads/")]
        self._send({"branches": branches, "converts": [], "tags": [], "pullRequests": pulls})

    def branch(self, repo: str, name: str) -> None:
        repository = self._repository(repo, write=True)
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        if f"refs/heads/{name}" in repository.refs:
            raise Refusal(409, "", "Reference already exists")
        repository.refs[f"refs/heads/{name}"] = repository.resolve(start)
        self._send({})

    def tree(self, repo: str, revision: str, folder: str) -> None:
        repository = self._repository(repo)
        commit = repository.resolve(revision)
        files = repository.commits[commit]
        inside = f"{folder}/" if folder else ""
        entries = [_entry(name, file) for name, file in sorted(files.items()) if name.startswith(inside)]
        if folder and not entries:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        self._send(entries, headers={"X-Repo-Commit": commit})

    def paths_info(self, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        files = repository.commits[repository.resolve(revision)]
        asked = parse_qs(self.body.decode()).get("paths", [])
        self._send([_entry(name, files[name]) for name in asked if name in files])

    def preupload(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write="create_pr" not in self.query)
        asked = json.loads(self.body)["files"]
        with self.hub.lock:
            files = repository.commits[repository.resolve(revision)]
            answer = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": files[file["path"]].etag if file["path"] in files else None,
                }
                for file in asked
            ]
        self.hub.on_preupload()
        self._send({"files": answer})

    def batch(self, repo: str) -> None:
        self._repository(repo)
        if self._user() is None:
            raise Refusal(401, "", "Invalid username or password.")
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/storage/{asked['oid']}"
            missing = {} if asked["oid"] in self.hub.stored else {"actions": {"upload": {"href": href}}}
            objects.append({"oid": asked["oid"], "size": asked["size"], **missing})
        self._send({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(422, "", "the content does not have this hash")
        with self.hub.lock:
            self.hub.uploads[oid] += 1
            self.hub.stored[oid] = self.body
        self._send({})

    def commit(self, repo: str, revision: str) -> None:
        create_pr = "create_pr" in self.query
        repository = self._repository(repo, write=not create_pr)
        if (user := self._user()) is None:
            raise Refusal(401, "", "Invalid username or password.")
        self.hub.on_commit()
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        with self.hub.lock:
            base = repository.resolve(revision)
            parent = header.get("parentCommit", base)
            if create_pr:
                number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
                base, ref = parent, f"refs/pr/{number}"
            else:
                ref = repository.ref(revision)
            if parent != base:
                raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(repository.commits[base])
            for line in lines[1:]:
                self._apply(files, line["key"], line["value"])
            commit = repository.add(ref, files, header["summary"], base)
        url = f"{self.hub.endpoint}/{repo}"
        pull = {"pullRequestUrl": f"{url}/discussions/{ref.split('/')[-1]}"} if create_pr else {}
        self._send({"success": True, "commitOid": commit, "commitUrl": f"{url}/commit/{commit}", "by": user, **pull})

    def _apply(self, files: dict[str, File], kind: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if kind == "file":
            files[path] = File(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            if value["oid"] not in self.hub.stored:
                raise Refusal(400, "", f"the content of {path} was never uploaded")
            files[path] = File(self.hub.stored[value["oid"]], large=True)
        elif kind == "deletedFile" and path in files:
            del files[path]
        else:
            raise Refusal(404, "EntryNotFound", f"can't do {kind} of {path}")

    def resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self._repository(repo)
        commit = repository.resolve(revision)
        headers = {"X-Repo-Commit": commit}
        file = repository.commits[commit].get(path)
        if file is None:
            self._send(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", **headers})
            return
        data = file.data
        if path in self.hub.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.large:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(data))}
        if self.command == "GET":
            if path in self.hub.failing:
                raise Refusal(500, "", "Internal error")
            self.hub.on_download()
            self.hub.downloads[path] += 1
            if length := self.hub.cut_downloads.pop(path, None):
                self._send(data[:length], 200, headers | {"Content-Length": str(len(data))})
                self.close_connection = True
                return
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(data[start:], 206, headers)
        else:
            self._send(data, 200, headers)


def _entry(name: str, file: File) -> dict[str, Any]:
    """A file as the listing of a tree shows it."""
    pointer = {"oid": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}
    large = {"lfs": pointer} if file.large else {}
    return {"type": "file", "path": name, "oid": file.blob_id, "size": len(file.data), **large}


KIND = "(?:models|datasets)"
REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), "/api/whoami-v2", Handler.whoami),
    (("POST",), "/api/validate-yaml", Handler.validate_yaml),
    (("POST",), "/api/repos/create", Handler.create),
    (("GET",), f"/api/{KIND}/{REPO}(?:/revision/{REVISION})?", Handler.info),
    (("GET",), f"/api/models/{REPO}/refs", Handler.refs),
    (("GET",), f"/api/{KIND}/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", Handler.tree),
    (("POST",), f"/api/{KIND}/{REPO}/paths-info/{REVISION}", Handler.paths_info),
    (("POST",), f"/api/models/{REPO}/branch/(?P<name>[^/]+)", Handler.branch),
    (("POST",), f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    (("POST",), f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), "/storage/(?P<oid>[0-9a-f]+)", Handler.store),
    (("GET", "HEAD"), f"/(?:datasets/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def serve() -> Iterator[Hub]:
    """A stand-in without repositories, up for the block, at its `endpoint`."""
    hub = Hub()
    with _Server(("127.0.0.1", 0), type("_Handler", (Handler,), {"hub": hub})) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
