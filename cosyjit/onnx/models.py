"""Makes the model of an estimator from its class, its options and a form: without torch, and without its weights."""

from collections.abc import Mapping
from typing import Any, Final

from cosyjit.estimators.options import UNetOptions, features, options_of
from cosyjit.estimators.parameters import parameters
from cosyjit.onnx import dit, unet
from cosyjit.onnx.forms import BATCH, Form
from cosyjit.onnx.graph import Graph, Interface, Model

LENGTH: Final = "seq_len"
"""The name of the axis of frames, the only one of any size, but for a form whose batch has any size."""

OUTPUT: Final = "estimator_out"


def make(class_name: str, options: Mapping[str, Any], form: Form) -> Model:
    """The model of an estimator.

    Args:
        class_name: the class in the configuration.
        options: the configuration's options for it.
        form: that of the file.

    Raises:
        UnsupportedOptionError: an option is unknown or missing, or has an unsupported value.
    """
    known = options_of(class_name, options)
    graph = Graph(parameters(class_name, options), form)
    batch = "batch" if form.dynamic_batch else BATCH
    sizes = features(known)
    # Runtimes bind buffers by these places.
    interface = Interface(
        x=graph.input("x", (batch, sizes["x"], LENGTH)),
        mask=graph.input("mask", (batch, 1, LENGTH)),
        mu=graph.input("mu", (batch, sizes["mu"], LENGTH)),
        t=graph.input("t", (batch,)),
        spks=graph.input("spks", (batch, sizes["spks"])),
        cond=graph.input("cond", (batch, sizes["cond"], LENGTH)),
    )
    if isinstance(known, UNetOptions):
        value = unet.build(graph, known, interface)
    else:
        value = dit.build(graph, known, interface)
    graph.output(OUTPUT, value, (batch, sizes["x"], LENGTH))
    return graph.model(sizes, known.static_chunk_size)
