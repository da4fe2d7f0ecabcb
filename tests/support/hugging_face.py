"""A small Hugging Face on loopback: what its client asks for to list, download and push files, and what fails.

    with Hub() as hub:
        hub.publish("FunAudioLLM/CosyVoice2-0.5B", {"cosyvoice2.yaml": b"…", "llm.pt": Path("llm.pt")})
        hub.use(monkeypatch)

It answers as the real one does as far as its client looks: commits, git's ids of small files and digests of large ones,
ranges, codes of errors in headers, and redirects of large files to another host.
"""

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast, final, get_args
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.support.files import sha256
from tests.support.hubs import Failure, Handler, LoopbackHub

Kind = Literal["info", "refs", "tree", "paths", "resolve", "bytes", "preupload", "batch", "upload", "commit"]

MODEL: Final = "FunAudioLLM/CosyVoice-300M"

_FOREIGN: Final = (
    *("HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_OIDC_RESOURCE", "HF_XET_CACHE"),
    *("HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_CACHE", "HUGGINGFACE_CO_STAGING", "TRANSFORMERS_OFFLINE"),
    *("HF_HUB_DISABLE_IMPLICIT_TOKEN", "XDG_CACHE_HOME"),
)
"""What the environment of whoever runs the tests may say, and shall not."""

LARGE: Final = (".bin", ".onnx", ".pt", ".safetensors", ".zip")
"""The ends of the names of files that are in LFS."""


class Request(NamedTuple):
    """What the hub was asked for.

    Attributes:
        kind: "other" is anything else.
        method: of HTTP.
        model: the id.
        revision: which one.
        name: that of the file, or the path after all of these.
        headers: all of them, by names in small letters.
        body: what came with it.
    """

    kind: Kind | Literal["other"]
    method: str
    model: str
    revision: str
    name: str
    headers: Mapping[str, str]
    body: bytes = b""


class Blob(NamedTuple):
    """A file in a commit."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """Git's id of what is committed: the file, or the pointer to it in LFS."""
        return git_sha1(self.pointer if self.lfs else self.content)

    @property
    def pointer(self) -> bytes:
        """What is committed of a file in LFS (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256(self.content)}")
        return "\n".join([*lines, f"size {len(self.content)}", ""]).encode()

    @property
    def etag(self) -> str:
        """What the client names the file by in its cache."""
        return sha256(self.content) if self.lfs else self.oid


def git_sha1(content: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """A model: its commits with all their files, and the names of some of these."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        return found if found in self.commits else None


