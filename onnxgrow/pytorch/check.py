"""Does the written code compute what the graph does? Both run on the same inputs, at sizes that nobody exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..compare import compare, over_all
from ..errors import GraphError, NotEqualError
from ..feeds import cases, make_feeds
from ..inputs import INTEGERS, is_mask, kind_of, rank_of
from ..model import Model
from ..notebook import shown_as
from ..runtime import open_session
from ..tolerance import FP32, precision
from .program import Program


@dataclass(frozen=True)
class Agreement:
    """How far the code is from the graph.

    Attributes:
        max_rel: the largest difference, relative to the largest value of its output.
        tolerance: the largest that counts as equal.
        cases: how many sets of inputs were run.
    """

    max_rel: float
    tolerance: float
    cases: int

    _repr_html_ = shown_as("agreement")

    def to_json(self) -> dict:
        """As part of a document (docs/json.md)."""
        return asdict(self)


def agree(program: Program, module, path: Path | None = None, checked: Callable[[int, int], None] | None = None) -> Agreement:
    """Run ONNX Runtime and the module side by side; the graph in float32 where the runtime lacks its types, the module in its own.

    Args:
        module: torch.nn.Module that takes the program's arguments.
        path: the ONNX file; None: that of the program's model.
        checked: called with (sets of inputs run, sets in all) before each.
    Raises:
        NotEqualError: they differ by more than the type of the weights allows.
        GraphError: ONNX Runtime runs the graph on none of the inputs.
    """
    import torch

    model = program.model
    session, ran, differences = open_session(path or model.opened, training=False), [], []
    types = precision(model.roles.structure)
    tolerance = max(FP32, types.tolerance(), types.tolerance(bool(session.replaced)))  # numbers in the code have the digits of a float32
    tried = list(cases(model.roles.structure, model.roles, 0))
    for number, case in enumerate(tried):
        if checked:
            checked(number, len(tried))
        try:
            wanted = session.run(case.feeds)
            again = session.run(case.feeds) if case.optional else wanted
        except GraphError:  # a graph that only runs at the length of its export
            continue
        if any(compare(name, x, again[name], ()).max_rel for name, x in wanted.items()):  # a switch lets it draw at random
            continue
        try:
            with torch.no_grad():
                found = module(**{a: _fed(case.feeds[name], module) for a, name in program.inputs.items()})
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NameError) as error:  # of the written code, which is ours
            raise NotEqualError(f"the PyTorch code does not run with {case.label}: {' '.join(str(error).split())[:200]}",
                                hint="nothing was written; please report this graph") from error
        ran += [case] * len(wanted)
        differences += [compare(name, wanted[name], _where_known(wanted[name], to_numpy(found[name])), ()) for name in wanted]
    if not ran:
        raise GraphError("ONNX Runtime runs the model on none of the made inputs", hint="check that it runs in ONNX Runtime, or add --no-validate")
    differences = over_all(differences)
    worst, case = max(zip(differences, ran), key=lambda pair: pair[0].max_rel)
    if not worst.max_rel <= tolerance:
        raise NotEqualError(f"the PyTorch code differs from the graph by {worst.max_rel:.2g} in {worst.output!r}, with {case.label}",
                            hint="nothing was written; please report this graph")
    return Agreement(worst.max_rel, tolerance, len({case.label for case in ran}))


def _where_known(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """`found`, but NaN where the graph says NaN (a token that sees none): there the code may say anything."""
    if wanted.shape != found.shape or wanted.dtype.kind in "iub" or not np.isnan(wanted).any() or np.isnan(wanted).all():
        return found
    return np.where(np.isnan(wanted), np.nan, found)


def _fed(x: np.ndarray, module):
    """An input for the written code, whose parameters are float32 where the file has them in half precision."""
    x, parameter = to_torch(x), next(module.parameters(), None)
    return x.to(parameter.dtype) if parameter is not None and x.is_floating_point() and x.itemsize < parameter.itemsize else x


def to_torch(x: np.ndarray):
    """A tensor with a copy of the values. numpy has bfloat16 only by way of another package, which PyTorch does not know."""
    import torch

    x = np.array(x)
    return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16) if x.dtype.name == "bfloat16" else torch.from_numpy(x)


def to_numpy(x) -> np.ndarray:
    """The values of a tensor; bfloat16 as float32, which holds them all."""
    import torch

    return (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()  # an output may be a parameter as it is


def is_causal(model: Model) -> bool:
    """Does each position of a decoder see only those before it? Tried out: another last word must change nothing before it.

    Only for a model with one row of words as its input: one with an encoder takes labels that are shifted already.
    """
    s = model.roles.structure
    words = [v for v in s.graph.inputs if rank_of(v) == 2 and kind_of(v) in INTEGERS and not is_mask(s, v)]
    ids = [v for v in words if "id" in v.name.lower() and "type" not in v.name.lower() and "pos" not in v.name.lower()]
    if len(ids) != 1 or "vocab" not in model.roles.roles:
        return False
    feeds = make_feeds(s, model.roles, {n: s.symbols.sizes[n] for n in s.symbols.free}, padding="")
    name = ids[0].name
    other = {**feeds, name: np.array(feeds[name])}
    other[name][:, -1] = (other[name][:, -1] + 1) % model.roles.size("vocab")
    try:
        session = open_session(model.opened, training=False)
        first, second = session.run(feeds), session.run(other)
    except GraphError:
        return False
    logits, changed = (list(x.values())[0] for x in (first, second))
    if logits.ndim != 3 or logits.shape[1] != feeds[name].shape[1] or logits.shape[1] < 2:
        return False
    return bool(np.array_equal(logits[:, :-1], changed[:, :-1]) and not np.array_equal(logits[:, -1], changed[:, -1]))
