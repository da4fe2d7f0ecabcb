"""Digests of tensors: the numbers and nothing else; remembered as long as the file is the same."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cosyjit.errors import CheckpointError
from cosyjit.fs.digests import Digests
from cosyjit.fs.identity import Identity
from cosyjit.weights.fit import PLAIN
from cosyjit.weights.tensor_digests import TensorDigest, _kind, are_remembered, read_tensors
from cosyjit.weights.tensors import ITEM_SIZES
from tests.support.file_changes import CHANGED, CHANGING, changing
from tests.support.processes import ROOT, finished, spawn, wait_for

Save = Callable[..., Path]
Taken = Mapping[str, TensorDigest]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes tensors to a file."""

    def save(name: str = "a.pt", /, **tensors: object) -> Path:
        torch.save(tensors, tmp_path / name)
        return tmp_path / name

    return save


def taken(path: Path, memory: Digests | None = None) -> Taken:
    """The digests of a file's tensors; nothing is remembered without a memory."""
    return read_tensors(memory or Digests(Path("/proc/no memory")), [path])[path].tensors


def expected(tensor: Tensor) -> TensorDigest:
    """By numpy, which brings into order what is stored in another one, and has no bfloat16."""
    plain = tensor.detach().view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor.detach()
    digest = xxhash.xxh3_128_hexdigest(plain.numpy().tobytes())
    return TensorDigest(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest)