@final
class Hub(LoopbackHub[Request]):
    """A hub, entered to run.

    Attributes:
        gated: the models whose files are for those alone whom `accepted` names by their tokens.
        large: the ends of the names of files that it wants in LFS.
        redirecting: whether the bytes of large files come from another host, as they do.
        altered: changes an answer about a model before it is sent.
    """

    kinds = get_args(Kind)

    def __init__(self) -> None:
        super().__init__()
        self.large: tuple[str, ...] = LARGE
        self.gated: set[str] = set()
        self.accepted: set[str] = set()
        self.redirecting = True
        self.altered: Callable[[dict[str, Any]], object] = lambda info: None  # noqa: ARG005
        self.repositories: dict[str, Repository] = {}
        self._commits = 0

    @property
    def env(self) -> dict[str, str]:
        """What lets the real client come here and nowhere else, without a word to anyone about who it is."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",  # whose servers are not here
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process, and those that it starts, ask this hub and no other.

        The client reads the environment when it is imported, so what it has read is set as well.
        """
        for name in _FOREIGN:
            monkeypatch.delenv(name, raising=False)
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)
        from huggingface_hub import constants  # noqa: PLC0415  (an extra)

        home = Path(os.environ["HOME"]) / ".cache" / "huggingface"
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HOME", str(home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))

    def publish(
        self, model: str, files: Mapping[str, bytes | Path | None], revision: str = "main", *, lfs: bool | None = None
    ) -> str:
        """Commit files to a branch, None takes one away; the others stay as they are. Gives the commit.

        Args:
            model: the id; made where there is none.
            files: their bytes, or where these are.
            revision: the branch; made where there is none.
            lfs: whether they are in LFS; by their names for None.
        """
        with self.lock:
            known = self.repositories.setdefault(model, Repository())
            tree = dict(known.commits.get(known.branches.get(revision, ""), {}))
            for name, value in files.items():
                content = value.read_bytes() if isinstance(value, Path) else value
                if content is None:
                    del tree[name]
                else:
                    tree[name] = Blob(content, name.endswith(LARGE) if lfs is None else lfs)
            return self.commit(known, revision, tree)

    def commit(self, repository: Repository, branch: str, tree: Mapping[str, Blob]) -> str:
        """Let a branch have these files and no others from now on."""
        with self.lock:
            self._commits += 1
            commit = hashlib.sha1(f"{self._commits}".encode(), usedforsecurity=False).hexdigest()
            repository.commits[commit] = dict(tree)
            repository.branches[branch] = commit
            return commit

    def files(self, model: str, revision: str = "main") -> dict[str, bytes]:
        """What a branch, tag or commit has."""
        known = self.repositories[model]
        return {name: blob.content for name, blob in known.commits[known.commit(revision) or ""].items()}

    def push(self, model: str, branch: str, lines: list[dict[str, Any]]) -> str | None:
        """Make a commit as a client wants it; None if the branch is not where it thought."""
        with self.lock:
            known = self.repositories[model]
            tree = dict(known.commits[known.branches[branch]])
            for line in lines:
                value = line["value"]
                if (
                    line["key"] == "header"
                    and value.get("parentCommit", known.branches[branch]) != known.branches[branch]
                ):
                    return None
                if line["key"] == "deletedFile":
                    del tree[value["path"]]
                elif line["key"] == "file":
                    tree[value["path"]] = Blob(base64.b64decode(value["content"], validate=True), lfs=False)
                elif line["key"] == "lfsFile":
                    content = self.uploads.get(value["oid"])
                    found = (self.stored(value["oid"]) or ("", None))[1] if content is None else content
                    assert found is not None, "a commit of what was never uploaded"
                    tree[value["path"]] = Blob(found, lfs=True)
            return self.commit(known, branch, tree)

    def tag(self, model: str, name: str, commit: str) -> None:
        """Give a commit a name that stays."""
        self.repositories[model].tags[name] = commit

    def forget(self, model: str, commit: str) -> None:
        """Have a commit no longer, as after its branch was written anew."""
        del self.repositories[model].commits[commit]

    def is_download(self, request: Request) -> bool:
        return request.kind == "resolve" and request.method == "GET"

    def stored(self, digest: str) -> tuple[str, bytes] | None:
        """A name and the bytes of a digest, in whatever commit of whatever model."""
        for repository in self.repositories.values():
            for tree in repository.commits.values():
                for name, blob in tree.items():
                    if blob.lfs and sha256(blob.content) == digest:
                        return name, blob.content
        return None


