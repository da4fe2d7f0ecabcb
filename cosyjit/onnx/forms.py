"""The forms of an estimator's ONNX file, as data: each is what one kind of runtime reads."""

from typing import Final, NamedTuple

from cosyjit.families import ESTIMATOR_TOLERANCES, Tolerance

VERSION: Final = 1
"""The version of the graphs and of the form of the files. It is raised when equal inputs give other bytes."""

BATCH: Final = 2
"""The rows of a batch: one utterance with its condition, and the same without, for classifier-free guidance."""


class Form(NamedTuple):
    """A form of the file.

    Attributes:
        name: the part of the file's name by which runtimes ask for it.
        dtype: the type of the inputs, the output and the weights, by torch's name. Where it is float16, the network is
            strongly typed: what needs float32 is computed in it, and says so by casts.
        streaming: whether frames see no further than the end of their chunk.
        dynamic_batch: whether a batch may have any number of rows. Otherwise it has `BATCH`, since the public runtime
            gives TensorRT no range for it.
    """

    name: str
    dtype: str
    streaming: bool = False
    dynamic_batch: bool = False


FORMS: Final = {
    form.name: form
    for form in (
        Form("fp32", "float32"),
        Form("autocast_fp16", "float16"),
        Form("streaming.fp32", "float32", streaming=True),
        Form("streaming.autocast_fp16", "float16", streaming=True),
        Form("fp32.dynamic_batch", "float32", dynamic_batch=True),
    )
}
"""By their names. The public runtime reads the first; the Triton runtime of the same repository, the others."""


class Limits(NamedTuple):
    """What is asked of files whose weights have a type.

    Attributes:
        tolerance: how far their outputs may be from the eager float32 estimator's; see `cosyjit.metrics.Metrics`.
        hint: what messages tell users to do where it is not met.
    """

    tolerance: Tolerance
    hint: str


LIMITS: Final = {
    "float32": Limits(ESTIMATOR_TOLERANCES["float32"], "this is a fault of cosyjit or of ONNX Runtime: report it"),
    "float16": Limits(ESTIMATOR_TOLERANCES["float16"], "export fp32 instead"),
}
"""By the type of the weights, by torch's names."""
