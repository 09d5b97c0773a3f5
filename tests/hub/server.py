"""A small Hub on loopback: it speaks the Hugging Face Hub's HTTP API to the real `huggingface_hub` and `datasets`.

Two uses. In tests it is the Hub (`tests/hub/fixtures.py`), with faults on demand and a log of every request. On a
developer's machine it serves a folder of data sets, so that a training streams from `HF_ENDPOINT` as it would from the
real Hub:

    python -m tests.hub.server --root ../shared/hub --port 0
    HF_ENDPOINT=http://127.0.0.1:40001          <- printed; put it before the command that should use it

What is served:

- a *mounted* folder laid out as `datasets/<namespace>/<name>`, `models/…`, `spaces/…`: read-only, one commit each, whose
  sha is computed from the content. Files are read when a repository is first asked for; later changes are not seen.
- repositories created by clients (or by `HubServer.add_repo`): kept in memory, with commits, branches and tags.

What a client may rely on: whoami-v2, create/delete repo, repo info with siblings, validate-yaml, preupload, LFS batch +
upload (one part or many) + verify, NDJSON commits (atomic, `parentCommit` honoured), tree (recursive, paged), paths-info,
refs, commits, branches, tags, resolve with HEAD, Range, ETag and If-None-Match; 401/403/404/409/412 with the Hub's
`X-Error-Code` and `X-Error-Message`. Not spoken: Xet (set `HF_HUB_DISABLE_XET=1`, as `HubServer.env` does; no
Xet headers are ever sent, so downloads never try it), pull requests, discussions, search.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub.metadata import front_matter, metadata_errors
from tests.hub.store import LFS_PATTERNS, Blob, Commit, Repo, lfs_pointer, make_blob, make_commit, wants_lfs


# --------------------------------------------------------------------------------------------------------- faults, log


@dataclass
class Fault:
    """Something that goes wrong on purpose with the requests whose "METHOD /path?query" matches `pattern`.

    The first `skip` matching requests pass untouched; then `times` are struck (None: all of them). What happens:
    `status` answers with this status instead of doing anything (with `headers`); `drop_after` does the work but cuts
    the connection after this many bytes of the answer's body (0: no answer at all), in order or, with `reset`, as a crash
    would (the client resumes a download after the one and not after the other); `delay` waits this many seconds first;
    `corrupt` flips a bit in the middle of the body that is sent (or, for an upload, received); `truncate` sends this many
    bytes fewer and says so in Content-Length; `headers` alone are added to the answer.
    """

    pattern: str
    times: int | None = 1
    skip: int = 0
    status: int | None = None
    drop_after: int | None = None
    reset: bool = False
    delay: float = 0.0
    corrupt: bool = False
    truncate: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    struck: int = 0

    def strikes(self, line: str) -> bool:
        """Whether this request is one to strike; counts it."""
        if not re.search(self.pattern, line):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.struck >= self.times:
            return False
        self.struck += 1
        return True


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else content


@dataclass(frozen=True)
class Request:
    """One line of the log. `sent` counts bytes of the answer's body, `received` bytes of the request's."""

    method: str
    path: str
    status: int
    sent: int
    received: int
    range: str | None
    user: str | None

    def __str__(self) -> str:
        ranged = f" [{self.range}]" if self.range else ""
        return f"{self.method} {self.path}{ranged} -> {self.status}, {self.sent} bytes out, {self.received} in"


# --------------------------------------------------------------------------------------------------------------- server


class ApiError(Exception):
    """An answer that is not 2xx, in the form the Hub gives it."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.body = body if body is not None else {"error": message}


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organizations


SETTLE_SECONDS = 10  # at most, for answers that are on their way