class _Handler(Handler, BaseHTTPRequestHandler):  # the latter again, whose names ruff lets stand
    @property
    def hub(self) -> Hub:
        return cast("Hub", super().hub)

    def do_GET(self) -> None:
        self.receive()

    def do_HEAD(self) -> None:
        self.receive()

    def do_POST(self) -> None:
        self.receive()

    def do_PUT(self) -> None:
        request = self.parsed(b"")
        self.hub.requests.append(request)
        self.hub.meanwhile(request)
        self.take_upload(request.name)

    def receive(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = self.parsed(body)
        self.hub.requests.append(request)
        self.hub.meanwhile(request)
        failure = self.hub.failing(request.kind, request.name)
        if failure is not None and (failure.unsized or failure.endless or failure.drip):
            self.send_strangely(failure)
        elif failure is not None and failure.status:
            headers = {**({"X-Error-Code": failure.code} if failure.code else {}), **failure.headers}
            content = json.dumps({"error": "as the test wants it"}).encode()
            self.send_body(failure.status, content if failure.content is None else failure.content, headers)
        elif request.kind == "bytes":
            _, content = self.hub.stored(request.name) or ("", b"")
            self.send_content(content, {}, failure)
        elif request.kind == "other":
            self.answer_other(request)
        elif failure is not None and request.kind != "resolve":
            self.send_body(200, failure.content or b"", failure.headers)
        else:
            self.answer(request, failure)

    def parsed(self, body: bytes) -> Request:
        parts = urlsplit(self.path)
        pieces = parts.path.lstrip("/").split("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        kind: Kind | Literal["other"] = "other"
        model, revision, name = "", "", parts.path
        if pieces[:2] == ["api", "models"] and len(pieces) >= 4:
            model, rest = "/".join(pieces[2:4]), pieces[4:]
            kinds: dict[str, Kind] = {"": "info", "revision": "info", "refs": "refs", "tree": "tree"}
            more: dict[str, Kind] = {"paths-info": "paths", "preupload": "preupload", "commit": "commit"}
            kind = {**kinds, **more}.get(rest[0] if rest else "", "other")
            if kind != "other":
                revision, name = unquote(rest[1]) if len(rest) > 1 else "main", unquote("/".join(rest[2:]))
        elif len(pieces) >= 5 and pieces[2] == "resolve":
            kind, model, revision = "resolve", "/".join(pieces[:2]), unquote(pieces[3])
            name = unquote("/".join(pieces[4:]))
        elif pieces[0] == "bytes":
            kind, name = "bytes", pieces[1]
        elif pieces[0] == "uploads":
            kind, name = "upload", pieces[1]
        elif pieces[2:] == ["info", "lfs", "objects", "batch"]:
            kind, model, name = "batch", f"{pieces[0]}/{pieces[1].removesuffix('.git')}", ""
        return Request(kind, self.command, model, revision, name, headers, body)

    def answer_other(self, request: Request) -> None:
        self.send_failure(404, "", f"no {request.name} here")

    def answer(self, request: Request, failure: Failure | None) -> None:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        repository = self.hub.repositories.get(request.model)
        if repository is None or (self.hub.token and shown != self.hub.token):
            # As on the real one, who is not logged in does not learn whether a model is private, or not there.
            self.send_failure(404 if shown and shown == self.hub.token else 401, "RepoNotFound", "Repository not found")
            return
        if request.kind in {"preupload", "batch", "commit"}:
            self.answer_writer(request, repository, shown)
            return
        commit = repository.commit(request.revision)
        if request.kind == "refs":
            self.send_json(200, self.refs(repository))
        elif request.kind == "resolve" and request.model in self.hub.gated and shown not in self.hub.accepted:
            self.send_failure(403 if shown else 401, "GatedRepo", "Access to this model is restricted")
        elif commit is None:
            self.send_failure(404, "RevisionNotFound", f"Invalid rev id: {request.revision}")
        elif request.kind == "info":
            self.send_json(200, self.info(request, commit, repository.commits[commit]))
        elif request.kind == "tree":
            self.send_json(200, self.entries(repository.commits[commit], request))
        elif request.kind == "paths":
            wanted = parse_qs(request.body.decode()).get("paths", [])
            tree = repository.commits[commit]
            self.send_json(200, [self.entry(name, tree[name]) for name in wanted if name in tree])
        else:
            self.send_file(commit, repository.commits[commit].get(request.name), failure)

    def answer_writer(self, request: Request, repository: Repository, shown: str) -> None:
        if self.hub.writer and shown != self.hub.writer:
            self.send_failure(403 if shown else 401, "", "no permission")
        elif request.kind == "batch":
            self.send_json(200, {"objects": [self.place(each) for each in json.loads(request.body)["objects"]]})
        elif request.revision not in repository.branches:
            self.send_failure(404, "RevisionNotFound", f"Invalid rev id: {request.revision}")
        elif request.kind == "preupload":
            self.send_json(200, {"files": [self.mode(each) for each in json.loads(request.body)["files"]]})
        else:
            lines = [json.loads(line) for line in request.body.splitlines()]
            commit = self.hub.push(request.model, request.revision, lines)
            if commit is None:
                self.send_failure(412, "", "A commit has happened since. Please refresh and try again.")
            else:
                url = f"{self.hub.endpoint}/{request.model}/commit/{commit}"
                self.send_json(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def mode(self, file: Mapping[str, Any]) -> dict[str, Any]:
        """How a file is to be pushed."""
        large = file["path"].endswith(self.hub.large) or file["size"] > 10_000_000
        found = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        self.hub.altered(found)
        return found

    def place(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Where a file is to be uploaded, unless it is there."""
        digest = wanted["oid"]
        known = {"oid": digest, "size": wanted["size"]}
        if digest in self.hub.uploads or self.hub.stored(digest) is not None:
            return known
        return {**known, "actions": {"upload": {"href": f"{self.hub.elsewhere}/uploads/{digest}?X-Signature=s3cret"}}}

    def refs(self, repository: Repository) -> dict[str, Any]:
        kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
        named = {
            kind: [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit} for name, commit in names.items()
            ]
            for kind, (folder, names) in kinds.items()
        }
        return {**named, "converts": []}

    def info(self, request: Request, commit: str, tree: Mapping[str, Blob]) -> dict[str, Any]:
        detailed = "blobs" in parse_qs(urlsplit(self.path).query)
        info: dict[str, Any] = {
            "_id": "0" * 24,
            "id": request.model,
            "modelId": request.model,
            "author": request.model.split("/")[0],
            "sha": commit,
            "private": bool(self.hub.token),
            "gated": "manual" if request.model in self.hub.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [self.sibling(name, blob, detailed=detailed) for name, blob in sorted(tree.items())],
        }
        self.hub.altered(info)
        return info

    def sibling(self, name: str, blob: Blob, *, detailed: bool) -> dict[str, Any]:
        if not detailed:
            return {"rfilename": name}
        found: dict[str, Any] = {"rfilename": name, "blobId": blob.oid, "size": len(blob.content)}
        if blob.lfs:
            found["lfs"] = {
                "sha256": sha256(blob.content),
                "size": len(blob.content),
                "pointerSize": len(blob.pointer),
            }
        return found

    def entry(self, name: str, blob: Blob) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": len(blob.content), "path": name}
        if blob.lfs:
            found["lfs"] = {"oid": sha256(blob.content), "size": len(blob.content), "pointerSize": len(blob.pointer)}
        return found

    def entries(self, tree: Mapping[str, Blob], request: Request) -> list[dict[str, Any]]:
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
        below = f"{request.name}/" if request.name else ""
        files = {name: blob for name, blob in sorted(tree.items()) if name.startswith(below)}
        folders = {name.rpartition("/")[0] for name in files if "/" in name.removeprefix(below)}
        own = [
            self.entry(name, blob)
            for name, blob in files.items()
            if recursive or name.rpartition("/")[0] not in folders
        ]
        return [*({"type": "directory", "oid": "0" * 40, "size": 0, "path": each} for each in sorted(folders)), *own]

    def send_file(self, commit: str, blob: Blob | None, failure: Failure | None) -> None:
        if blob is None:
            self.send_failure(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        if blob.lfs and self.hub.redirecting and failure is None:
            place = f"{self.hub.elsewhere}/bytes/{sha256(blob.content)}?X-Signature=0123456789abcdef"
            self.send_body(302, b"", {**headers, "Location": place})
        else:
            self.send_content(blob.content, headers, failure)

    def send_failure(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        codes = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.send_json(status, {"error": message}, {**codes, **(headers or {})})

    def send_json(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        self.send_body(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send_strangely(self, failure: Failure) -> None:
        """Answer with bytes that do not come as they should, until the client has had enough."""
        content = failure.content or b" " * (1 << 20)
        self.close_connection = True
        self.send_response(failure.status or 200)
        for name, value in failure.headers.items():
            self.send_header(name, value)
        if not failure.unsized:
            self.send_header("Content-Length", str(1 << 40 if failure.endless else len(content)))
        self.end_headers()
        with suppress(OSError):
            while True:
                for first in range(0, len(content), 1 if failure.drip else len(content)):
                    self.wfile.write(content[first : first + 1] if failure.drip else content)
                    time.sleep(failure.drip)
                if not failure.endless:
                    return


Hub.handler = _Handler
