"""Records beside a set that was downloaded: which of them and of the store's counts."""

from pathlib import Path
from shutil import copyfile

import pytest

from cosyjit.errors import RecordError, SignatureError, StoreError
from cosyjit.provenance import beside, lineage
from cosyjit.publishing.publication import Published
from cosyjit.store.store import Store
from tests.support.keys import Pair, pair
from tests.support.stores import NAME, put, record_path

FOLDER = {"config.json": b"{}"}


@pytest.fixture
def keys(tmp_path: Path) -> Pair:
    return pair(tmp_path)


def place(store: Store, directory: Path, artifact: Published) -> Path:
    """Copy the record of an artifact to where a push has it."""
    path = directory / beside.name_of(artifact.fingerprint)
    path.parent.mkdir(exist_ok=True)
    copyfile(record_path(store, artifact.fingerprint), path)
    return path


def find(store: Store, directory: Path, artifact: Published) -> bytes | None:
    return beside.find(store, directory, NAME, artifact.sha256, artifact.size, artifact.fingerprint)


def test_the_record_of_the_store_comes_first(first: Store, second: Store, directory: Path) -> None:
    artifact = put(first, b"zip")
    place(first, directory, artifact)
    assert find(second, directory, artifact) == record_path(first, artifact.fingerprint).read_bytes()
    put(second, b"zip", source="/models/b")
    assert find(second, directory, artifact) == second.read(f"records/{artifact.fingerprint}.json")
    assert b"/models/b" in (find(second, directory, artifact) or b"")
    assert find(first, directory.parent, artifact) is not None
    assert find(Store(directory / "none"), directory.parent, artifact) is None


def test_a_record_beside_has_the_signature_that_the_store_s_lacks(
    first: Store, directory: Path, tmp_path: Path, keys: Pair
) -> None:
    signed = Store(tmp_path / "signed", sign=keys.private)
    artifact = put(signed, b"zip")
    put(first, b"zip")
    requiring = Store(first.root, require=keys.public)
    with pytest.raises(SignatureError, match=r"first/records/.* is not signed"):
        find(requiring, directory, artifact)
    path = place(signed, directory, artifact)
    assert find(requiring, directory, artifact) == path.read_bytes()
    place(first, directory, artifact)
    with pytest.raises(SignatureError, match=r"first/records/.* is not signed"):
        find(requiring, directory, artifact)
    with pytest.raises(SignatureError, match=rf"{path}: is not signed"):
        find(Store(tmp_path / "none", require=keys.public), directory, artifact)


def test_a_record_of_other_bytes_or_another_fingerprint_is_an_error(first: Store, directory: Path) -> None:
    artifact, other = put(first, b"zip"), put(first, b"another")
    none = Store(directory / "none")
    path = place(first, directory, artifact)
    with pytest.raises(RecordError, match=rf"{path}: is of {NAME}, sha256 {artifact.sha256}; download it again"):
        find(none, directory, artifact._replace(sha256=other.sha256))
    copyfile(record_path(first, other.fingerprint), path)
    with pytest.raises(RecordError, match="another fingerprint's"):
        find(none, directory, artifact)
    path.write_bytes(b"{}")
    with pytest.raises(RecordError, match="is damaged"):
        find(none, directory, artifact)


def test_what_was_downloaded_is_traced_by_its_record(first: Store, directory: Path, tmp_path: Path) -> None:
    artifact = put(first, FOLDER)
    place(first, directory, put(first, b"zip"))
    (directory / "vllm").mkdir()
    (directory / "vllm" / "config.json").write_bytes(FOLDER["config.json"])
    none = Store(tmp_path / "none")
    with pytest.raises(StoreError, match="there is no store"):
        lineage.lineage(directory / "vllm", store=none)
    place(first, directory, artifact)
    made = lineage.lineage(directory / "vllm", store=none).record
    assert made is not None
    assert (made.name, made.sha256) == ("vllm", artifact.sha256)
