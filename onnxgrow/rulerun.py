"""Models of one node, run as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import set_attributes


def runner(model: onnx.ModelProto, reference: Callable | None = None, **attributes: float) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """A function that runs a model of one node in ONNX Runtime as it is, or by its reference, for inputs of any size."""
    if reference is not None:
        return _referee(model, reference, attributes)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    anything = onnx.ModelProto()
    anything.CopyFrom(model)
    set_attributes(anything.graph.node[0], attributes)
    for axis in (axis for v in anything.graph.input for axis in v.type.tensor_type.shape.dim):
        axis.Clear()
    session = ort.InferenceSession(anything.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds)))


def _referee(model: onnx.ModelProto, reference: Callable, attributes: dict[str, float]) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The same by a function in Python."""
    node, held = model.graph.node[0], {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    values = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()} | attributes

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = reference(*((held | feeds)[t] if t else None for t in node.input), **values)
        arrays = [np.asarray(a) for a in (made if isinstance(made, tuple) else (made,))]
        types = [next(iter(feeds.values())).dtype if a.dtype == np.float64 else a.dtype for a in arrays]  # numpy widens; an operator does not
        return {name: a.astype(kind) for name, a, kind in zip(node.output, arrays, types, strict=True)}
    return run
