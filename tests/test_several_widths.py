"""Models with several hidden sizes: each is named, grows alone, and takes its own heads, feed-forward part and layers along."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from onnxgrow.commands import main
from onnxgrow.errors import OnnxgrowError
from onnxgrow.model import Model
from onnxgrow.plan import Plan
from onnxgrow.pytorch import export as export_torch
from onnxgrow.request import Request
from tests import growing
from tests.several_models import export, feeds_of

EXPORTERS = ("dynamo", "torchscript")
BOTH_WAYS = pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
LONG = ("pair", "segformer", "clip-one-size", "clip", "swin")  # an export by dynamo takes ten seconds: these are tried with it where time does not matter


def cases(*rows: tuple) -> list:
    """Each row (name, ...) with both exporters in front."""
    every = [(exporter, *row) for row in rows for exporter in EXPORTERS if (row[0], exporter) != ("captions", "torchscript")]  # aten::diff has no ONNX form
    return [pytest.param(*row, marks=pytest.mark.slow if row[0] == "dynamo" and row[1] in LONG else ()) for row in every]


@lru_cache
def opened(name: str, exporter: str) -> Model:
    return Model(export(name, exporter))


@lru_cache
def said(name: str, exporter: str) -> list[dict[str, np.ndarray]]:
    """What the source says to each of the feeds."""
    return run(export(name, exporter), feeds_of(name))


def run(path: Path, feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    session = growing.session(path)
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(names, fed), strict=True)) for fed in feeds]


def difference(name: str, exporter: str, plan: Plan, folder: Path) -> float:
    """Largest difference of any output over all feeds, relative to its largest value in all of them; outputs must have their old shapes."""
    got, wanted = run(growing.written(plan, folder), feeds_of(name)), said(name, exporter)
    largest = {key: max(float(np.abs(old[key]).max()) for old in wanted) for key in wanted[0]}
    worst = 0.0
    for old, new in zip(wanted, got, strict=True):
        for key, want in old.items():
            assert new[key].shape == want.shape and np.isfinite(want).all() and np.ptp([o[key].flat[0] for o in wanted]) > 1e-3
            worst = max(worst, float(np.abs(new[key] - want).max() / largest[key]))
    return worst


SIZES = {  # name: width -> hidden, heads, head_dim, ffn, layers
    "clip": {"vision": (48, 3, 16, 100, 3), "text": (32, 4, 8, 72, 2)},
    "pair": {"encoder": (48, 3, 16, 100, 3), "decoder": (32, 4, 8, 72, 2)},
    "captions": {"encoder": (48, 3, 16, 100, 3), "decoder": (32, 4, 8, 72, 2)},
    "segformer": {"stage1": (12, 2, 6, 36, 2), "stage2": (20, 4, 5, 40, 2)},
    "swin": {"stage1": (12, 2, 6, 36, 2), "stage2": (24, 3, 8, 72, 2), "stage3": (48, 4, 12, 144, 1)},
}



@pytest.mark.parametrize(("exporter", "name"), cases(*((name,) for name in SIZES)))
def test_each_width_is_named(exporter, name):
    model = opened(name, exporter)
    a = model.architecture
    assert {w.name: (w.hidden, w.heads, w.head_dim, w.ffn) for w in a.widths} == {width: sizes[:4] for width, sizes in SIZES[name].items()}
    stacks = {s.name.replace("_layers", ".layers"): s.layers for s in a.stacks}
    assert stacks == {f"{width}.layers": sizes[4] for width, sizes in SIZES[name].items()}
    assert a.hidden is a.heads is a.ffn is None and {"hidden", "heads", "ffn"}.isdisjoint(model.roles.roles)


NAMED = {  # widths by name; each is made half as wide again, with heads and feed-forward part
    "two-texts": {"text1": 12, "text2": 20},
    "looking": {"vision": 20, "text": 12},
    "staged-encoder": {"encoder.stage1": 12, "encoder.stage2": 20, "decoder": 16},
    "listening": {"signal": 20, "text": 12},
}


@pytest.mark.parametrize(("name", "width"), [(name, width) for name, widths in NAMED.items() for width in widths])
def test_names_say_what_a_stream_reads(name, width, tmp_path):
    model = opened(name, "torchscript")
    widths = NAMED[name]
    assert {w.name: w.hidden for w in model.architecture.widths} == widths
    layers = {s.name.replace("_layers", ".layers"): s.layers for s in model.architecture.stacks}
    assert layers == {f"{w}.layers": 2 for w in widths}
    new = widths[width] + widths[width] // model.roles.size(f"{width}.heads") * 2
    plan = model.plan(set={f"{width}.hidden": new, f"{width}.layers": 3})
    assert plan.certificate.kind == "exact" and not plan.dead_parameters
    assert {n.rpartition(".")[0] for n in plan.sizes if "[" not in n and not n.endswith("_layers")} == {width}
    assert difference(name, "torchscript", plan, tmp_path) <= growing.TOLERANCE


GROWN = [  # name, sizes by dim, what else must have followed
    ("clip", {"text.hidden": 48}, {"text.heads": 6, "text.ffn": 108}),
    ("clip", {"vision.hidden": 96}, {"vision.heads": 6, "vision.ffn": 200}),
    ("clip", {"text.hidden": 45, "text.heads": 5, "vision.ffn": 120}, {"text.ffn": 101}),
    ("clip", {"vision.head_dim": 20, "text.layers": 3, "vision.layers": 5}, {}),
    ("pair", {"encoder.hidden": 96}, {"encoder.heads": 6, "encoder.ffn": 200}),
    ("pair", {"decoder.hidden": 64, "encoder.ffn": 111}, {"decoder.heads": 8, "decoder.ffn": 144}),
    ("captions", {"encoder.hidden": 64}, {"encoder.heads": 4, "encoder.ffn": 133}),
    ("captions", {"decoder.hidden": 40, "decoder.layers": 3}, {"decoder.heads": 5, "decoder.ffn": 90}),
    ("captions", {"encoder.layers": 4, "encoder.heads": 4}, {}),
    ("segformer", {"stage2.heads": 5, "stage1.ffn": 41}, {}),
    ("segformer", {"stage1.hidden": 24}, {"stage1.heads": 4, "stage1.ffn": 72}),
    ("segformer", {"stage2.hidden": 40, "stage2.layers": 3}, {"stage2.heads": 8, "stage2.ffn": 80}),
    ("swin", {"stage1.hidden": 24}, {"stage1.heads": 4, "stage1.ffn": 72}),
    ("swin", {"stage2.hidden": 48}, {"stage2.heads": 6, "stage2.ffn": 144}),
    ("swin", {"stage1.head_dim": 9, "stage3.heads": 5, "stage2.ffn": 80}, {}),
    ("swin", {"stage1.layers": 4, "stage2.layers": 4}, {}),
]


@pytest.mark.parametrize(("exporter", "name", "asked", "follows"), cases(*GROWN))
def test_one_grows_alone(exporter, name, asked, follows, tmp_path):
    plan = opened(name, exporter).plan(set=asked)
    sizes = {key.replace("_layers", ".layers"): new for key, (_, new) in plan.sizes.items()}
    assert plan.certificate.kind == "exact"
    assert {k: v for k, v in sizes.items() if "v_head_dim" not in k and "[" not in k} == asked | follows
    assert difference(name, exporter, plan, tmp_path) <= growing.TOLERANCE


@pytest.mark.parametrize(("exporter", "name"), cases(("clip-one-size",)))
def test_a_plain_name_means_all_where_they_share_a_size(exporter, name, tmp_path):
    model = opened(name, exporter)
    plan = model.plan(hidden=64)
    assert {k: v for k, v in plan.sizes.items() if "[" not in k} == {
        "vision.hidden": (32, 64), "vision.ffn": (100, 200), "vision.heads": (2, 4), "text.hidden": (32, 64), "text.ffn": (72, 144), "text.heads": (4, 8)}
    assert plan.certificate.kind == "exact" and difference(name, exporter, plan, tmp_path) <= growing.TOLERANCE
    for asked in ({"hidden": 64, "vision.hidden": 96}, {"vision.hidden": 96, "hidden": 64}):  # what is named in full comes first, in any order
        sizes = Plan(model, Request(asked)).sizes
        assert (sizes["vision.hidden"], sizes["text.hidden"]) == ((32, 96), (32, 64))
    assert model.architecture.hidden == 32 and model.architecture.heads is None


REFUSED = [
    ("clip", dict(hidden=64), "several sizes named hidden: vision.hidden (48), text.hidden (32)", "--set vision.hidden=SIZE or --set text.hidden=SIZE"),
    ("clip", dict(heads=6), "several sizes named heads: vision.heads (3), text.heads (4)", "--set text.heads=SIZE"),
    ("clip", dict(layers=6), "several stacks of layers: vision.layers (3), text.layers (2)", "--set vision.layers=COUNT or --set text.layers=COUNT"),
    ("clip", dict(set={"text.hidden": 45}), "text.hidden 45 is not a whole number of heads of 8", "ask for 40, 48, or give --only-hidden"),
    ("clip", dict(set={"text.hidden": 30}), "text.hidden is 32 and cannot shrink to 30", "32 or more"),
    ("clip", dict(set={"vision.kv_heads": 6}), "no kv heads of their own", "use --set vision.heads="),
    ("clip", dict(set={"picture.hidden": 64}), "no dim named 'picture.hidden'", "one of: vision.heads"),
    ("clip", dict(set={"picture.layers": 4}), "no stack named 'picture.layers'", "vision.layers (3), text.layers (2)"),
    ("swin", dict(set={"stage2.hidden": 32}), "the mean along an axis of which only a part would grow", ""),
    ("swin", dict(set={"stage1.layers": 3}), "alternate with a period of 2", "ask for 4"),
]


@pytest.mark.parametrize(("name", "asked", "message", "hint"), REFUSED)
def test_what_is_not_clear_is_refused(name, asked, message, hint):
    with pytest.raises(OnnxgrowError) as refused:
        opened(name, "torchscript").plan(**asked)
    assert message in str(refused.value) and hint in (refused.value.hint or "")


@BOTH_WAYS
def test_pixels_of_shifted_windows_never_grow(exporter):
    """Their extents contradict each other: 6 + 2 pixels are 2·4 in windows. What stands beside them grows all the same."""
    model = opened("swin", exporter)
    refused = [d for d in model.architecture.dims if d.refused]
    assert refused and all("inside its inner factors" in d.refused for d in refused)
    assert not {f"{w}.{n}" for w in SIZES["swin"] for n in ("hidden", "heads", "head_dim", "ffn")} & {d.name for d in refused}
    for d in refused:
        with pytest.raises(OnnxgrowError, match="cannot grow"):
            model.plan(set={d.name: 2 * d.size})


def test_one_hidden_size_keeps_plain_names(tmp_path):
    """BART's encoder and decoder differ in heads and feed-forward part, but share their width: all of it grows by one factor."""
    model = opened("bart", "torchscript")
    assert not model.architecture.widths and "widths" not in model.architecture.to_json()
    assert {"hidden", "heads", "head_dim", "ffn", "vocab"} <= model.roles.roles.keys()
    plan = model.plan(hidden=64, set={"encoder.layers": 4})
    assert plan.roles.roles["heads"].sizes == {2, 4} and {plan.decisions.target.size(d) for d in plan.roles.roles["heads"].instances} == {4, 8}
    assert plan.sizes["encoder_layers"] == (3, 4)
    assert plan.model.plan(hidden=64).certificate.kind == "exact"
    assert difference("bart", "torchscript", model.plan(hidden=64), tmp_path) <= growing.TOLERANCE


