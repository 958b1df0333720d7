"""`onnxgrow report`: a growth as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from . import atomic
from .commands import main
from .console import boundary, dequantize_option, emit, inputs_option, model_argument, provider_option, read_feeds, rules_option, show


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
    atomic.check_free(target, force)
    feeds = read_feeds(inputs)
    source, result = load(model, rules, dequantize), load(grown, rules)
    plan = source.plan_like(result)
    facts = gather(source, result, plan, feeds=feeds, provider=provider, weights=weights, rules=rules)
    if gradients:
        from .pages.gradients import measure

        facts.gradients = measure(result)
    atomic.save(target, page(facts).encode(), force)
    document = {"command": "report", "model": str(model), "grown": str(grown), "output": str(target), "certificate": plan.certificate.kind,
                "validation": facts.report.to_json(), "depth": [{"stack": name, "states": [s.to_json() for s in states]} for name, states in facts.states],
                "gradients": facts.gradients}
    emit(document) if as_json else show([*facts.report.lines(plan.certificate.kind)[:1], f"wrote {target}"])
    return 0 if facts.report.equal or plan.certificate.kind != "exact" else 1
