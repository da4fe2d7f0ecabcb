"""A small ModelScope on loopback: what its client asks for to list, download and push a model's files, and what fails.

    with Hub() as hub:
        hub.publish("iic/CosyVoice-300M", {"cosyvoice.yaml": b"…", "llm.pt": Path("llm.pt")})
        hub.use(monkeypatch)

It answers as the real one does as far as its client looks: commits of its own for each file, digests, ranges, error
bodies, redirects to where large files are.
"""

import base64
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NamedTuple, cast, final, get_args
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.support.files import sha256
from tests.support.hubs import Handler, LoopbackHub

Kind = Literal["listing", "download", "revisions", "batch", "upload", "commit"]

MODEL: Final = "iic/CosyVoice-300M"

# The client reads how patient it is, and whether its log has a place, when it is imported.
os.environ |= {"MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2", "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1"}
logging.getLogger("modelscope_hub").addHandler(logging.NullHandler())

_FOREIGN: Final = ("MODELSCOPE_API_TOKEN", "MODELSCOPE_CACHE", "MODELSCOPE_HOME", "MODELSCOPE_DOMAIN", "SESSION_ID")
"""What the environment of whoever runs the tests may say, and shall not."""


class Request(NamedTuple):
    """What the hub was asked for.

    Attributes:
        kind: "other" is anything that the client has no business to ask for.
        model: the id.
        revision: which one.
        name: that of the file; of a listing, the folder; of an upload, its SHA-256.
        headers: all of them, by names in small letters.
        recursive: whether a listing is of all that is below the folder.
    """

    kind: Kind | Literal["bytes", "other"]
    model: str
    revision: str
    name: str
    headers: Mapping[str, str]
    recursive: bool = False


class Blob(NamedTuple):
    """A file in a commit: its bytes, and the commit and time that it was last changed by and at."""

    content: bytes
    commit: str
    date: int


def log_in(token: str) -> None:
    """Leave a token where the client's own login does."""
    from modelscope_hub import HubConfig  # noqa: PLC0415  (see above)

    HubConfig().save_token(token)


def download_url(model: str, name: str, revision: str) -> str:
    """Where the client would download a file."""
    from modelscope_hub import HubApi, HubConfig  # noqa: PLC0415  (see above)

    return HubApi(HubConfig()).legacy.get_download_url(model, "model", name, revision)


