"""Writes an ONNX file from a model and a weights file, and compares it with both; both stream, whatever the size.

An ONNX file is one message of protobuf. Its bytes are those that the library `onnx` would write of the whole model:

    ├ version, producer ┼ length of graph ┼ nodes, constants ┼ weight ┼ weight ┼ … ┼ inputs, outputs ┼ opset, metadata ┤
                                                              └── name, shape, type, length of its bytes, bytes

All lengths follow from the model, so that the file is written from its beginning to its end, and no weight is in memory
but for a block of it. The format is https://onnx.ai/onnx/repo-docs/IR.html and
https://protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx

from cosyjit.errors import BuildError, VerificationError
from cosyjit.families import PRECISIONS
from cosyjit.fs import files
from cosyjit.onnx.forms import LIMITS
from cosyjit.onnx.graph import TYPES, Model, Weight
from cosyjit.processes.worker import Progress
from cosyjit.weights.casting import Caster, located
from cosyjit.weights.fit import PLAIN, Reading
from cosyjit.weights.safetensors import UNSOUND

_LARGEST: Final = (1 << 31) - 1
"""The largest message that readers of protobuf take, in bytes."""

_PRECISIONS: Final = {
    precision.dtype: precision._replace(hint=LIMITS[precision.dtype].hint)
    for precision in PRECISIONS.values()
    if precision.dtype in LIMITS and not precision.quantized
}


def write(model: Model, weights: Path, prefix: str, path: Path, progress: Progress, reading: Reading = PLAIN) -> int:
    """Write a file. Equal inputs give equal bytes. The file is not flushed to disk.

    Args:
        model: from `cosyjit.onnx.models.make`.
        weights: the file with the tensors.
        prefix: the beginning of their names there.
        path: the file to be written, which does not exist.
        progress: receives "write", and how many numbers underflow, if any do.
        reading: how the names in the weights file are read.

    Returns:
        How many numbers underflow to 0 in the cast.

    Raises:
        CheckpointError: the weights file cannot be read, or was changed after it was planned.
        BuildError: the file would be larger than ONNX files can be.
        VerificationError: numbers are NaN or infinite, or become so in the cast.
        OSError: the file cannot be written to.
    """
    progress("write")
    content = _Content(model, weights, prefix, reading)
    content.check_size(path)
    with path.open("xb") as file:
        for _, block in content.blocks():
            file.write(block)
    if content.underflows:
        progress(f"cast: {content.underflows:,} numbers become 0")
    return content.underflows


def verify(model: Model, weights: Path, prefix: str, path: Path, progress: Progress, reading: Reading = PLAIN) -> None:
    """Read a file back, and compare all of it with its inputs.

    Its graph has to be that of the model, made anew; each weight the cast of its tensor, bit for bit.

    Args:
        model, weights, prefix, reading: the inputs that it was written from.
        path: the file.
        progress: receives "compare".

    Raises:
        CheckpointError: as `write`.
        VerificationError: the file is not what it should be, or its weights are not sound.
        OSError: it cannot be read.
    """
    progress("compare")
    content = _Content(model, weights, prefix, reading)
    with path.open("rb", buffering=0) as file:
        at = 0
        for what, expected in content.blocks():
            block = bytearray(len(expected))
            if not files.fill(file.fileno(), memoryview(block), at) or block != expected:
                raise VerificationError(f"{path}: {what}; {UNSOUND}")
            at += len(expected)
        if file.seek(0, 2) != at:
            raise VerificationError(f"{path}: is longer than what was planned; {UNSOUND}")


def places(model: Model) -> Iterator[int]:
    """Where the numbers of each weight begin in a file, in bytes."""
    layout = _Layout(model)
    at = len(layout.begin)
    for weight, head in zip(model.weights, layout.heads, strict=True):
        at += len(head)
        yield at
        at += weight.size


class _Layout:
    """What is in a file besides the numbers of its weights: before all, before each of them, and behind all."""

    def __init__(self, model: Model) -> None:
        beginning = onnx.ModelProto()
        beginning.CopyFrom(model.proto)
        beginning.ClearField("graph")
        end = onnx.ModelProto(opset_import=beginning.opset_import, metadata_props=beginning.metadata_props)
        beginning.ClearField("opset_import")
        beginning.ClearField("metadata_props")
        nodes = onnx.GraphProto()
        nodes.CopyFrom(model.proto.graph)
        ends = onnx.GraphProto(input=nodes.input, output=nodes.output)
        nodes.ClearField("input")
        nodes.ClearField("output")
        self.heads = [_head(weight) for weight in model.weights]
        inner = nodes.SerializeToString(), ends.SerializeToString()
        length = sum(map(len, (*inner, *self.heads))) + model.size
        self.begin = beginning.SerializeToString() + _field(_GRAPH, length) + inner[0]
        self.end = inner[1] + end.SerializeToString()
        self.size = sum(map(len, (self.begin, *self.heads, self.end))) + model.size


class _Content:
    """The bytes of a file, in blocks, made of a model and a weights file."""

    def __init__(self, model: Model, weights: Path, prefix: str, reading: Reading) -> None:
        self.model, self.weights, self.prefix, self.reading = model, weights, prefix, reading
        self.underflows = 0
        self.layout = _Layout(model)

    def check_size(self, path: Path) -> None:
        size = self.layout.size
        if size > _LARGEST:
            raise BuildError(
                f"{path}: would have {size:,} bytes, more than the {_LARGEST:,} that an ONNX file can have; "
                "export a form in half precision instead"
            )

    def blocks(self) -> Iterator[tuple[str, memoryview]]:
        """The blocks in their order, each with what is wrong where a file has other bytes; valid until the next."""
        shapes = {f"{self.prefix}{weight.name}": weight.parameter_shape for weight in self.model.weights}
        yield "its graph is not that of the estimator", memoryview(self.layout.begin)
        with located(self.weights, shapes, self.reading) as (source, places):
            casters = {dtype: Caster(source, self.weights, precision) for dtype, precision in _PRECISIONS.items()}
            for weight, head, stored in zip(self.model.weights, self.layout.heads, places, strict=True):
                yield "its graph is not that of the estimator", memoryview(head)
                name = f"{self.prefix}{weight.name}"
                for block in casters[weight.dtype].blocks(name, stored):
                    yield f"{weight.name} is not the cast of {name} in {self.weights}", block
            self.underflows = sum(caster.underflows for caster in casters.values())
        yield "its graph is not that of the estimator", memoryview(self.layout.end)


# Protobuf: each field is a tag, its number times 8 plus the kind of its content, and the content.

_LENGTH_DELIMITED: Final = 2
_GRAPH: Final = 7
_INITIALIZER: Final = 5
_RAW_DATA: Final = 9


def _head(weight: Weight) -> bytes:
    """What is before the numbers of a weight: a field of the graph, a tensor up to the length of its numbers."""
    tensor = onnx.TensorProto(name=weight.name, data_type=TYPES[weight.dtype], dims=weight.shape)
    described = tensor.SerializeToString() + _field(_RAW_DATA, weight.size)
    return _field(_INITIALIZER, len(described) + weight.size) + described


def _field(number: int, length: int) -> bytes:
    """The tag of a field whose content has a length, and that length; of seven bits each, the lowest first."""
    encoded = bytearray([number << 3 | _LENGTH_DELIMITED])
    while length > 0x7F:  # noqa: PLR2004
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
