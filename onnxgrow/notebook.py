"""What notebooks show of our objects: small tables, escaped as the report's are, in the colours of the notebook."""

from __future__ import annotations

from collections.abc import Callable

Rows = list[tuple[str, str]]


def shown_as(kind: str) -> Callable[[object], str]:
    """The `_repr_html_` of a class: `kind` is one of `SHOWN`."""
    def _repr_html_(self) -> str:
        from .pages.render import environment

        title, rows, notes = SHOWN[kind](self)
        return environment().get_template("notebook.html").render(title=title, rows=rows, notes=notes)

    return _repr_html_


def model(m) -> tuple[str, Rows, list[str]]:
    """Sizes of a `Model`."""
    a = m.architecture
    sizes = [("layers", a.layers), ("hidden", a.hidden), ("heads", a.heads), ("kv_heads", a.kv_heads), ("head_dim", a.head_dim), ("ffn", a.ffn),
             ("vocab", a.vocab), ("positions", a.positions)]
    rows = [(name, f"{size:,}") for name, size in sizes if size is not None]
    rows += [(f"{w.name}: hidden", f"{w.hidden:,}") for w in a.widths]
    rows += [("norm", f"{a.norm}, {a.norm_place} the branch")] if a.norm else []
    return f"{m.path.name}: {a.parameters:,} parameters", rows, []


def plan(p) -> tuple[str, Rows, list[str]]:
    """What a `Plan` grows and promises."""
    rows = [(name, f"{old:,} → {new:,}") for name, (old, new) in p.sizes.items()]
    old, new = p.model.parameters, p.new_parameters
    rows += [("parameters", f"{old:,} → {old + new:,}"), ("of them dead", f"{p.dead_parameters:,}"), ("certificate", str(p.certificate))]
    return f"Growth of {p.model.path.name}", rows, list(p.certificate.reasons)


def certificate(c) -> tuple[str, Rows, list[str]]:
    """What a `Certificate` says."""
    return f"Certificate: {c}", [], list(c.reasons)


def report(r) -> tuple[str, Rows, list[str]]:
    """What a validation showed, set of inputs by set of inputs."""
    head, *lines = r.lines()
    starts = {f"  {case.label}: ": case.label for case in r.cases}
    found = {label: line[len(start):] for start, label in starts.items() for line in lines if line.startswith(start)}
    return head.replace("NOT EQUAL", "not equal"), list(found.items()), [line.strip() for line in lines if not line.startswith(tuple(starts))]


def result(r) -> tuple[str, Rows, list[str]]:
    """A written file, and its validation."""
    title, rows, notes = report(r.report) if r.report else ("not validated", [], [])
    return f"wrote {r.path.name}; {title}", rows, notes


def exported(e) -> tuple[str, Rows, list[str]]:
    """A folder with PyTorch code, an `Exported`."""
    rows = [("class", e.program.main), ("parameters", f"{e.parameters:,}"), ("lines of model.py", f"{e.lines:,}")]
    return f"wrote {e.folder.name}", rows, [agreement(e.agreement)[0] if e.agreement else "not run against ONNX Runtime"]


def agreement(a) -> tuple[str, Rows, list[str]]:
    """How far PyTorch code and ONNX Runtime are from each other, an `Agreement`."""
    return f"PyTorch and ONNX Runtime agree in {a.cases} cases: largest relative difference {a.max_rel:.2g} (tolerance {a.tolerance:.2g})", [], []


SHOWN = {"model": model, "plan": plan, "certificate": certificate, "report": report, "result": result, "exported": exported, "agreement": agreement}