class HubServer:
    """The server and everything it knows. A context manager: `with HubServer(root) as hub: …` listens and stops.

    Args:
        root: folder to mount, or None.
        port: 0 takes a free one.
        users: token -> `User`. By default "hf_tester" may write as `tester` and "hf_reader" may only read.
        page_size: entries of one page of a tree listing (the Hub's is 1,000).
        part_size: files in LFS that are larger than this are uploaded in parts.
        verbose: print every request to stderr.
    """

    token = "hf_tester"
    user = "tester"

    def __init__(
        self,
        root: str | Path | None = None,
        port: int = 0,
        users: dict[str, User] | None = None,
        page_size: int = 1000,
        part_size: int = 16 * 1024 * 1024,
        verbose: bool = False,
    ) -> None:
        self.root = Path(root).resolve() if root is not None else None
        if self.root is not None and not self.root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder: it should hold datasets/<namespace>/<name> or models/….")
        self.users = (
            users
            if users is not None
            else {
                "hf_tester": User("tester", organizations=("tester-lab",)),
                "hf_reader": User("reader", role="read"),
            }
        )
        self.page_size, self.part_size, self.verbose = page_size, part_size, verbose
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}  # sha256 -> content, uploaded and verified
        self.parts: dict[tuple[str, int], bytes] = {}  # (sha256, part number) -> content
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.answering = 0  # requests whose answer has begun and is not in the log yet
        self.answered = threading.Condition(self.lock)
        self._http = _HttpServer(("127.0.0.1", port), _Handler)
        self._http.hub = self
        self._thread: threading.Thread | None = None
        self._home: tempfile.TemporaryDirectory[str] | None = None

    # -- life

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> HubServer:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="test-hub", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        if self._thread is not None:
            self._thread.join()
        if self._home is not None:
            self._home.cleanup()

    def serve_forever(self) -> None:
        self._http.serve_forever()

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def home(self) -> Path:
        """A temporary HF_HOME for this server's clients, gone when it stops."""
        if self._home is None:
            self._home = tempfile.TemporaryDirectory(prefix="hf-home-")
        return Path(self._home.name)

    def env(self, token: str | None = None) -> dict[str, str]:
        """What a process needs in its environment to use this server and nothing else: endpoint, token, fresh caches.

        An empty HF_TOKEN means "no token": it also hides the token of a developer who is logged in, since HF_HOME moves.
        """
        home = self.home
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    # -- what tests do to it

    def add_repo(
        self, kind: str, repo_id: str, files: dict[str, str | bytes | Path] | None = None, private: bool = False
    ) -> Repo:
        """Creates a repository with one commit on `main` (empty without `files`), without going through HTTP."""
        repo = Repo(kind, repo_id, private=private)
        contents = {path: data.encode() if isinstance(data, str) else data for path, data in (files or {}).items()}
        blobs = {path: make_blob(path, data) for path, data in contents.items()}
        repo.branches["main"] = make_commit("initial commit", "", blobs, None)
        with self.lock:
            self.repos[kind, repo_id] = repo
        return repo

    def fail(self, pattern: str, **what: Any) -> Fault:
        """Plans a `Fault`; patterns are searched in lines like "GET /api/models/me/x/tree/main?recursive=true"."""
        fault = Fault(pattern, **what)
        with self.lock:
            self.faults.append(fault)
        return fault

    def heal(self) -> None:
        with self.lock:
            self.faults.clear()

    def seen(self, pattern: str = "") -> list[Request]:
        """The requests so far whose "METHOD /path" matches."""
        with self.answered:
            self._settle()
            return [r for r in self.requests if re.search(pattern, f"{r.method} {r.path}")]

    def bytes_sent(self, pattern: str = "") -> int:
        return sum(request.sent for request in self.seen(pattern))

    def forget_requests(self) -> None:
        with self.answered:
            self._settle()
            self.requests.clear()

    def _settle(self) -> None:
        """Who has just received the last byte of an answer shall find it in the log."""
        self.answered.wait_for(lambda: self.answering == 0, timeout=SETTLE_SECONDS)

    # -- what requests do to it

    def repo(self, kind: str, repo_id: str, user: User | None) -> Repo:
        """The repository, mounted on first use. To whom may not see it, it does not exist: as on the Hub."""
        with self.lock:
            found = self.repos.get((kind, repo_id)) or self._mount(kind, repo_id)
        if found is None or (found.private and not (user and user.owns(repo_id.split("/")[0]))):
            raise missing_repo(user)
        return found

    def _mount(self, kind: str, repo_id: str) -> Repo | None:
        safe = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id)
        folder = self.root / f"{kind}s" / repo_id if self.root is not None and safe else None
        if folder is None or not folder.is_dir():
            return None
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".git" not in path.parts]
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        repo = self.add_repo(kind, repo_id, dict(files))
        repo.mounted = True
        return repo

    def writable_repo(self, kind: str, repo_id: str, user: User | None) -> Repo:
        repo = self.repo(kind, repo_id, user)
        check_may_write(user, repo_id.split("/")[0])
        if repo.mounted:
            raise ApiError(403, f"{repo_id} is served from a folder and cannot be written to")
        return repo

    def begin_answer(self) -> None:
        with self.lock:
            self.answering += 1

    def log(self, request: Request) -> None:
        """The end of an answer that `begin_answer` announced."""
        with self.answered:
            self.requests.append(request)
            self.answering -= 1
            self.answered.notify_all()
        if self.verbose:
            print(request, file=sys.stderr, flush=True)

    def fault_for(self, line: str) -> Fault | None:
        with self.lock:
            return next((fault for fault in self.faults if fault.strikes(line)), None)