def numbers(shape: tuple[int, ...] | list[int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 2 if dtype is torch.bool else 120, shape, generator=generator).to(dtype)


DTYPES: Final = [getattr(torch, name) for name in ITEM_SIZES]

in_one_directory = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@given(data=st.data())
@in_one_directory
def test_a_digest_is_that_of_the_numbers_in_order(data: st.DataObject, save: Save) -> None:
    shape = data.draw(st.lists(st.integers(0, 6), max_size=4))
    tensor = numbers(shape, data.draw(st.sampled_from(DTYPES)))
    for axis, size in enumerate(shape):
        start = data.draw(st.integers(0, size))
        tensor = tensor.narrow(axis, start, data.draw(st.integers(min(1, size - start), size - start)))
    tensor = tensor.permute(data.draw(st.permutations(range(len(shape)))))
    if 0 not in tensor.shape:  # torch counts offsets of empty views past the end, which have a test of their own
        assert taken(save(x=tensor)) == {"x": expected(tensor)}
    assert taken(save(x=tensor.contiguous().clone())) == {"x": expected(tensor)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_numbers_have_one_digest_however_they_are_stored(dtype: torch.dtype, save: Save) -> None:
    tensor, row = numbers((7, 5), dtype), numbers((12,), dtype)
    wide = torch.zeros(9, 20, dtype=dtype)
    wide[1:8, 3:18:3] = tensor
    path = save(
        plain=tensor,
        turned=tensor.t().contiguous().t(),
        view=wide[1:8, 3:18:3],
        parameter=torch.nn.Parameter(tensor, requires_grad=False),
        row=row[0].expand(3, 4),
        repeated=row[0].clone().repeat(3, 4),
        scalar=tensor[2, 3],
        same=tensor[2, 3].clone(),
    )
    found = taken(path)
    assert found["plain"] == expected(tensor)
    assert found["turned"] == found["view"] == found["parameter"] == found["plain"]
    assert found["row"] == found["repeated"] == expected(row[0].expand(3, 4))
    assert found["scalar"] == found["same"] == expected(tensor[2, 3])


@pytest.mark.parametrize("size", [1 << 18, (1 << 18) - 1, (1 << 18) + 1, 3 << 18, 5_000_001], ids=str)
def test_a_tensor_longer_than_what_is_read_at_a_time_has_its_digest(size: int, save: Save) -> None:
    tensor = torch.arange(size, dtype=torch.float32)
    assert taken(save(x=tensor, y=tensor[1:])) == {"x": expected(tensor), "y": expected(tensor[1:])}


def test_many_tensors_in_several_files_each_have_theirs(save: Save, memory: Digests) -> None:
    states = [{f"{i}.{j}": numbers((300 + i, 700 + j), torch.float32) for j in range(20)} for i in range(3)]
    paths = [save(f"{i}.pt", **state) for i, state in enumerate(states)]
    found = read_tensors(memory, paths)
    for path, state in zip(paths, states, strict=True):
        assert found[path].tensors == {name: expected(tensor) for name, tensor in state.items()}
        assert found[path].identity == Identity.of(path)


def test_what_does_not_belong_to_the_numbers_does_not_count(tiny: Path, tmp_path: Path) -> None:
    before = taken(tiny / "llm.pt")
    state = torch.load(tiny / "llm.pt", weights_only=True)
    other = tmp_path / "renamed and saved again.pt"
    torch.save(dict(reversed(state.items())), other, _use_new_zipfile_serialization=True)
    assert other.read_bytes() != (tiny / "llm.pt").read_bytes()
    assert taken(other) == before
    assert before == {name: expected(tensor) for name, tensor in state.items()}


@given(data=st.data())
@in_one_directory
def test_any_changed_byte_changes_the_digest(data: st.DataObject, save: Save) -> None:
    tensor = numbers((3, 50), data.draw(st.sampled_from(DTYPES[1:])))
    content = tensor.flatten().view(torch.uint8)
    stored = tensor.t() if data.draw(st.booleans()) else tensor
    before = taken(save(x=stored, y=torch.ones(2)))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    after = taken(save(x=stored, y=torch.ones(2)))
    assert after["x"].digest != before["x"].digest
    assert after["y"] == before["y"]


def test_type_shape_and_sign_of_zero_count(save: Save) -> None:
    zeros = torch.zeros(2, 3)
    found = taken(
        save(a=zeros, b=zeros.t().clone(), c=-zeros, d=zeros.to(torch.int32), e=torch.zeros(2, 0), f=torch.zeros(0, 2))
    )
    assert len(set(found.values())) == len(found)
    assert found["a"].digest == found["d"].digest


def test_an_entry_that_is_not_a_tensor_has_the_name_of_its_type(save: Save) -> None:
    assert taken(save(epoch=3, sparse=torch.eye(2).to_sparse(), x=torch.ones(2))) == {
        "epoch": TensorDigest("int", (), ""),
        "sparse": TensorDigest("Tensor, sparse", (), ""),
        "x": expected(torch.ones(2)),
    }


def test_tensors_that_are_not_wanted_are_left_out(save: Save, memory: Digests) -> None:
    path = save(**{"a.x": torch.ones(2), "a.y": torch.zeros(2), "b.x": torch.ones(3), "c": 5, "ab": torch.ones(1)})
    wanted = read_tensors(memory, [path], ["a.", "c"])[path].tensors
    assert wanted == {name: each for name, each in taken(path).items() if name in {"a.x", "a.y", "c"}}
    assert are_remembered(memory, path, ["c", "a."])
    assert not are_remembered(memory, path, ["a."])
    assert not are_remembered(memory, path)
    assert read_tensors(memory, [path], ["c", "a."])[path].tensors == wanted
    assert taken(path, memory) == taken(path)


# What is remembered.

OPENED: Final = """
import sys
from pathlib import Path
from cosyjit.fs.digests import Digests
from cosyjit.weights.tensor_digests import read_tensors

opened = []
sys.addaudithook(lambda event, values: opened.append(str(values[0])) if event == "open" else None)
read_tensors(Digests(Path(sys.argv[1])), [Path(path) for path in sys.argv[2:]])
print(*(Path(path).name for path in opened if path.endswith(".pt")))
"""


def files_opened(memory: Digests, *paths: Path) -> list[str]:
    """The weights files that a process opens to take the digests of some."""
    ran = finished(spawn(sys.executable, "-c", OPENED, memory.directory, *paths, cwd=ROOT))
    assert ran.err == ""
    return ran.out.split()


def remembered(memory: Digests) -> Path:
    """Where the one thing stands that is remembered."""
    (path,) = memory.directory.iterdir()
    return path


def alter(memory: Digests, path: Path) -> None:
    """Have something remembered of a file that is not so, to see whether it is believed."""
    identity = Identity.of(path)
    assert memory.recall(_kind(("",)), path, identity) is not None
    memory.remember(_kind(("",)), path, identity, {"reading": PLAIN, "needs": "", "tensors": ALTERED})


ALTERED: Final = {"remembered": TensorDigest("int8", (5,), "0" * 32)}


def test_a_file_that_has_not_changed_is_not_opened_again(save: Save, memory: Digests) -> None:
    paths = [save("a.pt", x=torch.ones(3)), save("b.pt", x=torch.zeros(3))]
    assert files_opened(memory, *paths) == ["a.pt", "b.pt"]
    assert files_opened(memory, *paths) == []
    os.utime(paths[1])
    assert files_opened(memory, *paths) == ["b.pt"]
    assert files_opened(memory, *paths) == []


def test_what_is_remembered_is_what_was_taken(save: Save, memory: Digests) -> None:
    path = save(x=numbers((3, 4), torch.float16), scalar=torch.tensor(True), epoch=3, empty=torch.empty(0))
    assert not are_remembered(memory, path)
    first = read_tensors(memory, [path])
    assert are_remembered(memory, path)
    assert read_tensors(Digests(memory.directory), [path]) == first
    alter(memory, path)
    assert taken(path, memory) == ALTERED


def rewrite(path: Path) -> None:
    """In place, to the same length, with the time of modification put back."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(3).numpy().tobytes())] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace(path: Path) -> None:
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


CHANGES: Final[list[Callable[[Path], None]]] = [
    Path.touch,
    rewrite,
    replace,
    lambda path: os.utime(path, ns=(0, 1)),
    lambda path: torch.save({"x": torch.ones(4)}, path),
]


@pytest.mark.parametrize("change", CHANGES, ids=["touched", "rewritten", "replaced", "dated back", "saved"])
def test_a_file_that_was_changed_is_read_again(change: Callable[[Path], None], save: Save, memory: Digests) -> None:
    path = save(x=torch.ones(3))
    read_tensors(memory, [path])
    alter(memory, path)
    change(path)
    assert not are_remembered(memory, path)
    assert taken(path, memory) == taken(path)
    assert are_remembered(memory, path)


def test_a_file_that_was_moved_is_read_again_and_the_one_that_took_its_place(save: Save, memory: Digests) -> None:
    path = save(x=torch.ones(3))
    read_tensors(memory, [path])
    alter(memory, path)
    moved = path.rename(path.with_name("moved.pt"))
    assert taken(moved, memory) == taken(moved)
    assert list(memory.of_missing()) == [
        file for file in memory.directory.iterdir() if file != _memory_of(memory, moved)
    ]
    save(x=torch.ones(3))
    assert taken(path, memory) == taken(path)
    assert list(memory.of_missing()) == []


def _memory_of(memory: Digests, path: Path) -> Path:
    (found,) = (
        each
        for each in memory.directory.iterdir()
        if json.loads(each.read_bytes().partition(b"\n")[2])["path"] == str(path)
    )
    return found


def damaged(content: bytes) -> list[bytes]:
    seal, _, text = content.partition(b"\n")
    entry = json.loads(text)
    values: list[Any] = [5, None, [], {"x": 5}, {"x": ["float32", [3]]}, {"x": ["float32", 3, "0"]}, {"x": [1, [2], 3]}]
    others: list[Any] = [
        [],
        {},
        None,
        "text",
        entry | {"more": 2},
        entry | {"path": "other"},
        entry | {"identity": 1},
    ]
    return [
        b"",
        b"\0" * len(content),
        b"\xff\xfe",
        content[:-1],
        content * 2,
        b"[" * 100_000,
        *(
            seal + b"\n" + json.dumps(each).encode()
            for each in [*others, *(entry | {"value": value} for value in values)]
        ),
    ]


@pytest.mark.parametrize("case", range(20))
def test_a_damaged_memory_is_taken_anew(case: int, save: Save, memory: Digests) -> None:
    path = save(x=torch.ones(3))
    read_tensors(memory, [path])
    where = remembered(memory)
    whole = where.read_bytes()
    contents = damaged(whole)
    assert len(contents) == 20
    where.write_bytes(contents[case])
    assert list(memory.of_missing()) in ([], [where])  # "other" is missing, if that is what it says
    assert taken(path, memory) == {"x": expected(torch.ones(3))}
    assert where.read_bytes() == whole


@pytest.mark.parametrize("directory", ["/proc/memory", "/sys/memory", "a.pt/memory"])
def test_a_memory_that_cannot_be_written_to_costs_time_only(directory: str, tmp_path: Path, save: Save) -> None:
    path = save(x=torch.ones(3))
    memory = Digests(tmp_path / directory)
    for _ in range(2):
        assert taken(path, memory) == {"x": expected(torch.ones(3))}
        assert not are_remembered(memory, path)
    assert list(memory.of_missing()) == []


def test_a_directory_in_place_of_what_is_remembered_is_harmless(save: Save, memory: Digests) -> None:
    path = save(x=torch.ones(3))
    read_tensors(memory, [path])
    where = remembered(memory)
    where.unlink()
    where.mkdir()
    for _ in range(2):
        assert taken(path, memory) == {"x": expected(torch.ones(3))}
    assert list(memory.directory.iterdir()) == [where]


def test_what_is_not_a_weights_file_is_not_remembered(memory: Digests, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_tensors(memory, [path])
    assert not are_remembered(memory, path)
    path.write_bytes(b"te")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_tensors(memory, [path])
    assert not memory.directory.exists()


# What happens to a file while it is read.


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGING.values(), ids=CHANGING)
def test_a_file_that_is_changed_while_it_is_read_never_has_a_wrong_digest(
    change: str, save: Save, memory: Digests, tmp_path: Path
) -> None:
    originals = [save(f"{value}.pt", x=torch.full((2 << 20,), float(value)), y=torch.ones(2)) for value in range(2)]
    right = [taken(path) for path in originals]
    path = Path(shutil.copy(originals[0], tmp_path / "changing.pt"))
    errors: list[str] = []

    def seen() -> bool:
        try:
            assert taken(path, memory) in right
        except CheckpointError as error:
            errors.append(str(error))
        return errors.count(f"{path}: {CHANGED}") == 5

    with changing(change, path, originals):
        assert wait_for(seen)
    assert taken(path, memory) == taken(path) in right
    assert all(message.startswith(f"{path}: ") and len(message.splitlines()) == 1 for message in errors)


PEAK: Final = """
import sys
from pathlib import Path
from cosyjit.fs.digests import Digests
from cosyjit.weights.tensor_digests import read_tensors

memory = Digests(Path(sys.argv[1]))
read_tensors(memory, [Path(sys.argv[2])])
# Not `ru_maxrss`, in which a process inherits its parent's.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(save: Save, memory: Digests) -> None:
    peaks = []
    for size in (1 << 10, 75 << 20):
        path = save(f"{size}.pt", x=torch.zeros(size), y=torch.zeros(8, 4).t())
        ran = finished(spawn(sys.executable, "-c", PEAK, memory.directory, path, cwd=ROOT))
        assert ran.err == ""
        peaks.append(int(ran.out))
    assert path.stat().st_size > 300e6
    assert peaks[1] - peaks[0] < 20_000


def test_threads_that_take_digests_at_once_agree(save: Save, memory: Digests) -> None:
    path = save(x=numbers((500, 500), torch.float32))
    found: list[Taken] = []
    threads = [threading.Thread(target=lambda: found.append(taken(path, memory))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [taken(path)] * 8
    assert len(list(memory.directory.iterdir())) == 1


EMPTY: Final = """
import resource, sys
from pathlib import Path
from cosyjit.fs.digests import Digests
from cosyjit.weights.tensor_digests import read_tensors

resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
print(read_tensors(Digests(Path(sys.argv[1])), [Path(sys.argv[2])])[Path(sys.argv[2])].tensors["x"])
"""


def test_a_tensor_of_many_rows_without_numbers_takes_no_time_nor_memory(save: Save, memory: Digests) -> None:
    path = save(x=torch.empty(0, 1 << 40).t())
    ran = finished(spawn(sys.executable, "-c", EMPTY, memory.directory, path, cwd=ROOT))
    assert ran == (0, f"{TensorDigest('float32', (1 << 40, 0), xxhash.xxh3_128_hexdigest(b''))}\n", "")
