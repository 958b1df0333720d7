"""`onnxgrow report`: a growth as one HTML file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from .commands import main
from .console import boundary, dequantize_option, emit, inputs_option, model_argument, provider_option, read_feeds, rules_option, show
from .errors import FileError


@main.command(short_help="Write what became of MODEL in GROWN as one HTML file.")
@model_argument
@click.argument("grown", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE.html", help="Target; default: GROWN.html beside GROWN.")
@click.option("--weight", "weights", multiple=True, metavar="NAME", help="Draw this weight of GROWN; default: one of each look.")
@click.option("--gradients", is_flag=True, help="Train GROWN for three steps in PyTorch and count which new entries receive a gradient.")
@click.option("--force", is_flag=True, help="Replace an existing target.")
@inputs_option
@provider_option
@rules_option
@dequantize_option
@boundary
def report(model: Path, grown: Path, output: Path | None, weights, gradients: bool, force: bool, inputs, provider, rules, dequantize: bool, as_json: bool) -> int:
    """Write what GROWN is and how it came out of MODEL as one HTML file, to read, keep or send.

    Example: onnxgrow report model.onnx model-h1024.onnx -o report.html
    """
    from .model import load
    from .pages.facts import gather
    from .pages.render import page

    target = output or grown.with_suffix(".html")
    check_target(target, force)
    feeds = read_feeds(inputs)
    source, result = load(model, rules, dequantize), load(grown, rules)
    plan = source.plan_like(result)
    facts = gather(source, result, plan, feeds=feeds, provider=provider, weights=weights, rules=rules)
    if gradients:
        from .pages.gradients import measure

        facts.gradients = measure(result)
    write(target, page(facts), force)
    document = {"command": "report", "model": str(model), "grown": str(grown), "output": str(target), "certificate": plan.certificate.kind,
                "validation": facts.report.to_json(), "depth": [{"stack": name, "states": [s.to_json() for s in states]} for name, states in facts.states],
                "gradients": facts.gradients}
    emit(document) if as_json else show([*facts.report.lines(plan.certificate.kind)[:1], f"wrote {target}"])
    return 0 if facts.report.equal or plan.certificate.kind != "exact" else 1


def check_target(target: Path, force: bool) -> None:
    """FileError where the page could not be written, before anything is run."""
    if not target.parent.is_dir():
        raise FileError(f"there is no folder {target.parent}", hint="create it first")
    if os.path.lexists(target) and (target.is_dir() or not force):
        raise FileError(f"{target} exists", hint="choose another name with -o" + ("" if target.is_dir() else ", or give --force"))


def write(target: Path, text: str, force: bool) -> None:
    """Write the page under another name first, so that there is never half of one."""
    check_target(target, force)
    try:
        handle, name = tempfile.mkstemp(prefix=".onnxgrow-", suffix=".html", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except OSError as problem:
        raise FileError(f"cannot write {target}: {problem.strerror}", hint="check the folder") from problem
