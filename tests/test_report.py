"""`onnxgrow report`: what the page states is what the data says, and nothing from a model becomes markup."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections import Counter
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import onnxgrow
from onnxgrow.feeds import cases
from onnxgrow.pages.facts import gather
from onnxgrow.pages.padding import KINDS
from onnxgrow.pages.render import page, percent, size, small
from onnxgrow.parts import find_parts
from onnxgrow.regions import read_regions
from tests import zoo
from tests.growing import usual
from tests.report_pages import GROWTHS, HOSTILE, Page, facts, grown, home, numbers, renamed, shown, whole
from tests.test_cli import run
from tests.test_fixed_sizes import ATTENTION, HIDDEN, written

every = pytest.mark.parametrize("label", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("pair", "cache", "naive"))) for n in GROWTHS])


# --- what it states ----------------------------------------------------------------------------------------------------


@every
def test_sizes_and_certificate(label):
    p, f = shown(label), facts(label)
    model, result = map(onnxgrow.load, grown(label))
    plan = model.plan(**GROWTHS[label][1])
    assert {r[0]: (whole(r[1]), whole(r[2])) for r in p.table("Sizes that changed")} == plan.sizes
    kind = {"near": "near", "naive": "not preserved"}.get(label, "exact")
    assert plan.certificate.kind == kind and f"Certificate: {plan.certificate}. " in p.said
    assert all(reason in p.said for reason in plan.certificate.reasons) and (kind == "exact" or plan.certificate.reasons)
    assert all(a in p.said for a in f.assumptions) and all(" ".join(r.split()) in p.said for r in f.plan["repairs"])
    assert f"{model.parameters:,} parameters before, {result.parameters:,} after" in p.said
    verdict = {"near": "near, as certified", "naive": "not preserved, as certified"}.get(label, "equal")
    assert f"Run side by side: {verdict}." in p.said


@every
def test_parameters_are_those_of_the_files(label):
    p = shown(label)
    rows = {r[0]: [whole(x) for x in r[1:]] for r in p.table("Parameters by part")}
    before, after = ([prod(x.shape) for x in numbers(f).values() if x.size > 1] for f in grown(label))
    assert rows["all"][:2] == [sum(before), sum(after)]
    assert all(sum(r[2:]) == r[1] for r in rows.values())
    assert [sum(r[k] for n, r in rows.items() if n != "all") for k in range(len(rows["all"]))] == rows["all"]
    model = onnxgrow.load(grown(label)[0])
    before = Counter({k: sum(p.parameters for p in find_parts(model.roles, model.stacks) if p.kind == k) for k in rows if k != "all"})
    assert {k: r[0] for k, r in rows.items() if k != "all"} == before and rows["attention"][1] > 0  # as inspect tells them


@every
def test_kinds_are_what_the_grown_file_holds(label):
    """Zeros are counted in the file itself, old entries in the source: the weights are random, so that no other entry is zero."""
    p, arrays = shown(label), numbers(grown(label)[1])
    (head, *_), rows = next(r for c, r in p.tables.items() if c.startswith("Entries of each kind")), p.table("Entries of each kind")
    kinds = head[3:-1]
    assert len(rows) == len(facts(label).weights) > 0
    rows = [(r[0].partition(" (")[0], *r[1:]) for r in rows]  # without the module of a nameless weight
    same = {r[0] for r in rows} ^ arrays.keys() if label != "naive" else set()  # what is not listed is the source's, byte for byte
    known = [x.tobytes() for x in numbers(grown(label)[0]).values()]
    assert all(arrays[name].tobytes() in known for name in same if arrays[name].size > 1)
    for name, before, after, *counts, repair in rows:
        x, counts = arrays[name], dict(zip(kinds, map(whole, counts)))
        assert after == (" × ".join(map(str, x.shape)) or "one number") and sum(counts.values()) == x.size
        if before != "none":
            assert counts["old"] == prod(map(int, before.split(" × ")))
        holds = next(w for w in facts(label).weights if w.name == name).holds
        zeros = int((x == 0).sum())
        if not (name.endswith(("_offset", "bias")) or x.ndim < 2 or "embedding" in name or "wte" in name):  # those of a new norm may be zero, a padding row is
            assert zeros == counts.get("zero", 0) + (counts.get("free", 0) if holds == "zero" else 0), name
        w = next(w for w in facts(label).weights if w.name == name)
        assert repair == ("themselves" if w.repair is None else f"· {w.repair[0]:.9g}" + (f" + {w.repair[1]:.9g}" if w.repair[1] else ""))


@every
def test_what_is_old_is_what_the_file_records(label):
    regions, arrays = read_regions(onnx.load(grown(label)[1])), numbers(grown(label)[1])
    for w in facts(label).weights:
        # a norm that became plain is recorded as old, and holds nothing of the source
        assert w.counts["old"] == int(regions.mask(w.name, arrays[w.name].shape).sum()) or w.counts["set"] + w.counts["zero"] == w.size, w.name


def test_means_are_means():
    """Counted in the file: new columns that hold the mean of the old ones in their row."""
    arrays, seen = numbers(grown("means")[1]), 0
    for w in facts("means").weights:
        x = arrays[w.name].astype(np.float64)
        if x.ndim == 2 and w.new_shape[1] == 48 and w.old_shape[1] == 32:
            near = np.abs(x[:, 32:] - x[:, :32].mean(1, keepdims=True)) < 1e-6
            rows = (x != 0).any(1)  # behind new units everything is zero
            assert w.counts["mean"] == near[rows].sum(), w.name
            seen += w.counts["mean"]
    assert seen > 1000


@every
def test_pictures_have_the_shares_of_the_numbers(label):
    f, p = facts(label), shown(label)
    svgs = [a for a in p.all("svg") if a["aria-label"].startswith("Map of ")]
    assert len(svgs) == len(f.pictures) > 0
    for (weight, pic), svg in zip(f.pictures, svgs):
        area = {k: sum(w * h for *_, w, h in boxes) / (pic.width * pic.height) for k, boxes in pic.areas.items()}
        assert pic.exact and set(area) == set(weight.kinds())
        for kind, number in weight.kinds().items():
            assert area[kind] == pytest.approx(number / weight.size, abs=1e-3)
            assert f"{kind} {percent(number, weight.size)}" in svg["aria-label"]
    drawn = [a["d"] for a in p.all("path")]
    assert len(drawn) == sum(len(pic.areas) for _, pic in f.pictures)
    boxes = [tuple(map(float, m)) for m in re.findall(r"M(\S+) (\S+)h(\S+)v(\S+)h-", "".join(drawn))]
    assert boxes == [pytest.approx(box, abs=1e-2) for _, pic in f.pictures for areas in pic.areas.values() for box in areas]


@every
def test_layers_are_drawn_to_scale(label):
    f, model, result = facts(label), *map(onnxgrow.load, grown(label))
    for drawing, m, after in zip(f.drawings, (model, result), (False, True)):
        said = drawing.label
        for tower, stack in zip(f.towers, m.stacks, strict=True):
            assert f"{tower.name}: {stack.layers}; hidden {m.roles.size('hidden')}" in said and tower.count[after] == stack.layers
        bars = [b for b in drawing.bars if b[0].endswith("hidden")]
        whole_width = {}
        for _, _, y, width, _ in bars:
            whole_width[y] = whole_width.get(y, 0) + width
        wide = max(m_.roles.size(r) for m_ in (result,) for r in ("hidden", "ffn") if m_.roles.size(r))
        assert len(whole_width) == sum(s.layers for s in m.stacks)
        if label != "experts":
            assert list(whole_width.values()) == pytest.approx([280 * m.roles.size("hidden") / wide] * len(whole_width), abs=0.05)
        inserted = sum(sum(t.layers) for t in f.towers) if after else 0
        assert sum(1 for y in whole_width if not any(k == "old hidden" and at == y for k, _, at, *_ in bars)) == inserted


@every
def test_errors_are_those_of_the_validation(label):
    f, p = facts(label), shown(label)
    rows = p.table("Error of each output")
    wanted = [[c.label, d.output, small(d.max_rel), small(d.max_abs), small(d.mean_rel), " × ".join(map(str, d.shape))] for c in f.report.cases for d in c.outputs]
    assert rows == wanted and len({r[0] for r in rows}) > 1
    assert f"Largest relative difference of any output {small(f.report.max_rel)}, tolerance {small(f.report.tolerance)}" in p.said
    model = onnxgrow.load(grown(label)[0])
    made = {c.label: c for c in cases(model.roles.structure, model.roles, 0)}
    for run_, name, dtype, dims, least, greatest, digest in p.table("Arrays that both"):
        x = made[run_].feeds[name]
        assert (dtype, dims) == (str(x.dtype), " × ".join(map(str, x.shape)) or "one number")
        assert not x.size or (float(least), float(greatest)) == pytest.approx((float(x.min()), float(x.max())), rel=1e-8)
    for shown_run in f.runs:
        feeds = made[shown_run.label].feeds
        digest = hashlib.sha256(b"".join(n.encode() + str(x.dtype).encode() + repr(x.shape).encode() + x.tobytes() for n, x in feeds.items())).hexdigest()
        assert shown_run.digest == digest and digest[:16] in p.said
    assert {r[0] for r in p.table("Arrays that both")} == {c.label for c in f.report.cases}


def states(path: Path, names: list[str], feeds: dict) -> list[np.ndarray]:
    """Intermediate tensors of a file, by ONNX Runtime alone."""
    proto = onnx.load(path)
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in {o.name for o in proto.graph.output})
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(names, feeds)


@pytest.mark.parametrize("label", ["depth", "near", "bert"])
def test_divergence_along_the_depth_is_measured(label):
    f, (source, result) = facts(label), grown(label)
    (stack, found), = f.states
    blocks = onnxgrow.load(source).stacks[0]
    assert [s.layer for s in found] == list(range(-1, blocks.layers)) and [s.source for s in found][1:] == [b.leaves for b in blocks.blocks]
    assert found[-1].grown_layer == onnxgrow.load(result).stacks[0].layers - 1
    model, worst = onnxgrow.load(source), [[], []]
    old = model.roles.size("hidden")
    for case in cases(model.roles.structure, model.roles, 0):
        a, b = states(source, [s.source for s in found], case.feeds), states(result, [s.grown for s in found], case.feeds)
        worst[0].append([np.abs(x - y[..., :old]).max() for x, y in zip(a, b)])
        worst[1].append([np.abs(x).max() for x in a])
    expected = np.max(worst[0], axis=0) / np.max(worst[1], axis=0)
    measured = np.array([s.max_rel for s in found])
    assert measured == pytest.approx(expected, rel=0.05 if label == "near" else 5, abs=1e-6)
    rows = shown(label).table(f"{stack}: the residual stream")
    assert [r[1] for r in rows] == [small(s.max_rel) for s in found] and [r[4].split(" / ")[0] for r in rows] == [s.source for s in found]
    exact = label in ("depth", "bert")
    assert (measured < 1e-5).all() if exact else measured[-1] > 1e-3
    assert len([a for a in shown(label).all("circle")]) == len(found)


def test_a_changed_weight_shows_where_it_acts(tmp_path):
    """Training a grown model, or damage, shows from its layer on, and the command says so."""
    source, result = grown("depth")
    proto = onnx.load(result)
    block, known = onnxgrow.load(result).stacks[0].blocks[2], {t.name: t for t in proto.graph.initializer}  # the second of the source, the third of four
    weight = next(known[name] for i in sorted(block.nodes) for name in proto.graph.node[i].input if name in known and list(known[name].dims) == [108, 48])
    weight.raw_data = (numpy_helper.to_array(weight) * 1.5).tobytes()
    onnx.save(proto, tmp_path / "changed.onnx")
    code, out, err = run("report", source, tmp_path / "changed.onnx")
    assert code == 1 and err == "" and out.startswith("NOT EQUAL on CPU")
    p = Page((tmp_path / "changed.html").read_text(encoding="utf-8"))
    found = {r[0]: float(r[1]) for r in p.table("layers: the residual stream")}
    assert max(found["before the layers"], found["after layer 0"]) < 1e-5 and found["after layer 1"] > 1e-3
    assert "Run side by side: NOT EQUAL." in p.said and "First difference: " in p.said


# --- reproduction ------------------------------------------------------------------------------------------------------


@every
def test_the_command_makes_the_same_bytes(label, tmp_path, monkeypatch):
    source, result = grown(label)
    shutil.copy(source, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    command, check = re.search(r"<pre>(.*?)\n(.*?)</pre>", shown(label).text, re.S).groups()
    program, *words = shlex.split(command)
    assert program == "onnxgrow" and run(*words, "--no-validate")[0] == 0
    digest = hashlib.sha256((tmp_path / "grown.onnx").read_bytes()).hexdigest()
    rows = {r[0]: r for r in shown(label).table("Files")}
    assert digest == rows["grown.onnx"][2] == hashlib.sha256(result.read_bytes()).hexdigest()
    assert whole(rows["model.onnx"][1]) == source.stat().st_size and rows["model.onnx"][2] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert run(*shlex.split(check)[1:])[0] == (0 if label not in ("near", "naive") else 1)


ASKED = [
    {"hidden": 48, "only_hidden": True, "seed": 3, "ffn": 75, "init_std": 0.25, "vocab": 120, "vocab_init": "zero", "pad_vocab_to": 64},
    {"head_dim": 12, "wake": 1e-3, "set": {"ffn": 90}, "method": "pad"}, {"layers": 4, "depth_method": "gate", "placement": "after:0,1", "block_init": "random"},
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED, ids=lambda a: "-".join(map(str, a)))
def test_every_option_comes_back(asked, tmp_path, monkeypatch):
    from onnxgrow.pages.reproduce import expand_command

    monkeypatch.chdir(tmp_path)
    shutil.copy(zoo.export("llama"), "it's a model.onnx")
    model = onnxgrow.load("it's a model.onnx")
    model.plan(**asked).write("one.onnx", validate=False)
    again = model.plan_like(onnxgrow.load("one.onnx")).request
    words = shlex.split(expand_command(again, "it's a model.onnx", "two.onnx"))
    assert run(*words[1:], "--no-validate")[0] == 0
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


def test_the_same_inputs_give_the_same_page():
    model, result = map(onnxgrow.load, grown("near"))
    again = page(gather(model, result, model.plan_like(result)))
    assert again == shown("near").text and str(home()) not in again


# --- nothing from a model becomes markup -------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[str, str]:
    """The page of a model with hostile names, and of the same model as it is."""
    folder = tmp_path_factory.mktemp("hostile")
    made = []
    for source, target in (("plain.onnx", "grown.onnx"), ("<b>&'x'.onnx", "\u202egrown<i onload=x>.onnx")):
        if made:
            renamed(folder / "plain.onnx", folder / source)
        else:
            shutil.copy(zoo.export("llama"), folder / source)
        model = onnxgrow.load(folder / source)
        model.plan(hidden=48, layers=3, vocab=120).write(folder / target, validate=False)
        result = onnxgrow.load(folder / target)
        made.append(page(gather(model, result, model.plan_like(result))))
    return made[1], made[0]


def skeleton(text: str) -> list:
    return [(tag, sorted(attrs)) for tag, attrs in Page(text).tags]


def test_hostile_names_change_no_tag_and_no_attribute(hostile):
    bad, good = hostile
    assert len(HOSTILE[0]) and bad.count("alert(1)") > 20
    assert [s for s in skeleton(bad) if s[0] not in ("path", "text", "br")] == [s for s in skeleton(good) if s[0] not in ("path", "text", "br")]


def test_hostile_names_stay_text(hostile):
    p = Page(hostile[0])
    assert not p.all("script") and not p.all("img") and "49" + "{% raw" not in p.said
    assert not any(name.startswith("on") or name in ("src", "srcset", "action", "formaction") for _, attrs in p.tags for name in attrs)
    assert all(c.isprintable() or c == "\n" for c in hostile[0])
    assert all(name.replace("\x1b", "\\x1b").replace("\u202e", "\\x202e") in p.said for name in HOSTILE)


@every
def test_nothing_is_loaded_from_anywhere(label):
    p = shown(label)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|javascript:", p.text.replace("http-equiv", ""))
    assert not {"script", "iframe", "object", "embed", "img", "form", "base"} & {t for t, _ in p.tags}
    assert all(a["href"].startswith("#") or a["href"] == "data:," for t, a in p.tags if "href" in a)
    assert next(a["content"] for a in p.all("meta") if a.get("http-equiv") == "Content-Security-Policy").startswith("default-src 'none';")


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path):
    source, result = grown("depth")
    shutil.copy(result, tmp_path / "grown.onnx")
    target, drawn = tmp_path / "grown.html", [w.name for w in facts("depth").weights if w.size > 48][:2]
    code, out, err = run("report", source, tmp_path / "grown.onnx", "--weight", *drawn[:1], "--weight", *drawn[1:])
    assert (code, err) == (0, "") and f"wrote {target}" in out
    p = Page(target.read_text(encoding="utf-8"))
    assert len([a for a in p.all("svg") if a["aria-label"].startswith("Map of ")]) == 2
    assert [x.name for x in tmp_path.iterdir() if x.name.startswith(".")] == []
    code, out, err = run("report", source, tmp_path / "grown.onnx", "-o", target)
    assert code == 1 and "exists" in err and "--force" in err
    own = {"input_ids": np.arange(10, dtype=np.int64).reshape(2, 5), "attention_mask": np.ones((2, 5), np.int64)}
    np.savez(tmp_path / "own.npz", **own)
    document = json.loads(run("report", source, tmp_path / "grown.onnx", "--force", "--inputs", tmp_path / "own.npz", "--json")[1])
    assert document["certificate"] == "exact" and document["validation"]["equal"] and len(document["depth"][0]["states"]) == 3
    assert set(document) == {"onnxgrow", "command", "model", "grown", "output", "certificate", "validation", "depth", "gradients"}
    p = Page(target.read_text(encoding="utf-8"))
    assert p.table("Arrays that both")[0][:6] == ["the given inputs", "input_ids", "int64", "2 × 5", "0", "9"]
    assert "on the inputs that were given, and on no others" in p.said


REFUSED = [
    (["-o", "no/where.html"], 1, "there is no folder"), (["--weight", "nothing"], 2, "names no weight that grows"), (["-o", "."], 1, "exists"),
    (["--inputs", "missing.npz"], 2, "cannot read inputs"),
]  # fmt: skip


@pytest.mark.parametrize("more, code, words", REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_what_cannot_be_is_refused(more, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, err = run("report", *grown("bert"), *(["-o", "x.html"] if "-o" not in more else []), *more)
    assert found == code and words in err and "next:" in err and not list(tmp_path.iterdir())


def test_a_file_without_a_record_says_so(tmp_path):
    source, result = grown("bert")
    proto = onnx.load(result)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    assert run("report", source, tmp_path / "bare.onnx")[0] in (0, 1)
    said = Page((tmp_path / "bare.html").read_text(encoding="utf-8")).said
    assert "The grown file records no growth." in said and "makes a model of the same sizes" in said
    assert run("report", source, tmp_path / "bare.onnx", "--gradients", "--force")[0] == 2


# --- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, asked", [pytest.param("llama", {"ffn": 80}, marks=pytest.mark.slow), ("qwen3", {"head_dim": 12})])
def test_gradients_are_measured(name, asked, tmp_path):
    model = onnxgrow.load(usual(name).path)
    plan = model.plan(**asked)
    plan.write(tmp_path / "grown.onnx", validate=False)
    code, out, _ = run("report", model.path, tmp_path / "grown.onnx", "--gradients", "--json")
    measured = json.loads(out)["gradients"]
    assert code == 0 and measured["new"] >= plan.new_parameters - 1 and measured["new"] - measured["live"] == plan.dead_parameters == sum(s["silent"] for s in measured["silent"])
    assert (plan.dead_parameters > 0) == (name == "qwen3")
    p = Page((tmp_path / "grown.html").read_text(encoding="utf-8"))
    assert f"{measured['live']:,} of {measured['new']:,} new entries have received a gradient" in p.said
    assert f"{plan.dead_parameters:,} of {plan.new_parameters:,} new parameters can never learn" in p.said


def test_words_for_sizes():
    assert [size(n) for n in (12, 4200, 2_500_000, 3_000_000_000)] == ["12 bytes", "4.2 kB", "2.5 MB", "3 GB"]
    assert [small(x) for x in (None, 0.0, 1.234e-7, float("inf"))] == ["-", "0", "1.2e-07", "infinite or NaN"]
    assert len(KINDS) == 7


@pytest.mark.parametrize("constant", [False, True])
def test_every_command_counts_the_same_parameters(constant, tmp_path):
    """An offset that a norm and a bias shared becomes two; weights may be Constant nodes: expand, inspect and report say one number, part by part."""
    random = np.random.default_rng(0)
    more = {name: random.normal(size=(HIDDEN, HIDDEN)).astype("f") for name in ("up8", "down8")}
    path = written(tmp_path, lines=ATTENTION + "u0 = MatMul m up8\nu = Add u0 b2\nf = Relu u\nd = MatMul f down8\ny = Add h d\n", more=more)
    if constant:
        proto = onnx.load(path)
        for name in ("g", "head"):
            tensor = next(t for t in proto.graph.initializer if t.name == name)
            proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=tensor))
            proto.graph.initializer.remove(tensor)
        onnx.save(proto, path)
    model = onnxgrow.load(path)
    plan = model.plan(ffn=13)
    result = onnxgrow.load(plan.write(tmp_path / "grown.onnx").path)
    assert model.parameters + plan.new_parameters == result.parameters == result.architecture.parameters
    assert plan.new_parameters == 2 * 5 * HIDDEN + 13  # more columns, more rows, and a bias of its own
    for side, m in (("old", model), ("new", result)):
        seen = Counter()
        for part in find_parts(m.roles, m.stacks):
            seen[part.kind] += part.parameters
        stated = {p.name: getattr(p, side) for p in gather(model, result, model.plan_like(result)).parts}
        assert stated == dict(seen), side