@final
class Hub(LoopbackHub[Request]):
    """A hub, entered to run.

    Attributes:
        redirecting: whether bytes come from another place, as those of large files do.
        altered: changes an entry of a listing before it is sent.
    """

    kinds = get_args(Kind)

    def __init__(self) -> None:
        super().__init__()
        self.redirecting = False
        self.altered: Callable[[dict[str, Any]], object] = lambda entry: None  # noqa: ARG005
        self._trees: dict[str, dict[str, dict[str, Blob]]] = {}
        self._names: dict[str, dict[str, str]] = {}
        self._commits = 0

    @property
    def env(self) -> dict[str, str]:
        """What lets the real client come here and nowhere else."""
        return {
            "MODELSCOPE_ENDPOINT": self.endpoint,
            "MODELSCOPE_DOWNLOAD_INTRA_CLOUD": "false",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process, and those that it starts, ask this hub and no other."""
        for name in _FOREIGN:
            monkeypatch.delenv(name, raising=False)
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)

    def publish(self, model: str, files: Mapping[str, bytes | Path | None], revision: str = "master") -> str:
        """Commit files to a branch, None takes one away; the others stay as they are. Gives the commit."""
        with self.lock:
            self._commits += 1
            commit = hashlib.sha1(f"{model} {self._commits}".encode(), usedforsecurity=False).hexdigest()
            trees, names = self._trees.setdefault(model, {}), self._names.setdefault(model, {})
            tree = dict(trees.get(names.get(revision, ""), {}))
            for name, value in files.items():
                content = value.read_bytes() if isinstance(value, Path) else value
                if content is None:
                    del tree[name]
                elif name not in tree or tree[name].content != content:
                    tree[name] = Blob(content, commit, 1_700_000_000 + self._commits)
            trees[commit], names[revision] = tree, commit
            return commit

    def tag(self, model: str, name: str, commit: str) -> None:
        """Give a commit a name that stays."""
        self._names[model][name] = commit

    def is_download(self, request: Request) -> bool:
        return request.kind == "download"

    def tree(self, model: str, revision: str) -> dict[str, Blob] | None:
        """The files at a branch, tag or commit; None if there is no such one."""
        return self._trees.get(model, {}).get(self._names.get(model, {}).get(revision, revision))

    def files(self, model: str, revision: str = "master") -> dict[str, bytes]:
        """What a branch, tag or commit has."""
        return {name: blob.content for name, blob in (self.tree(model, revision) or {}).items()}

    def push(self, model: str, branch: str, actions: list[dict[str, Any]]) -> None:
        """Make a commit as a client wants it."""
        changes: dict[str, bytes | None] = {}
        for action in actions:
            if action["action"] == "delete":
                changes[action["path"]] = None
            elif action["type"] == "lfs":
                changes[action["path"]] = self.uploads.get(action["sha256"]) or self.stored(action["sha256"])
                assert changes[action["path"]] is not None, "a commit of what was never uploaded"
            else:
                changes[action["path"]] = base64.b64decode(action["content"], validate=True)
        self.publish(model, changes, branch)

    def stored(self, digest: str) -> bytes | None:
        """The bytes of a digest, in whatever commit of whatever model."""
        for trees in self._trees.values():
            for tree in trees.values():
                for blob in tree.values():
                    if sha256(blob.content) == digest:
                        return blob.content
        return None

    def names(self, model: str) -> list[str] | None:
        """The branches and tags; None if there is no such model."""
        return list(self._names[model]) if model in self._names else None


class _Handler(Handler, BaseHTTPRequestHandler):  # the latter again, whose names ruff lets stand
    @property
    def hub(self) -> Hub:
        return cast("Hub", super().hub)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = unquote(parts.path).removeprefix("/api/v1/models/").split("/")
        model, what = "/".join(path[:2]), "/".join(path[2:])
        stored = self.hub.stored(parts.path.removeprefix("/bytes/"))
        kinds: dict[str, Kind] = {"repo/files": "listing", "repo": "download", "revisions": "revisions"}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            kinds.get(what, "other") if stored is None else "bytes",
            model,
            query.get("Revision", ""),
            query.get("FilePath", "") or query.get("Root", ""),
            headers,
            query.get("Recursive") == "True",
        )
        self.hub.requests.append(request)
        if stored is not None:
            self.send_content(stored, {}, None)
        elif request.kind in {"bytes", "other"}:
            self.send_failure(404, "no such place")
        else:
            self.answer(request)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/api/v1/repos/models/").split("/")
        model, (what, *rest) = "/".join(path[:2]), path[2:]
        headers = {name.lower(): value for name, value in self.headers.items()}
        kinds: dict[str, Kind] = {"info": "batch", "commit": "commit"}
        request = Request(kinds.get(what, "other"), model, "/".join(rest) if what == "commit" else "", "", headers)
        body = json.loads(self.rfile.read(int(headers["content-length"])))
        if not self.is_taken(request):
            return
        if request.kind == "batch":
            self.send_data({"objects": [self.place(each["oid"]) for each in body["objects"]]})
        elif request.kind == "commit" and self.hub.tree(model, request.revision) is not None:
            self.hub.push(model, request.revision, body["actions"])
            self.send_data({})
        else:
            self.send_failure(404, "record not found")

    def do_PUT(self) -> None:
        digest = urlsplit(self.path).path.removeprefix("/uploads/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request("upload", "", "", digest, headers)
        if not self.is_taken(request):
            return
        self.take_upload(digest)

    def is_taken(self, request: Request) -> bool:
        """Whether one who wants to push may; else the answer is sent."""
        self.hub.requests.append(request)
        self.hub.meanwhile(request)
        failure = None if request.kind == "upload" else self.hub.failing(request.kind, request.name)
        shown = request.headers.get("authorization")
        if failure is not None and failure.content is not None:
            self.send_body(failure.status, failure.content, failure.headers)
        elif failure is not None:
            self.send_failure(failure.status, "as the test wants it", failure.headers)
        elif self.hub.writer and shown != f"Bearer {self.hub.writer}":
            self.send_failure(401 if shown is None else 403, "no permission")
        else:
            return True
        self.close_connection = True  # what was sent is not read
        return False

    def place(self, digest: str) -> dict[str, Any]:
        """Where a file is to be uploaded, unless it is there."""
        if digest in self.hub.uploads or self.hub.stored(digest) is not None:
            return {"oid": digest}
        return {
            "oid": digest,
            "actions": {"upload": {"href": f"{self.hub.endpoint}/uploads/{digest}?signature=s3cret"}},
        }

    def answer(self, request: Request) -> None:
        self.hub.meanwhile(request)
        kind = request.kind
        failure = self.hub.failing(kind, request.name)
        tree, names = self.hub.tree(request.model, request.revision), self.hub.names(request.model)
        if failure is not None and failure.status and failure.content is not None:
            self.send_body(failure.status, failure.content, failure.headers)
        elif failure is not None and failure.status:
            self.send_failure(failure.status, "as the test wants it", failure.headers)
        elif failure is not None and kind != "download":
            self.send_body(200, failure.content or b"", failure.headers)
        elif self.hub.token and request.headers.get("authorization") != f"Bearer {self.hub.token}":
            self.send_failure(401, "user not logged in")
        elif kind == "revisions" and names is not None:
            branches = [{"Revision": name, "CreatedAt": 1} for name in names]
            self.send_data({"RevisionMap": {"Branches": branches, "Tags": []}})
        elif tree is None or (kind == "download" and request.name not in tree):
            self.send_failure(404, "record not found")
        elif kind == "listing":
            self.send_data({"Files": list(self.listed(tree, request.name, recursive=request.recursive))})
        elif self.hub.redirecting:
            place = f"{self.hub.elsewhere}/bytes/{sha256(tree[request.name].content)}"
            self.send_body(302, b"", {"Location": place})
        else:
            self.send_content(tree[request.name].content, {}, failure)

    def listed(self, tree: Mapping[str, Blob], folder: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
        """The entries below a folder or, of these, the ones in it."""
        top = PurePosixPath(folder)
        below = {PurePosixPath(name): blob for name, blob in sorted(tree.items())}
        for path, blob in below.items():
            if top not in path.parents:
                continue
            if recursive or path.parent == top:
                yield self.entry(str(path), blob)
        folders = {parent for path in below for parent in path.parents if top in parent.parents}
        for each in sorted(folders if recursive else {each for each in folders if each.parent == top}):
            newest = max((blob for path, blob in below.items() if each in path.parents), key=lambda blob: blob.date)
            yield {**self.entry(str(each), newest), "Type": "tree", "Sha256": "", "Size": 0}

    def entry(self, name: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "CommitMessage": "update",
            "CommittedDate": blob.date,
            "IsLFS": len(blob.content) > 1000,
            "Name": name,
            "Path": name,
            "Revision": blob.commit,
            "Sha256": sha256(blob.content),
            "Size": len(blob.content),
            "Type": "blob",
        }
        self.hub.altered(entry)
        return entry

    def send_data(self, data: dict[str, Any]) -> None:
        self.send_json(200, {"Code": 200, "Data": data, "Message": "success", "Success": True})

    def send_failure(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = {"Code": 10010000000 + status, "Data": None, "Message": message, "RequestId": "1", "Success": False}
        self.send_json(status, body, headers)

    def send_json(self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        self.send_body(status, json.dumps(body).encode(), headers or {})

    def send_body(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        super().send_body(status, content, {"Content-Type": "application/json", **headers})


Hub.handler = _Handler
