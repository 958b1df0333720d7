"""NotEqualError: how each message of this family is provoked."""

from __future__ import annotations

from tests.error_cases import Family, raising
from tests.test_fixed_sizes import ATTENTION, FEED, written

equal = Family("NotEqualError")


@equal("the grown model is not equal to its source: …")
def broken(folder, patch):
    patch.setattr("onnxgrow.repairs.Scaler.weight", lambda *_: True)  # no gain is repaired
    return "expand model.onnx --hidden 144"


@equal("the PyTorch code differs from the graph by … in …")
def other_code(folder, patch):
    from onnxgrow.pytorch.build import ATOM
    from onnxgrow.pytorch.forms.registry import OPERATORS

    patch.setitem(OPERATORS, "Relu", lambda b: setattr(b, "form", f"{b.use(0, ATOM)}.tanh()"))
    written(folder)
    return "export model.onnx -o model_pt"


@equal("the PyTorch code does not run with …")
def no_code(folder, patch):
    patch.setattr("onnxgrow.pytorch.check._fed", raising(RuntimeError("size mismatch")))
    written(folder, lines=ATTENTION + FEED)
    return "export model.onnx -o model_pt"
