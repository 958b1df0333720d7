"""`onnxgrow expand`: sizes and methods in, a grown file out."""

from __future__ import annotations

from pathlib import Path

import click

from .commands import main
from .console import boundary, dequantize_option, emit, inputs_option, provider_option, read_feeds, rules_option, show
from .errors import UsageError
from .growthfile import with_recipe
from .request import BLOCK_INITS, DEPTH_METHODS, METHODS, SIZES, VOCAB_INITS
from .terminal.guess import complete_dim


def parse_set(items: tuple[str, ...]) -> dict[str, int]:
    out = {}
    for item in items:
        name, equals, size = item.rpartition("=")
        if not equals or not size.isdigit():
            raise UsageError(f"--set {item!r} is not NAME=SIZE", hint="for example: --set ffn=512 (names: onnxgrow inspect)")
        out[name] = int(size)
    return out


def plan_options(command):
    """Sizes and methods of a growth."""
    options = [
        click.option("--hidden", type=click.IntRange(1), metavar="N", help="Residual width. Alone, heads and ffn follow as in the family."),
        click.option("--heads", type=click.IntRange(1), metavar="N", help="Attention heads."),
        click.option("--kv-heads", type=click.IntRange(1), metavar="N", help="Key and value heads (grouped-query attention)."),
        click.option("--head-dim", type=click.IntRange(1), metavar="N", help="Size of a head."),
        click.option("--ffn", type=click.IntRange(1), metavar="N", help="Width of the feed-forward part."),
        click.option("--layers", type=click.IntRange(1), metavar="N", help="Number of layers, of every stack."),
        click.option("--encoder-layers", type=click.IntRange(1), metavar="N", help="Number of layers of the encoder."),
        click.option("--decoder-layers", type=click.IntRange(1), metavar="N", help="Number of layers of the decoder."),
        click.option("--vocab", type=click.IntRange(1), metavar="N", help="Words of the vocabulary."),
        click.option("--positions", type=click.IntRange(1), metavar="N", help="Longest sequence (position tables, masks, buffers)."),
        click.option("--experts", type=click.IntRange(1), metavar="N", help="Experts of a mixture of experts."),
        click.option("--only-hidden", is_flag=True, help="--hidden grows nothing else."),
        click.option("--set", "set_", multiple=True, metavar="NAME=SIZE", shell_complete=complete_dim, help="Any dim that inspect lists."),
        click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True,
                     help="auto: exact wherever the architecture allows; naive: plain padding, the function changes."),
        click.option("--depth-method", type=click.Choice(DEPTH_METHODS), default="identity", show_default=True,
                     help="identity: last linear maps of new blocks are zero; gate: a zero scalar on each branch; stack: plain copies, the function changes."),
        click.option("--placement", default="interleave", show_default=True, metavar="WHERE",
                     help="Where new blocks go: interleave, end, start, stack, or after:3,7 (layers counted from 0)."),
        click.option("--block-init", type=click.Choice(BLOCK_INITS), default="copy", show_default=True,
                     help="What new blocks start from: their neighbour, or noise."),
        click.option("--vocab-init", type=click.Choice(VOCAB_INITS), default="mean", show_default=True, help="What the rows of new words hold."),
        click.option("--pad-vocab-to", type=click.IntRange(1), metavar="N", help="Round the vocabulary up to a multiple of N."),
        click.option("--init-std", type=click.FloatRange(0), metavar="STD", help="Deviation of new parts that nobody reads yet (default: that of the old tensor)."),
        click.option("--wake", type=click.FloatRange(0, min_open=True), metavar="STD", help="Noise for new parts that could never learn (near, not exact)."),
        click.option("--seed", type=int, metavar="N", default=0, show_default=True, help="Seed of all random numbers."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@plan_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Target; default: MODEL-h1024.onnx and the like, beside MODEL.")
@click.option("--plan", "--dry-run", "only_plan", is_flag=True, help="Print the whole growth and write nothing.")
@click.option("--no-validate", is_flag=True, help="Do not run source and result side by side.")
@click.option("--force", is_flag=True, help="Replace an existing target.")
@click.option("--max-output-bytes", type=click.IntRange(1), metavar="N", help="Refuse to write more than this, before the first byte.")
@click.option("--torch", "torch_folder", type=click.Path(path_type=Path), metavar="FOLDER", help="Write the result as PyTorch code too (see export).")
@inputs_option
@provider_option
@rules_option
@dequantize_option
@boundary
@with_recipe
def expand(model: Path, output, only_plan, no_validate, force, max_output_bytes, torch_folder, inputs, provider, rules, dequantize, set_, as_json, **request) -> int:
    """Grow MODEL and write the result under a new name.

    First come the sizes before and after and a certificate: exact, near, or not preserved. Then weights stream from file to file, and both models
    run side by side; a result that breaks an exact certificate never gets its name. MODEL itself is never changed.

    \b
    Example: onnxgrow expand model.onnx --hidden 1024 --ffn 4096 -o grown.onnx
    Example: onnxgrow expand model.onnx --layers 6 --vocab 300
    Example: onnxgrow expand model.onnx --set ffn=512 --plan
    """
    from .folders import check_output, default_folder, write_grown
    from .model import load

    sizes = {n: request[n] for n in SIZES if request[n] is not None}
    if not sizes and not set_ and not request["pad_vocab_to"]:
        raise UsageError("no size asked for", hint="for example: --hidden 1024 (sizes today: onnxgrow inspect)")
    more = parse_set(set_)
    if request["only_hidden"] and request["hidden"] is None and not any(name.split(".")[-1] == "hidden" for name in more):
        raise UsageError("--only-hidden says what --hidden takes along, and there is no --hidden", hint="leave it out, or add --hidden SIZE")
    refuse_idle(request, more)
    if no_validate and (inputs or provider):
        raise UsageError("--no-validate leaves nothing to do for --inputs and --provider", hint="leave out one or the other")
    if torch_folder and only_plan:
        raise UsageError("--plan writes nothing, and --torch is a folder to write", hint="leave out one or the other")
    feeds = read_feeds(inputs)
    if output and not only_plan:
        check_output(model, output, force)  # before the growth, which may take long
    if torch_folder:
        from .pytorch.folder import check_target

        check_target(torch_folder, force, model)
    from .terminal import growth, progress

    with progress.busy("reading the graph", not as_json):
        opened = load(model, rules, dequantize)
    if torch_folder:
        opened.one_graph("--torch")
    with progress.busy("planning: sizes, fills, repairs, and what they promise", not as_json):
        plan = opened.plan(set=more, **request)
        document = {"command": "expand", "model": str(model), "plan": plan.to_json()}
    if only_plan:
        emit(document) if as_json else show(plan.lines())
        return 0
    if not (target := output):
        target = default_folder(model, plan) if model.is_dir() else plan.default_path()
        check_output(model, target, force)
    if not as_json:
        growth.announce(plan, target)
    with progress.bars(not as_json) as bars:
        result, grown_folder = write_grown(plan, model, output, validate=not no_validate, feeds=feeds, provider=provider, overwrite=force, max_output_bytes=max_output_bytes,
                                           progress=bars.writing, checked=bars.checking)
    document |= {"output": str(result.path), "validation": result.report.to_json() if result.report else None,
                 "not_finite": list(result.not_finite)}
    lines: list[str] = grown_folder.lines() if grown_folder else []
    if grown_folder:
        document["folder"] = grown_folder.to_json()
    if torch_folder:
        from .torch_commands import write_torch

        with progress.bars(not as_json) as shown:
            document["torch"], more_lines = write_torch(load(result.path, rules), torch_folder, not no_validate, force, shown)
        lines += more_lines
    emit(document) if as_json else growth.done(plan, result, bars, lines, model)
    return 0


def refuse_idle(request: dict, more: dict[str, int]) -> None:
    """Options that say how something grows need that it grows."""
    layers = any(name.endswith("layers") for name in more) or any(request[n] is not None for n in ("layers", "encoder_layers", "decoder_layers"))
    idle = [n for n, usual in (("depth_method", "identity"), ("placement", "interleave"), ("block_init", "copy")) if request[n] != usual and not layers]
    words = request["vocab"] is not None or request["pad_vocab_to"] or "vocab" in more
    idle += ["vocab_init"] * (request["vocab_init"] != "mean" and not words)
    if "vocab_init" in idle:
        raise UsageError("--vocab-init says how new words start, and none are asked for", hint="leave it out, or add --vocab SIZE")
    if idle:
        option = "--" + idle[0].replace("_", "-")
        raise UsageError(f"{option} says how layers are added, and none are asked for", hint="leave it out, or add --layers NUMBER")
