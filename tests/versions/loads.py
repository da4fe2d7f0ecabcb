"""Compare what one environment has made with the eager encoders of another, in which this program runs.

    python -m tests.versions.loads DIRECTORY...

Each DIRECTORY is a model directory, with its zips beside the weights, and folders of vLLM's, one for each precision,
in `DIRECTORY-vllm-PRECISION`. The answer is a line of JSON for each artifact.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from cosyjit.configuration.base_model import read_qwen2_config
from cosyjit.families import PRECISIONS, Component, Precision
from cosyjit.folders import folder as folders
from cosyjit.torchscript.expected import Expected
from cosyjit.torchscript.gate import _Gate
from cosyjit.torchscript.load import load_encoder
from cosyjit.torchscript.script import cast
from cosyjit.vllm.rules import plan_folder
from tests.support.checkpoints import opened
from tests.support.weights_index import indexed_file


def compare_zip(directory: Path, component: Component, precision: Precision) -> tuple[int, float]:
    """How many calls were compared, and the largest error.

    The gate also compares a zip's code with what its own torch makes, which that of another torch need not equal.
    """
    checkpoint = opened(directory)
    encoder, tensors = load_encoder(checkpoint.source, component, checkpoint.options(component))
    encoder.load_state_dict(cast(tensors, torch.float32), assign=True)
    gate = _Gate(component.tolerances[precision.name], precision)
    module = gate.load(directory / component.file_name(precision.name))
    gate.check_methods(module, ("forward", *component.methods))
    with torch.inference_mode():
        count = gate.check_numbers(module, Expected(encoder), component.methods, getattr(torch, precision.dtype))
    return count, gate.metrics.absolute


def compare_folder(directory: Path, component: Component, precision: Precision) -> tuple[int, float]:
    """How many tensors were compared, bit for bit."""
    checkpoint = opened(directory)
    weights = directory / component.weights
    folder = plan_folder(component, read_qwen2_config(checkpoint.source.directory), weights, indexed_file(weights))
    with tempfile.TemporaryDirectory() as copy:
        published = Path(f"{directory}-vllm-{precision.name}") / component.file_name(precision.name)
        made = shutil.copytree(published, Path(copy) / "vllm")  # of links, which the gate would refuse
        folders.verify(folder, weights, made, precision, lambda _: None)
    return len(folder.tensors), 0.0


def main(*directories: str) -> None:
    """Compare all artifacts of all directories."""
    torch.set_num_threads(1)
    for directory in map(Path, directories):
        for component in (part for part in opened(directory).family.components if not part.on_request):
            compare = compare_zip if component.kind == "zip" else compare_folder
            for name in component.tolerances:
                count, error = compare(directory, component, PRECISIONS[name])
                found = {"kind": component.kind, "precision": name, "count": count, "error": error}
                print(json.dumps(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
