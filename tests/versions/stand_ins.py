"""Stand-ins for the libraries of CUDA, so that torch's wheels for CUDA run on a CPU without gigabytes of them.

A wheel for CUDA needs these libraries to be imported, and calls none of their functions where there is no GPU. Each
stand-in is empty. It refers to one more library that defines all the functions, because the loader wants each of them
to exist: the one that counts the GPUs answers that there is none.
"""

import re
import subprocess
from pathlib import Path
from typing import Final

_FUNCTIONS: Final = "libcosyjit_no_cuda.so"

_CUDA_LIBRARY: Final = re.compile(r"lib(cu|nv|nccl)")
_CUDA_FUNCTION: Final = re.compile(r"(__cuda|cu|nv|nccl)")

_NO_DEVICE: Final = 100
"""The error cudaErrorNoDevice."""


def add_stand_ins(directory: Path) -> None:
    """Put a stand-in for each library of CUDA that is missing into a directory of torch's own libraries."""
    libraries = sorted(directory.glob("lib*torch*.so")) + sorted(directory.glob("libc10*.so"))
    present = {path.name for path in directory.iterdir()}
    missing = sorted(name for name in _needed(libraries) - present if _CUDA_LIBRARY.match(name))
    if not missing:
        return
    defined, undefined = _functions(sorted(directory.glob("*.so*")))
    functions = sorted(name for name in undefined - defined if _CUDA_FUNCTION.match(name))
    code = f"int cosyjit_no_device(void) {{ return {_NO_DEVICE}; }}\n"
    code += "".join(f'__asm__(".globl {name}\\n.set {name}, cosyjit_no_device");\n' for name in functions)
    _link(directory, _FUNCTIONS, "-x", "c", "-", code=code)
    for name in missing:
        _link(directory, name, "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", _FUNCTIONS)


def _needed(libraries: list[Path]) -> set[str]:
    """The names of the libraries that some libraries refer to."""
    return set(re.findall(r"NEEDED.*\[(.+)\]", _output("readelf", "--dynamic", "--wide", *libraries)))


def _functions(libraries: list[Path]) -> tuple[set[str], set[str]]:
    """The names that some libraries define, and those that they refer to, without their versions."""
    found: tuple[set[str], set[str]] = set(), set()
    for line in _output("nm", "--dynamic", *libraries).splitlines():
        if match := re.fullmatch(r"[0-9a-f ]+([A-Za-z]) ([^@\s]+)(@.*)?", line):
            found[match[1] == "U"].add(match[2])
    return found


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _link(directory: Path, name: str, *arguments: str, code: str = "") -> None:
    command = ["cc", "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{name}", "-o", name, *arguments]
    subprocess.run(command, check=True, cwd=directory, input=code, text=True)
