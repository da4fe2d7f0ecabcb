"""What a machine is, read from files as kernels write them."""

import os
from pathlib import Path
from typing import Any

import pytest

from cosyjit.doctor.finding import Finding
from cosyjit.doctor.machine import _arithmetic, _memory, _processors, _system
from cosyjit.processes.processors import processors

X86 = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu f16c avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8 avx512_fp16

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd fphp asimdhp asimddp i8mm bf16
CPU implementer\t: 0x41
"""


def root_of(tmp_path: Path, cpuinfo: str, quota: str = "max 100000") -> Path:
    """The files of a machine, whose process is in a group of version 2."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:    2000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/job\n")
    (tmp_path / "proc" / "self" / "mountinfo").write_text("1 0 0:1 / /group rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "group" / "job").mkdir(parents=True)
    (tmp_path / "group" / "job" / "cpu.max").write_text(f"{quota}\n")
    (tmp_path / "group" / "job" / "memory.max").write_text("1000000\n")
    return tmp_path


def values(findings: Any) -> dict[str, Any]:
    return {each.name: each.value for each in findings}


def test_the_instructions_of_x86_are_named_by_precision(tmp_path: Path) -> None:
    found = values(_processors(root_of(tmp_path, X86)))
    assert found == {
        "model": "Intel(R) Xeon(R) Platinum 8481C",
        "usable": processors(),
        "in all": os.cpu_count(),
        "fp16 instructions": ["avx512_fp16", "f16c"],
        "bf16 instructions": ["avx512_bf16", "amx_bf16"],
        "int8 instructions": ["avx512_vnni", "amx_int8"],
    }


def test_the_instructions_of_arm_are_named_by_precision(tmp_path: Path) -> None:
    found = values(_processors(root_of(tmp_path, ARM)))
    assert found["model"] == os.uname().machine
    assert found["fp16 instructions"] == ["asimdhp", "fphp"]
    assert found["bf16 instructions"] == ["bf16"]
    assert found["int8 instructions"] == ["asimddp", "i8mm"]


def test_a_group_that_allows_less_than_there_is_is_noted(tmp_path: Path) -> None:
    (found,) = (each for each in _processors(root_of(tmp_path, X86, "50000 100000")) if each.name == "group's share")
    assert (found.value, found.state) == (0.5, "note")
    assert "taskset" in found.advice


def test_a_group_that_allows_enough_is_well(tmp_path: Path) -> None:
    (found,) = (each for each in _processors(root_of(tmp_path, X86, "99900000 100000")) if each.name == "group's share")
    assert (found.value, found.state, found.advice) == (999, "ok", "")


def test_memory_is_that_of_the_machine_or_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = root_of(tmp_path, X86)
    found = values(_memory(root))
    assert (found["group's limit"], found["available"], found["for builds"]) == (1_000_000, 2_048_000, 750_000)
    monkeypatch.setenv("COSYJIT_MEMORY", "8")
    assert values(_memory(root))["for builds"] == 8_000_000_000
    monkeypatch.setenv("COSYJIT_MEMORY", "much")
    assert "for builds" not in values(_memory(root))


def test_a_system_says_what_it_is() -> None:
    assert {"kernel", "libc", "open files"} <= values(_system()).keys()


def test_what_torch_has_no_arithmetic_for_is_noted() -> None:
    assert _arithmetic({"fp16": True}, "fp16") == Finding("torch", "fp16 arithmetic", "native")
    found = _arithmetic({"bf16": False}, "bf16")
    assert (found.value, found.state) == ("emulated", "note")
