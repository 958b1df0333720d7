"""Operators whose result is a matter of what is fed: branches, places, draws."""

from __future__ import annotations

from onnx import TensorProto

from ..build import Build
from ..steps import ANY, ATOM
from .layout import alike
from .registry import dtype, operator


@operator("Either", domain="onnxgrow")
def _either(b: Build) -> None:
    """An If of which both branches were written out."""
    if b.attrs["live"] == 1 or b.is_true(0):
        b.same(1)
        return
    b.form, b.level = f"{b.use(1, ANY + 1)} if {b.use(0, ANY + 1)} else {b.use(2, ANY + 1)}", ANY


@operator("NonZero")
def _non_zero(b: Build) -> None:
    b.form, b.word = f"{b.use(0, ATOM)}.nonzero().T", "places"


@operator("Multinomial")
def _multinomial(b: Build) -> None:
    """Draws by unnormalised logarithms of probabilities; not the same ones in two runs, or in two libraries."""
    kind, draws = b.attrs.get("dtype", TensorProto.INT32), b.attrs.get("sample_size", 1)
    b.form, b.word = f"torch.multinomial({b.use(0, ATOM)}.softmax(-1), {draws}, replacement=True)", "drawn"
    b.form += f".to(torch.{dtype(b, kind)})" if kind != TensorProto.INT64 else ""


@operator("TensorScatter")
def _tensor_scatter(b: Build) -> None:
    """New entries of a cache, from the place on that is given for each row; in circular mode what passes the end goes on at the start."""
    rank = len(b.shape(0))
    axis = b.attrs.get("axis", -2) % rank
    new = b.size(b.shape(1)[axis], b.dim_of(b.node.inputs[1], axis))
    places = f"torch.arange({new}, device={{device}})"
    if b.has(2):
        places = f"{b.use(2, ATOM)}.unsqueeze(-1) + {places}"
    if b.attrs.get("mode", "linear") == "circular":
        places = f"({places}) % {b.size(b.shape(0)[axis], b.dim_of(b.node.inputs[0], axis), ATOM)}"
    rows = ["-1" if b.has(2) else "1", *(new if i == axis else "1" for i in range(1, rank))]
    update = b.tensor(b.node.inputs[1], ATOM)
    b.named.add(b.resolve(b.node.inputs[1]))
    b.form = f"{b.use(0, ATOM)}.scatter({axis}, ({places}).reshape({', '.join(rows)}).expand_as({update}), {alike(b, 1)})"
