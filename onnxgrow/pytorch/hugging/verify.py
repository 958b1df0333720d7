"""The written folder against the ONNX file: loaded as a user would load it, run on the same inputs at several sizes."""

from __future__ import annotations

import inspect
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...compare import compare
from ...errors import GraphError, NotEqualError
from ...feeds import Case, cases
from ...inputs import is_cache, is_mask
from ...model import Model
from ...runtime import open_session, pick_provider
from ...tolerance import FP32, precision

HINT = ("nothing was written; give --like DIR with the config of the source (what the graph does not state has the library's defaults), "
        "or export without --format hf")
FRONT = "tokens of padding in front of all real ones come out"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Verified:
    """What the comparison showed.

    Attributes:
        outputs: output of the graph -> (field of the class's output, largest difference relative to the largest value).
        cases: labels of the inputs that were run.
        notes: which tokens come out otherwise.
    """

    outputs: dict[str, tuple[str, float]]
    cases: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def max_rel(self) -> float:
        """The worst of all outputs."""
        return max((error for _, error in self.outputs.values()), default=0.0)


def verify(model: Model, loader: type, folder: Path) -> Verified:
    """Compare the folder, loaded by an Auto class or the class itself, with the graph.

    A padded token in front of all real ones has nothing to attend to. What comes out there depends on how attention is computed: as the
    graph does, where it was exported with "eager" (and in half precision on rounding). So where the default differs, it must agree on all
    real tokens, and "eager" on all.

    Raises:
        NotEqualError: an output differs, or none of the class's is like it.
        GraphError: an input is no argument of the class, or the graph runs on no input.
    """
    answers = _answers(model)
    native = loader.from_pretrained(folder).eval()
    result = _compare(model, native, answers)
    if _worst(result, _tolerance(model)) is None:
        return result
    on_real = _compare(model, native, answers, real=True)
    _judge(on_real, model, type(native).__name__)
    if _tolerance(model) > FP32:
        return replace(on_real, notes=(f"{FRONT} as rounding has it; no real token depends on them",))
    eager = _compare(model, loader.from_pretrained(folder, attn_implementation="eager").eval(), answers)
    _judge(eager, model, type(native).__name__)
    return replace(eager, notes=(f"{FRONT} as in the graph with attn_implementation='eager' only; no real token depends on them",))


def _answers(model: Model) -> list[tuple[Case, Arrays]]:
    """What the graph says to inputs of several sizes; those that it does not run on (fixed axes) are left out."""
    session, found = open_session(model.path, pick_provider()), []
    for case in cases(model.roles.structure, model.roles):
        with suppress(GraphError):
            found.append((case, session.run(case.feeds)))
    if not found:
        raise GraphError("the graph runs on none of the inputs that onnxgrow makes", hint="check it with onnxgrow validate and inputs of your own")
    return found


def _compare(model: Model, native, answers: list[tuple[Case, Arrays]], real: bool = False) -> Verified:
    """Each output beside the field of its name, or beside that field of its shape that is like it in all cases.

    Differences are relative to the largest value of the output in any case: a single similarity may be close to zero.
    """
    arguments, errors, sizes = _arguments(model, native), defaultdict(dict), defaultdict(float)
    for case, wanted in answers:
        got, mask = _run(native, arguments, case, model), _mask(model, case) if real else None
        for name, a in wanted.items():
            sizes[name] = max(sizes[name], float(np.abs(a[np.isfinite(a)]).max(initial=0)))
            for field in [name] if name in got else got:
                error = compare(name, *(_real(x, mask) for x in (a, got[field])), ()).max_abs if got[field].shape == a.shape else np.inf
                errors[name][field] = max(errors[name].get(field, 0.0), error)
    best = {name: min(by.items(), key=lambda found: found[1]) for name, by in errors.items()}
    relative = {name: (field, error / (sizes[name] or 1e-30)) for name, (field, error) in best.items()}
    return Verified(relative, tuple(case.label for case, _ in answers))


def _mask(model: Model, case: Case) -> np.ndarray | None:
    """True where a token is real, [batch, length]."""
    s = model.roles.structure
    return next((case.feeds[v.name] > 0 for v in s.graph.inputs if is_mask(s, v) and case.feeds[v.name].ndim == 2), None)


def _real(x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The rows of real tokens: of states [batch, length, ...], of caches [batch, heads, length, ...]."""
    if mask is None or x.ndim < 3 or len(x) != len(mask):
        return x
    tokens = x if x.ndim == 3 else np.moveaxis(x, 2, 1)
    return tokens[mask[:, -tokens.shape[1]:]] if tokens.shape[1] <= mask.shape[1] else x


def _tolerance(model: Model) -> float:
    """What rounding may make of a difference; float32 is the least that classes are loaded in."""
    return max(FP32, precision(model.roles.structure).tolerance())


def _worst(result: Verified, tolerance: float) -> tuple[str, str, float] | None:
    """(output, field, error) of the first output that differs."""
    return next(((name, field, error) for name, (field, error) in result.outputs.items() if not error <= tolerance), None)


def _judge(result: Verified, model: Model, cls: str) -> None:
    found = _worst(result, _tolerance(model))
    if found is None:
        return
    name, field, error = found
    what = f"{field!r} of {cls} differs from {name!r} of the graph by {error:.1e} (allowed {_tolerance(model):.0e})"
    raise NotEqualError(f"no output of {cls} has the shape of {name!r}" if error == np.inf else what,
                        hint=HINT)


def _arguments(model: Model, native) -> dict[str, str]:
    """Input of the graph -> argument of `forward`; caches go their own way."""
    known = list(inspect.signature(type(native).forward).parameters)
    inputs = [v.name for v in model.roles.structure.graph.inputs if not is_cache(model.roles.structure, v)]
    free = [name for name in inputs if name not in known]
    found = {name: name for name in inputs if name in known}
    if len(free) == 1 and native.main_input_name not in found.values():
        return found | {free[0]: native.main_input_name}
    if free:
        raise GraphError(f"the input {free[0]!r} is no argument of {type(native).__name__}", hint=f"name it as one of: {', '.join(known[1:8])}")
    return found


def _run(native, arguments: dict[str, str], case: Case, model: Model) -> Arrays:
    import torch

    given = {argument: torch.from_numpy(np.array(case.feeds[name])) for name, argument in arguments.items()}
    past = [torch.from_numpy(np.array(x)) for name, x in case.feeds.items() if name not in arguments]
    if past:
        from transformers import DynamicCache

        given |= dict(past_key_values=DynamicCache(list(zip(past[::2], past[1::2], strict=True))), use_cache=True)
    try:
        with torch.no_grad():
            out = native(**given, output_hidden_states=True)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise NotEqualError(f"{type(native).__name__} does not run on inputs that the graph runs on ({case.label}): {said}", hint=HINT) from error
    found = {key: value.float().numpy() for key, value in _tensors(out)}
    named = sorted(model.roles.caches(model.roles.structure.graph.outputs), key=model.roles.structure.graph.outputs.index)
    layers = [x for layer in getattr(out.get("past_key_values"), "layers", ()) for x in (layer.keys, layer.values)] if named else []
    return found | {name: x.float().numpy() for name, x in zip(named, layers)}


def _tensors(out):
    """(name, tensor) of an output of the library, lists of states one by one."""
    import torch

    for key, value in out.items():
        if isinstance(value, torch.Tensor):
            yield key, value
        elif isinstance(value, tuple):
            yield from ((f"{key}.{i}", x) for i, x in enumerate(value) if isinstance(x, torch.Tensor))
