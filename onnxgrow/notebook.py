"""What notebooks show of our objects: small tables, escaped as the report's are, in the colours of the notebook."""

from __future__ import annotations

from collections.abc import Callable

Rows = list[tuple[str, str]]


def shown_as(kind: str) -> Callable[[object], str]:
    """The `_repr_html_` of a class: `kind` names the function below that says what there is to show."""
    def _repr_html_(self) -> str:
        from .pages.render import environment

        title, rows, notes = globals()[kind](self)
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
    """What a validation showed: the worst output of each set of inputs."""
    worst = [(case.label, max(case.outputs, key=lambda d: d.max_rel)) for case in r.cases]
    head, *more = r.lines("exact" if r.equal else "compared:")
    return head, [(label, f"{d.max_rel:.2g} in {d.output}") for label, d in worst], [line.strip() for line in more[len(worst):]]


def result(r) -> tuple[str, Rows, list[str]]:
    """A written file, and its validation."""
    title, rows, notes = report(r.report) if r.report else ("not validated", [], [])
    return f"wrote {r.path.name}; {title}", rows, notes
