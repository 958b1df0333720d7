"""GraphError of `export`: how each message is provoked."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from tests.error_cases import Family, raising
from tests.error_cases_graph import never_runs
from tests.test_fixed_sizes import ATTENTION, FEED, written

graph = Family("GraphError")
EXPORT = "export model.onnx -o model_pt"


@graph("the operator … has no PyTorch form")
def no_form(folder, patch):
    written(folder, lines=ATTENTION + FEED.replace("Relu", "Acosh"))
    return EXPORT


@graph("… has no PyTorch form")
def no_form_of_these(folder, patch):
    written(folder, lines=ATTENTION + FEED.replace("f = Relu u", "f = CumSum u last"), more={"last": np.array(2)}, f={"reverse": 1})
    return EXPORT


@graph("with sizes that depend on the values of an input has no PyTorch form")
def sizes_of_values(folder, patch):
    """The largest entries, as many as the largest id."""
    tail = "last = ReduceMax ids\nmany = Reshape last flat1\nlogits, which = TopK y many"
    written(folder, tail, more={"flat1": np.array([1])}, last={"keepdims": 0})
    return EXPORT


@graph("the size of … is known only when the model runs")
def unknown_sizes(folder, patch):
    written(folder, "spots = NonZero y\nrows = Transpose spots\nwords = Cast rows\nlogits = ReduceSum words", words={"to": TensorProto.FLOAT}, outputs=("y",))
    return EXPORT


@graph("a size of … (with the inputs as analysed) is found in no input of the graph")
def lost_size(folder, patch):
    """Sizes are found from the shapes at hand: where they are not."""
    patch.setattr("onnxgrow.pytorch.units.derive", lambda *_: None)
    patch.setattr("onnxgrow.pytorch.units.axis_of", lambda *_: None)
    return EXPORT


@graph("… is not understood here: …")
def our_mistake(folder, patch):
    patch.setattr("onnxgrow.pytorch.lower.Lowering._plain", raising(KeyError("perm")))
    written(folder)
    return EXPORT


@graph("ONNX Runtime runs the model on none of the made inputs")
def no_inputs(folder, patch):
    never_runs(folder, patch)
    return EXPORT