def missing_repo(user: User | None) -> ApiError:
    """401 for a stranger, 404 for a known user. (The client sees a missing repository in a bare 401 only over https.)"""
    if user is None:
        return ApiError(401, "Invalid username or password.", "RepoNotFound")
    return ApiError(404, "Repository not found", "RepoNotFound")


def check_may_write(user: User | None, namespace: str) -> None:
    if user is None:
        raise ApiError(401, "Invalid username or password.")
    if user.role != "write" or not user.owns(namespace):
        raise ApiError(403, f'Forbidden: you don\'t have the rights to write to the namespace "{namespace}"')


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error here; anything else is a fault of this server and is shown."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


@dataclass
class Answer:
    """What a route returns. `content` is sent whole, or is a (blob, start, stop) to be read piece by piece."""

    status: int = 200
    content: bytes | tuple[Blob, int, int] = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content[2] - self.content[1]

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield self.content
        else:
            blob, start, stop = self.content
            yield from blob.read(start, stop)


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **headers})


Route = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
FILES = r"/(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)"


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def register(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class _Handler(BaseHTTPRequestHandler):
    """One connection. Reads a request, finds its route, applies a fault if one is planned, answers, writes the log."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: with Nagle each answer would wait 40 ms
    server: _HttpServer

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        """Silences http.server's own log; ours is `HubServer.requests`."""

    def handle_any(self) -> None:
        self.body = self.read_body()
        self.query = parse_qs(urlsplit(self.path).query)
        fault = self.hub.fault_for(f"{self.command} {self.path}")
        if fault is not None and fault.delay:
            time.sleep(fault.delay)
        try:
            self.caller = self.authenticate()
            if fault is not None and fault.status is not None:
                raise ApiError(fault.status, f"a planned fault: {fault.status}")
            if fault is not None and fault.corrupt and self.command in ("PUT", "POST"):
                self.body = flip_bit(self.body)
            answer = self.dispatch()
        except ApiError as error:
            extra = {"X-Error-Message": error.message.replace("\n", " ")}
            extra |= {"X-Error-Code": error.code} if error.code else {}
            answer = as_json(error.body, error.status, **extra)
        self.send(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def read_body(self) -> bytes:
        """The whole body, also of a chunked request, so that the connection can be used again."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = bytearray()
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return bytes(body)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def authenticate(self) -> User | None:
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer ").strip())
        if user is None:
            raise ApiError(401, "Invalid credentials in Authorization header")
        return user

    def dispatch(self) -> Answer:
        path = urlsplit(self.path).path
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in ROUTES:
            if wanted == method and (match := pattern.fullmatch(path)):
                arguments = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                return function(self, **arguments)
        if re.match(r"/api/(model|dataset|space)s/|/.+/resolve/", path):
            raise missing_repo(self.caller)
        raise ApiError(404, "Sorry, we can't find the page you are looking for.")

    def send(self, answer: Answer, fault: Fault | None) -> None:
        """Sends the answer as the fault, if any, has it, and logs what was really sent."""
        length = max(answer.length - (fault.truncate if fault else 0), 0)
        limit = length if fault is None or fault.drop_after is None else min(fault.drop_after, length)
        sent = 0
        dropped = fault is not None and fault.drop_after is not None
        self.hub.begin_answer()
        try:
            if not dropped or limit > 0:
                self.send_response(answer.status)
                for name, value in {**answer.headers, **(fault.headers if fault else {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(length))
                self.end_headers()
            for chunk in answer.chunks() if self.command != "HEAD" else ():
                piece = chunk[: limit - sent]
                if fault is not None and fault.corrupt and sent == 0 and self.command == "GET":
                    piece = flip_bit(piece)
                self.wfile.write(piece)
                sent += len(piece)
        finally:
            user = self.caller.name if getattr(self, "caller", None) else None
            wanted = self.headers.get("Range")
            self.hub.log(Request(self.command, self.path, answer.status, sent, len(self.body), wanted, user))
        if dropped:
            self.hang_up(fault.reset)

    def hang_up(self, reset: bool) -> None:
        """Ends the connection though the client waits for more; `reset` has the system send RST instead of FIN."""
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # now: http.server itself would send FIN first
        self.close_connection = True  # the server closes the socket when the handler returns

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    def find(self, kind: str, repo_id: str, revision: str = "main") -> tuple[Repo, Commit]:
        repo = self.hub.repo(kind, repo_id, self.caller)
        commit = repo.commit(revision)
        if commit is None:
            raise ApiError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, commit


# --------------------------------------------------------------------------------------------------- users, repositories


@route("GET", "/api/whoami-v2")
def whoami(request: _Handler) -> Answer:
    if request.caller is None:
        raise ApiError(401, "Invalid username or password.")
    user = request.caller
    return as_json(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "email": f"{user.name}@example.org",
            "orgs": [{"type": "org", "name": name, "roleInOrg": user.role} for name in user.organizations],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}},
        }
    )


@route("POST", "/api/repos/create")
def create_repo(request: _Handler) -> Answer:
    wanted = request.json()
    kind = wanted.get("type") or "model"
    if request.caller is None:
        raise ApiError(401, "Invalid username or password.")
    namespace = wanted.get("organization") or request.caller.name
    repo_id = f"{namespace}/{wanted['name']}"
    check_may_write(request.caller, namespace)
    if kind == "space" and wanted.get("sdk") not in ("gradio", "docker", "static", "streamlit"):
        raise ApiError(400, "a Space needs an sdk")
    url = f"{request.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    with request.hub.lock:
        try:
            request.hub.repo(kind, repo_id, request.caller)
        except ApiError:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            repo = request.hub.add_repo(kind, repo_id, {".gitattributes": default_gitattributes()}, private)
            repo.settings = {k: v for k, v in wanted.items() if k not in ("name", "organization", "type")}
            return as_json({"url": url, "name": repo_id, "id": repo_id, "private": private})
    raise ApiError(409, "", body={"error": f"You already created this {kind} repo", "url": url})


def default_gitattributes() -> str:
    return "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)


@route("DELETE", "/api/repos/delete")
def delete_repo(request: _Handler) -> Answer:
    wanted = request.json()
    if request.caller is None:
        raise ApiError(401, "Invalid username or password.")
    repo_id = f"{wanted.get('organization') or request.caller.name}/{wanted['name']}"
    repo = request.hub.writable_repo(wanted.get("type") or "model", repo_id, request.caller)
    with request.hub.lock:
        del request.hub.repos[repo.kind, repo.id]
    return as_json({})


@route("POST", "/api/validate-yaml")
def validate_yaml(request: _Handler) -> Answer:
    """A few of the Hub's rules for the metadata of a card; a card that breaks one is refused with 400."""
    wanted = request.json()
    data, errors = front_matter(wanted["content"])
    errors += metadata_errors(data, wanted.get("repoType", "model"))
    warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
    return as_json({"errors": [{"message": error} for error in errors], "warnings": warnings}, 400 if errors else 200)


@route("GET", REPO)
@route("GET", REPO + r"/revision/(?P<revision>[^/]+)")
def repo_info(request: _Handler, kind: str, repo_id: str, revision: str = "main") -> Answer:
    repo, commit = request.find(kind, repo_id, revision)
    card = read_card(commit)
    with_blobs = request.query.get("blobs", ["false"])[0].lower() in ("true", "1")
    siblings = [
        {"rfilename": path} | (sibling_details(blob) if with_blobs else {}) for path, blob in commit.files.items()
    ]
    info = {
        "_id": hashlib.md5(repo_id.encode()).hexdigest()[:24],
        "id": repo_id,
        "author": repo_id.split("/")[0],
        "sha": commit.sha,
        "createdAt": list(commit.history())[-1].date,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": computed_tags(card),
        "cardData": card,
        "siblings": siblings,
    }
    if kind == "model":
        info |= {name: card.get(name) for name in ("library_name", "pipeline_tag")} | {"modelId": repo_id}
        info |= {"model-index": card.get("model-index")}
    if kind == "space":
        info["sdk"] = card.get("sdk") or repo.settings.get("sdk")
    return as_json(info)


def read_card(commit: Commit) -> dict[str, Any]:
    blob = commit.files.get("README.md")
    return front_matter(b"".join(blob.read(0, blob.size)).decode())[0] if blob else {}


def computed_tags(card: dict[str, Any]) -> list[str]:
    """The card's tags with those that the Hub adds by itself."""
    licence, data_sets = card.get("license"), card.get("datasets", [])
    tags = [*card.get("tags", []), *filter(None, [card.get("library_name"), card.get("pipeline_tag")])]
    tags += [f"license:{name}" for name in (licence if isinstance(licence, list) else [licence]) if name]
    return tags + [f"dataset:{name}" for name in ([data_sets] if isinstance(data_sets, str) else data_sets)]


def sibling_details(blob: Blob) -> dict[str, Any]:
    lfs = (
        {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(lfs_pointer(blob.sha256, blob.size))}
        if blob.sha256
        else None
    )
    return {"size": blob.size, "blobId": blob.oid} | ({"lfs": lfs} if lfs else {})


# ------------------------------------------------------------------------------------------------------ refs and history


@route("GET", REPO + "/refs")
def list_refs(request: _Handler, kind: str, repo_id: str) -> Answer:
    repo = request.hub.repo(kind, repo_id, request.caller)

    def listed(refs: dict[str, Commit], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": commit.sha} for name, commit in refs.items()]

    branches, tags = listed(repo.branches, "refs/heads/"), listed(repo.tags, "refs/tags/")
    return as_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@route("GET", REPO + r"/commits/(?P<revision>[^/]+)")
def list_commits(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    commits = request.find(kind, repo_id, revision)[1].history()
    author = [{"user": repo_id.split("/")[0]}]
    return as_json(
        [{"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": author} for c in commits]
    )


@route("POST", REPO + r"/branch/(?P<branch>[^/]+)")
def create_branch(request: _Handler, kind: str, repo_id: str, branch: str) -> Answer:
    repo = request.hub.writable_repo(kind, repo_id, request.caller)
    _, commit = request.find(kind, repo_id, request.json().get("startingPoint", "main"))
    return add_ref(request, repo.branches, branch, commit)


@route("POST", REPO + r"/tag/(?P<revision>[^/]+)")
def create_tag(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    repo = request.hub.writable_repo(kind, repo_id, request.caller)
    return add_ref(request, repo.tags, request.json()["tag"], request.find(kind, repo_id, revision)[1])


def add_ref(request: _Handler, refs: dict[str, Commit], name: str, commit: Commit) -> Answer:
    with request.hub.lock:
        if name in refs:
            raise ApiError(409, f"Reference already exists: {name}")
        refs[name] = commit
    return as_json({})


@route("DELETE", REPO + r"/(?P<what>branch|tag)/(?P<name>[^/]+)")
def delete_ref(request: _Handler, kind: str, repo_id: str, what: str, name: str) -> Answer:
    repo = request.hub.writable_repo(kind, repo_id, request.caller)
    with request.hub.lock:
        if (repo.branches if what == "branch" else repo.tags).pop(name, None) is None:
            raise ApiError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return as_json({})


# ------------------------------------------------------------------------------------------------------- listing, reading


def entries(commit: Commit, prefix: str, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders under `prefix` ("" is the root) as the tree endpoint shows them, sorted by path."""
    inside = f"{prefix}/" if prefix else ""
    found: dict[str, dict[str, Any]] = {}
    for path, blob in commit.files.items():
        if not path.startswith(inside):
            continue
        parts = path[len(inside) :].split("/")
        for depth in range(1, len(parts)) if recursive else range(1, min(2, len(parts))):
            folder = inside + "/".join(parts[:depth])
            found.setdefault(folder, folder_entry(commit, folder))
        if recursive or len(parts) == 1:
            found[path] = file_entry(path, blob)
    return [found[path] for path in sorted(found)]


def file_entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.sha256:
        pointer_size = len(lfs_pointer(blob.sha256, blob.size))
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": pointer_size}
    return entry


def folder_entry(commit: Commit, folder: str) -> dict[str, Any]:
    inside = [f"{path}\0{blob.oid}" for path, blob in sorted(commit.files.items()) if path.startswith(f"{folder}/")]
    return {
        "type": "directory",
        "oid": hashlib.sha1("\n".join(inside).encode()).hexdigest(),
        "size": 0,
        "path": folder,
    }


def expanded(entry: dict[str, Any], commit: Commit) -> dict[str, Any]:
    """An entry with the fields of `expand=True`: the last commit that changed it, and a scan that found nothing."""
    last = commit
    for older in commit.history():
        if older.files.get(entry["path"]) != commit.files.get(entry["path"]):
            break
        last = older
    entry = entry | {"lastCommit": {"id": last.sha, "title": last.title, "date": last.date}}
    scan = {"status": "safe", "avScan": {"virusFound": False}, "pickleImportScan": None}
    return entry | ({"securityFileStatus": scan} if entry["type"] == "file" else {})


def flag(request: _Handler, name: str) -> bool:
    return request.query.get(name, [""])[0].lower() in ("true", "1")


@route("GET", REPO + r"/tree/(?P<revision>[^/]+)")
@route("GET", REPO + r"/tree/(?P<revision>[^/]+)/(?P<path>.*)")
def list_tree(request: _Handler, kind: str, repo_id: str, revision: str, path: str = "") -> Answer:
    _, commit = request.find(kind, repo_id, revision)
    path = path.strip("/")
    found = entries(commit, path, flag(request, "recursive"))
    if path and not found:
        raise ApiError(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
    start = int(request.query.get("cursor", ["0"])[0])
    page = found[start : start + request.hub.page_size]
    if flag(request, "expand"):
        page = [expanded(entry, commit) for entry in page]
    headers = {}
    if start + len(page) < len(found):
        where = urlsplit(request.path).path
        kept = "".join(f"&{name}={quote(values[0])}" for name, values in request.query.items() if name != "cursor")
        headers["Link"] = f'<{request.hub.url}{where}?cursor={start + len(page)}{kept}>; rel="next"'
    return as_json(page, **headers)


@route("POST", REPO + r"/paths-info/(?P<revision>[^/]+)")
def paths_info(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    """The entries of the named paths; a path that does not exist is left out. The body is JSON or a form."""
    _, commit = request.find(kind, repo_id, revision)
    if "json" in request.headers.get("Content-Type", ""):
        wanted, expand = request.json().get("paths", []), bool(request.json().get("expand"))
    else:
        form = parse_qs(request.body.decode())
        wanted, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("true", "1")
    found = []
    for path in [wanted] if isinstance(wanted, str) else wanted:
        path = path.strip("/")
        if path in commit.files:
            found.append(file_entry(path, commit.files[path]))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            found.append(folder_entry(commit, path))
    return as_json([expanded(entry, commit) for entry in found] if expand else found)


@route("GET", FILES + r"/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request: _Handler, repo_id: str, revision: str, path: str, kind: str = "model") -> Answer:
    """The bytes of a file, whole or a range of them; HEAD comes here too and gets the headers only."""
    _, commit = request.find(kind, repo_id, revision)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    blob = commit.files.get(path)
    if blob is None:
        raise ApiError(404, "Entry not found", "EntryNotFound")
    headers |= {"ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
    headers["Content-Disposition"] = f'inline; filename="{quote(path.rsplit("/", 1)[-1])}"'
    if blob.sha256:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    if request.headers.get("If-None-Match", "").strip('"') == blob.etag:
        return Answer(304, b"", headers)
    wanted = request.headers.get("Range")
    if wanted is None:
        return Answer(200, (blob, 0, blob.size), headers)
    span = parse_range(wanted, blob.size)
    if span is None:
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{blob.size}"})
    return Answer(206, (blob, *span), headers | {"Content-Range": f"bytes {span[0]}-{span[1] - 1}/{blob.size}"})


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The half-open span of a single-range header (`bytes=0-9`, `bytes=5-`, `bytes=-3`); None when not satisfiable."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return (max(size - int(last), 0), size) if int(last) and size else None
    start, stop = int(first), min(int(last) + 1 if last else size, size)
    return (start, stop) if start < stop else None


# ---------------------------------------------------------------------------------------------------------------- writing


@route("POST", REPO + r"/preupload/(?P<revision>[^/]+)")
def preupload(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    """Says of each file whether it goes into the commit itself or into LFS, and what is there now."""
    request.hub.writable_repo(kind, repo_id, request.caller)
    _, commit = request.find(kind, repo_id, revision)
    answers = []
    for file in request.json()["files"]:
        lfs = wants_lfs(file["path"], file["size"], base64.b64decode(file.get("sample", "")))
        now = commit.files.get(file["path"])
        answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        answers.append(answer | ({"oid": now.etag} if now else {}))
    return as_json({"files": answers, "commitOid": commit.sha})


@route("POST", FILES + r"\.git/info/lfs/objects/batch")
def lfs_batch(request: _Handler, repo_id: str, kind: str = "model") -> Answer:
    """Where to send each object: nowhere if it is there already, one address, or an address for each part."""
    request.hub.writable_repo(kind, repo_id, request.caller)
    hub = request.hub
    objects = []
    for item in request.json()["objects"]:
        oid, size = item["oid"], item["size"]
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.lfs:
            upload: dict[str, Any] = {"href": f"{hub.url}/lfs/{oid}"}
            if size > hub.part_size:
                count = -(-size // hub.part_size)
                upload["header"] = {str(n + 1): f"{hub.url}/lfs/{oid}/part/{n + 1}" for n in range(count)}
                upload["header"]["chunk_size"] = str(hub.part_size)
                upload["href"] = f"{hub.url}/lfs/{oid}/complete"
            verify = {"href": f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}/lfs-verify"}
            answer |= {"authenticated": True, "actions": {"upload": upload, "verify": verify}}
        objects.append(answer)
    return as_json({"transfer": "basic", "objects": objects})


@route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(request: _Handler, oid: str) -> Answer:
    return store_object(request, oid, request.body)


@route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/part/(?P<number>\d+)")
def lfs_put_part(request: _Handler, oid: str, number: str) -> Answer:
    with request.hub.lock:
        request.hub.parts[oid, int(number)] = request.body
    return Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete")
def lfs_complete(request: _Handler, oid: str) -> Answer:
    numbers = [part["partNumber"] for part in request.json()["parts"]]
    with request.hub.lock:
        missing = [number for number in numbers if (oid, number) not in request.hub.parts]
        if missing:
            raise ApiError(400, f"parts {missing} were never uploaded")
        content = b"".join(request.hub.parts.pop((oid, number)) for number in sorted(numbers))
    return store_object(request, oid, content)


def store_object(request: _Handler, oid: str, content: bytes) -> Answer:
    """Keeps an object under the name of its own checksum: what arrives damaged never becomes `oid`."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != oid:
        raise ApiError(400, f"the uploaded object has sha256 {digest}, not {oid}: it was damaged on the way")
    with request.hub.lock:
        request.hub.lfs[oid] = content
    return Answer(200, b"", {"ETag": f'"{digest}"'})


@route("POST", FILES + "/lfs-verify")
def lfs_verify(request: _Handler, repo_id: str, kind: str = "model") -> Answer:
    request.hub.writable_repo(kind, repo_id, request.caller)
    wanted = request.json()
    content = request.hub.lfs.get(wanted["oid"])
    if content is None or len(content) != wanted["size"]:
        raise ApiError(404, f"object {wanted['oid']} of {wanted['size']} bytes was not uploaded")
    return as_json({})


@route("POST", REPO + r"/commit/(?P<revision>[^/]+)")
def create_commit(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    """Applies an NDJSON commit to a branch: all of it or, on any error, nothing."""
    repo = request.hub.writable_repo(kind, repo_id, request.caller)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    with request.hub.lock:
        branch = revision.removeprefix("refs/heads/")
        head = repo.branches.get(branch)
        if head is None:
            raise ApiError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if not head.sha.startswith(header.get("parentCommit", head.sha)):
            raise ApiError(412, "A commit has happened since. Please refresh and try again.")
        files = apply_operations(request.hub, head.files, lines)
        check_card(files, kind)
        commit = make_commit(header["summary"], header.get("description", ""), files, head)
        repo.branches[branch] = commit
    prefix = "" if kind == "model" else f"{kind}s/"
    url = f"{request.hub.url}/{prefix}{repo_id}/commit/{commit.sha}"
    return as_json({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


def apply_operations(hub: HubServer, files: dict[str, Blob], lines: list[dict[str, Any]]) -> dict[str, Blob]:
    files = dict(files)
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            files[value["path"]] = make_blob(value["path"], base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            content = hub.lfs.get(value["oid"])
            if content is None:
                raise ApiError(400, f"LFS pointer of {value['path']} pointed to a file that does not exist")
            files[value["path"]] = make_blob(value["path"], content, lfs=True)
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise ApiError(400, f"{value['path']} cannot be deleted: it does not exist")
        elif key == "deletedFolder":
            files = {
                path: blob for path, blob in files.items() if not path.startswith(value["path"].rstrip("/") + "/")
            }
    return files


def check_card(files: dict[str, Blob], kind: str) -> None:
    blob = files.get("README.md")
    if blob is not None:
        data, errors = front_matter(b"".join(blob.read(0, blob.size)).decode())
        errors += metadata_errors(data, kind)
        if errors:
            raise ApiError(400, "Invalid metadata in README.md: " + "; ".join(errors))


# ------------------------------------------------------------------------------------------------------------ command line


def main(arguments: list[str] | None = None) -> int:
    """Serves a folder until Ctrl-C. The first line of output is `HF_ENDPOINT=…`, ready for a script to read."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub.server", description=__doc__.split("\n\n")[0])
    parser.add_argument("--root", help="folder with datasets/<namespace>/<name>, models/…, spaces/…")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--verbose", action="store_true", help="print every request")
    options = parser.parse_args(arguments)
    try:
        hub = HubServer(options.root, port=options.port, verbose=options.verbose)
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"HF_ENDPOINT={hub.url}", flush=True)
    print(
        f"To write to it: HF_TOKEN={hub.token} HF_HUB_DISABLE_XET=1 (user {hub.user!r}; kept in memory only).",
        flush=True,
    )
    print(f"Clients should use a cache of their own: HF_HOME={tempfile.gettempdir()}/hf-local", flush=True)
    try:
        hub.serve_forever()
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