def test_inspect_and_expand_say_the_names(tmp_path):
    path = export("clip", "torchscript")
    shown = CliRunner().invoke(main, ["inspect", str(path)])
    assert "vision: hidden 48" in shown.output and "text: hidden 32" in shown.output and "text.layers: 2" in shown.output
    target = tmp_path / "grown.onnx"
    done = CliRunner().invoke(main, ["expand", str(path), "--set", "text.hidden=45", "--only-hidden", "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert "text.hidden: 32 -> 45" in done.output and opened("clip", "torchscript").plan_like(Model(target)).sizes == {"text.hidden": (32, 45)}
    refused = CliRunner().invoke(main, ["expand", str(path), "--hidden", "64", "-o", str(tmp_path / "other.onnx")])
    assert refused.exit_code != 0 and "vision.hidden (48)" in refused.output


PAIRS = [("clip", "torchscript", "vision", "text"), pytest.param("clip", "dynamo", "vision", "text", marks=pytest.mark.slow), ("captions", "dynamo", "encoder", "decoder")]


@pytest.mark.parametrize(("name", "exporter", "first", "second"), PAIRS)
def test_a_grown_pair_of_towers_becomes_pytorch(name, exporter, first, second, tmp_path):
    """Sizes of the two towers are fields of their own in the written code; `export_torch` compares with ONNX Runtime by itself."""
    model = opened(name, exporter)
    assert name != "clip" or model.architecture.positions == 20  # of words; pictures have 17 places
    grown = growing.written(model.plan(set={f"{second}.hidden": 48, f"{first}.ffn": 120}), tmp_path)
    written = export_torch(Model(grown), tmp_path / "pt")
    sizes = json.loads((tmp_path / "pt" / "config.json").read_text())["sizes"]
    assert written.agreement.max_rel < 1e-5
    assert tuple(sizes[key] for key in (f"{second}_hidden", f"{second}_heads", f"{first}_hidden", f"{first}_ffn")) == (48, 6, 48, 120)
