"""What building and verifying needs of packages that are not installed with cosyjit itself."""

from importlib.util import find_spec
from typing import Final

from cosyjit.errors import SelectionError
from cosyjit.planning.target import Target

_PACKAGES: Final = {"onnx": ("onnx", "onnxruntime"), "hf": ("tokenizers",)}
"""By `Component.kind`, which is also the name of the extra that installs them."""


def check_packages(target: Target) -> None:
    """Check that what building and verifying a target needs is installed; none of it is imported.

    Raises:
        SelectionError: something is missing.
    """
    kind = target.component.kind
    if not all(map(find_spec, _PACKAGES.get(kind, ()))):
        raise SelectionError(f"{target.name}: needs a package that is missing; install cosyjit[{kind}]")
