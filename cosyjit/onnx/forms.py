"""The forms of an estimator's ONNX file, as data: each is what one kind of runtime reads."""

from typing import Final, NamedTuple

from cosyjit.families import Tolerance

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


# Measured with torch 2.13 and onnxruntime 1.32 on full-size weights of random numbers, over all calls of the gate: the
# largest absolute error, the largest relative one and the smallest cosine. What is allowed of float32 is what zips are
# allowed; of half precision, some eight times the errors.
#   CosyVoice, fp32             7.7e-6, 2.6e-6, 1
#   CosyVoice2, fp32            4.4e-6, 1.7e-6, 1
#   CosyVoice3, fp32            2.2e-5, 4.1e-6, 1
#   CosyVoice, autocast_fp16    3.1e-3, 1.0e-3, 0.9999994
#   CosyVoice2, autocast_fp16   3.5e-3, 1.1e-3, 0.9999994
#   CosyVoice3, autocast_fp16   3.0e-3, 6.5e-4, 0.9999998
# ONNX Runtime computes most of that in float32. Where the result of each node is rounded to the type that the graph
# gives it, the relative errors over 24 frames are 8.9e-4, 1.0e-3 and 1.5e-3; those of a graph that is in half precision
# throughout, 2.9e-2, 1.5e-2 and 4.9e-2.
LIMITS: Final = {
    "float32": Limits(Tolerance(1e-4, 2e-5, 0.9999999), "this is a fault of cosyjit or of ONNX Runtime: report it"),
    "float16": Limits(Tolerance(0.03, 0.01, 0.99998), "export fp32 instead"),
}
"""By the type of the weights, by torch's names."""
