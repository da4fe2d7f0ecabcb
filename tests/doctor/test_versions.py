"""Which versions are installed, and whether they are those that cosyjit needs."""

from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from cosyjit.doctor.finding import Finding
from cosyjit.doctor.versions import _package, _versions


def test_all_that_is_needed_and_all_that_extras_add_is_named() -> None:
    found = {each.name: each for each in _versions()}
    assert found["torch"] == Finding("versions", "torch", version("torch"))
    assert found["prefect"] == Finding("versions", "prefect", version("prefect"))
    extras = {"s3fs", "prefect-dask", "cryptography", "vllm", "onnx", "onnxruntime", "tokenizers"}
    assert {"cosyjit", "Python", *extras} <= found.keys()
    assert "hypothesis" not in found  # which is for work on cosyjit alone
    assert [name for name, each in found.items() if each.state == "wrong"] == []


@pytest.mark.parametrize(
    ("requirement", "extra", "value", "state", "advice"),
    [
        ("nowhere>=2", "", None, "wrong", "is missing; `pip install 'nowhere>=2'`"),
        ("nowhere>=2", "s3", "not installed (cosyjit[s3])", "ok", ""),
        ("rich>=999", "", version("rich"), "wrong", "cosyjit needs >=999; `pip install 'rich>=999'`"),
        ("rich>=999", "s3", version("rich"), "note", "cosyjit needs >=999; `pip install 'rich>=999'`"),
        ("rich>=1", "", version("rich"), "ok", ""),
    ],
)
def test_what_is_missing_or_of_another_version_is_told(
    requirement: str, extra: str, value: str | None, state: str, advice: str
) -> None:
    found = _package(Requirement(requirement), extra)
    assert (found.value, found.state, found.advice) == (value, state, advice)
