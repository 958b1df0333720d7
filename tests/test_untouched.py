"""Untouched means untouched: what need not change is the same to the bit, and the source is never written to."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.errors import FileError
from onnxgrow.model import Model
from onnxgrow.provenance import RECORD
from onnxgrow.regions import REGIONS
from onnxgrow.wire import message
from tests import growing
from tests.growing import Case
from tests.zoo_models import SPECS

MARK = message(4001, b"from a later version of ONNX")  # a field that no ONNX of today knows
ROOT = Path(__file__).parents[1]
GROWTHS = [("bert-mlm", "hidden-only"), ("gpt2", "together"), ("llama", "kv_heads"), ("vit", "copy-hidden"), ("qwen3", "heads"), ("t5-encoder", "ffn")]
every_growth = pytest.mark.parametrize(("name", "label"), GROWTHS)


def decorated(case: Case, folder: Path, external: bool = False) -> Path:
    """An export full of things that growth has no business with."""
    model = onnx.load(case.path)
    model.ir_version = max(model.ir_version, 10)
    model.producer_name, model.producer_version, model.domain = "acme", "7.1", "org.acme"
    model.model_version, model.doc_string = 42, "a model\nwith a text"
    model.metadata_props.add(key="licence", value="CC0")
    model.metadata_props.add(key="vocabulary", value="ä ö ü")
    model.opset_import.append(helper.make_opsetid("org.acme", 3))
    body = [helper.make_node("Add", ["x", "x"], ["y"], "double")]
    model.functions.append(helper.make_function("org.acme", "Double", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    graph = model.graph
    graph.doc_string = "the graph"
    graph.metadata_props.add(key="graph", value="of acme")
    graph.quantization_annotation.add(tensor_name=graph.initializer[0].name).quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    graph.initializer.append(numpy_helper.from_array(np.arange(400, dtype=np.float32), "nobody uses this"))
    graph.initializer.append(helper.make_tensor("nor these words", TensorProto.STRING, [2], [b"a", b"b"]))
    for k, node in enumerate(graph.node):
        node.doc_string, node.name = f"node {k}", node.name or f"nameless {k}"
        node.metadata_props.add(key="scope", value=f"layer {k}")
    for k, tensor in enumerate(graph.initializer):
        tensor.doc_string = f"tensor {k}"
        tensor.metadata_props.add(key="origin", value="somewhere")
    for k, value in enumerate([*graph.input, *graph.output, *graph.value_info]):
        value.doc_string = f"value {k}"
    for k, part in enumerate([graph.node[0], graph.node[-1], *graph.initializer, graph.input[0], graph.output[0], graph, model]):
        part.MergeFromString(MARK + message(4002, str(k).encode()))
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "model.onnx", **(dict(save_as_external_data=True, location="weights.bin", size_threshold=100) if external else {}))
    return folder / "model.onnx"


def tensors(model: onnx.ModelProto) -> dict[str, bytes]:
    """The values of each initializer."""
    return {t.name: bytes(t.raw_data) or numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


# --- no growth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", ["bert-mlm", "llama-past", "vit"])
def test_without_growth_the_file_is_byte_identical(name, external, tmp_path):
    """Other names in another folder: the same bytes, decorations and unknown fields included."""
    source = decorated(growing.usual(name), tmp_path / "in", external)
    model = Model(source)
    sizes = {key: getattr(model.architecture, key) for key in ("hidden", "heads", "head_dim", "ffn")}
    for k, asked in enumerate([{}, {"hidden": 32}, sizes, {"set": {"positions": model.architecture.positions} if model.architecture.positions else {}}]):
        plan = model.plan(**asked)
        assert plan.certificate.kind == "exact" and plan.sizes == {} and plan.new_parameters == 0
        (tmp_path / str(k)).mkdir()
        plan.write(tmp_path / str(k) / "out.onnx", validate=False)
        assert (tmp_path / str(k) / "out.onnx").read_bytes() == source.read_bytes()
        assert sorted(os.listdir(tmp_path / str(k))) == ["out.onnx"] + ["weights.bin"] * external
        assert not external or (tmp_path / str(k) / "weights.bin").read_bytes() == (source.parent / "weights.bin").read_bytes()


@pytest.mark.parametrize("name", SPECS)
def test_without_growth_every_export_is_byte_identical(name, tmp_path):
    case = growing.usual(name)
    plan = growing.opened(case.path).plan(hidden=32, ffn=72)
    assert growing.written(plan, tmp_path).read_bytes() == case.path.read_bytes()


def test_a_dim_that_stays_beside_one_that_grows(tmp_path):
    """Asking for the old size as well changes nothing about the result but its name and record."""
    model = Model(growing.usual("gpt2").path)
    files = [growing.written(model.plan(ffn=80, **more), tmp_path, f"{k}.onnx") for k, more in enumerate([{}, {"hidden": 32}, {"heads": 4}])]
    assert len({hashlib.sha256(repr(tensors(onnx.load(file))).encode()).digest() for file in files}) == 1


# --- growth ----------------------------------------------------------------------------------------------------------


def plain_copy(proto):
    """A message without what growth may change in it."""
    copy = type(proto)()
    copy.CopyFrom(proto)
    return copy


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(("name", "label"), GROWTHS)
def test_everything_else_survives_growth(name, label, external, tmp_path):
    source = decorated(growing.usual(name), tmp_path / "in", external)
    plan = Model(source).plan(**growing.growths(name)[label])
    path = growing.written(plan, tmp_path)
    old, new = onnx.load(source), onnx.load(path)
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string", "opset_import", "functions", "training_info"):
        assert getattr(new, field) == getattr(old, field), field
    assert list(new.metadata_props)[:-2] == list(old.metadata_props) and [p.key for p in new.metadata_props[-2:]] == [REGIONS, RECORD]
    for field in ("name", "doc_string", "metadata_props", "quantization_annotation", "sparse_initializer"):
        assert getattr(new.graph, field) == getattr(old.graph, field), field
    marks = [sum(data.read_bytes().count(MARK) for data in folder.glob("*.onnx")) for folder in (source.parent, tmp_path)]
    lost = {t.name for t in old.graph.initializer} - {t.name for t in new.graph.initializer}
    assert marks[1] >= marks[0] - len(lost), "unknown fields are lost"
    compare_nodes(plan, old.graph, new.graph)
    compare_tensors(plan, old, new)
    compare_values(plan, old.graph, new.graph)


def compare_nodes(plan, old: onnx.GraphProto, new: onnx.GraphProto) -> None:
    """The same nodes in the same order; only uses of private constants and the plan's attributes differ."""
    edits, alias, found = plan.decisions.edits, plan.model.roles.structure.graph.alias, {n.output[0]: n for n in new.node}
    kept = [(index, n) for index, n in enumerate(old.node) if n.output[0] in found]
    assert [n.output[0] for n in new.node] == [n.output[0] for _, n in kept]
    assert all(n.op_type in ("Constant", "Shape", "Gather", "Concat", "Unsqueeze", "Mul", "Div", "Cast", "Slice", "Sqrt", "Identity", "Reshape")
               for n in old.node if n.output[0] not in found), "only shape arithmetic may lose its last user"  # fmt: skip
    for index, n in kept:
        a, b = plain_copy(n), plain_copy(found[n.output[0]])
        for slot, name in enumerate(a.input):
            if b.input[slot] != name:
                assert (index, slot) in edits.constants or b.input[slot].startswith(f"{alias.get(name, name)}_"), (n.name, slot)
                b.input[slot] = name
        changed = edits.attributes.get(index, {})
        for message_ in (a, b):
            others = [attribute for attribute in message_.attribute if attribute.name not in changed and n.op_type != "Constant"]
            del message_.attribute[:]
            message_.attribute.extend(others)
        assert a == b and a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True), n.name


def compare_tensors(plan, old: onnx.ModelProto, new: onnx.ModelProto) -> None:
    """Initializers in the source's order, new ones behind them; what has no recipe is the same to the bit."""
    recipes, before, after = plan.decisions.applied.recipes, tensors(old), tensors(new)
    kept = [name for name in before if name in after]
    assert list(after)[: len(kept)] == kept
    shapes = {t.name for t in old.graph.initializer if t.data_type == TensorProto.INT64}  # a shape that nobody else uses changes under its own name
    scalars = {t.name for t in old.graph.initializer if not t.dims or list(t.dims) == [1]}  # so does an epsilon
    assert {name for name in kept if after[name] != before[name]} <= recipes.keys() | shapes | scalars
    assert "nobody uses this" in kept and "nor these words" in kept
    by_name = {t.name: t for t in old.graph.initializer}
    for tensor in new.graph.initializer:
        if tensor.name in by_name:
            was = by_name[tensor.name]
            assert (tensor.doc_string, tensor.data_type, tensor.metadata_props) == (was.doc_string, was.data_type, was.metadata_props), tensor.name


def compare_values(plan, old: onnx.GraphProto, new: onnx.GraphProto) -> None:
    """Inputs, outputs and intermediate tensors: the same but for the sizes of what grows."""
    for field in ("input", "output", "value_info"):
        after = {v.name: v for v in getattr(new, field)}
        assert [v.name for v in getattr(old, field) if v.name in after] == list(after)
        assert field == "value_info" or len(after) == len(getattr(old, field))
        for v in getattr(old, field):
            if v.name in after:
                a, b = plain_copy(v), plain_copy(after[v.name])
                for message_ in (a, b):
                    for d in message_.type.tensor_type.shape.dim:
                        d.ClearField("dim_value") if d.HasField("dim_value") else None
                assert a == b, v.name


@every_growth
def test_the_source_is_untouched(name, label, tmp_path, snapshot):
    source = decorated(growing.usual(name), tmp_path / "in", external=True)
    before = snapshot(source.parent)
    plan = Model(source).plan(**growing.growths(name)[label])
    plan.lines(), plan.to_json()
    assert snapshot(tmp_path) == {f"in/{file}": content for file, content in before.items()}, "planning writes nothing"
    growing.written(plan, tmp_path)
    growing.written(plan, tmp_path / "in", "beside.onnx")
    after = snapshot(source.parent)
    assert {file: content for file, content in after.items() if not file.startswith("beside")} == before
    assert sorted(file for file in after if file.startswith("beside")) == ["beside.onnx", "beside.onnx.data"]


# --- the same command, the same bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "label", "external"), [pytest.param(*growth, external, marks=[pytest.mark.slow] * ((k + external) % 2))
                                                          for k, growth in enumerate(GROWTHS) for external in (False, True)])
def test_block_size_and_threads_do_not_matter(name, label, external, tmp_path):
    source = decorated(growing.usual(name), tmp_path / "in", external)
    contents = set()
    for k, (block, threads) in enumerate([(None, 2), (None, 1), (64, 1), (1000, 2), (4096, 4), (1 << 26, 3)]):
        (tmp_path / str(k)).mkdir()
        plan = Model(source).plan(**growing.growths(name)[label])  # decided anew each time
        growing.written(plan, tmp_path / str(k), block_bytes=block, threads=threads)
        contents.add(tuple((file.name, file.read_bytes()) for file in sorted((tmp_path / str(k)).iterdir())))
    assert len(contents) == 1


def test_another_process_writes_the_same_bytes(tmp_path):
    """Nothing may depend on the order of sets, which changes with the seed of hashes and with addresses in memory."""
    asked = [(str(growing.usual(name).path), growing.growths(name)[label]) for name, label in GROWTHS]
    script = f"""
import hashlib
from onnxgrow.model import Model
for path, request in {asked!r}:
    plan = Model(path).plan(**request)
    print(hashlib.sha256(plan.write({str(tmp_path / "grown.onnx")!r}, validate=False, overwrite=True).path.read_bytes()).hexdigest())
    print(hashlib.sha256("\\n".join(plan.lines()).encode()).hexdigest())
"""
    outputs = set()
    for seed in ("0", "1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        padding = f"junk = [object() for _ in range({seed} * 1001)]\n"
        outputs.add(subprocess.run([sys.executable, "-c", padding + script], env=environment, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert len(outputs) == 1 and len(outputs.pop().split()) == 2 * len(GROWTHS)


def test_the_seed_matters_where_something_is_free(tmp_path):
    model = Model(growing.usual("gpt2").path)
    first, again, other = (growing.written(model.plan(ffn=99, seed=seed), tmp_path, f"{k}.onnx") for k, seed in enumerate((0, 0, 1)))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    old, new = tensors(onnx.load(first)), tensors(onnx.load(other))
    changed = {name for name in old if old[name] != new[name]}
    assert changed and all("mlp" in name for name in changed)


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_default_name_says_the_sizes(tmp_path):
    shutil.copy(growing.usual("llama").path, tmp_path / "my.model.onnx")
    model = Model(tmp_path / "my.model.onnx")
    names = {
        "my.model-h64.onnx": dict(hidden=64), "my.model-f99.onnx": dict(ffn=99), "my.model-k4.onnx": dict(kv_heads=4), "my.model-copy.onnx": {},
        "my.model-h45-f99.onnx": dict(hidden=45, ffn=99, only_hidden=True), "my.model-n8-k2-d12.onnx": dict(heads=8, kv_heads=2, head_dim=12),
    }  # fmt: skip
    for name, sizes in names.items():
        assert model.plan(**sizes).default_path() == tmp_path / name
    assert model.plan(ffn=99).write(validate=False).path == tmp_path / "my.model-f99.onnx"
    assert sorted(os.listdir(tmp_path)) == ["my.model-f99.onnx", "my.model.onnx"]


def test_nothing_is_overwritten(tmp_path, snapshot):
    shutil.copy(growing.usual("llama").path, tmp_path / "model.onnx")
    plan = Model(tmp_path / "model.onnx").plan(ffn=99)
    plan.write(validate=False)
    before = snapshot(tmp_path)
    with pytest.raises(FileError, match="model-f99.onnx exists") as refused:
        plan.write(validate=False)
    assert "another name" in str(refused.value)
    for path in (tmp_path / "model.onnx", tmp_path / ".." / tmp_path.name / "model.onnx"):
        for overwrite in (False, True):
            with pytest.raises(FileError, match="is the source model itself, which is never changed"):
                plan.write(path, validate=False, overwrite=overwrite)
    assert snapshot(tmp_path) == before
    (tmp_path / "model-f99.onnx").write_bytes(b"mine")
    plan.write(validate=False, overwrite=True)
    assert {name: content for name, (content, _) in snapshot(tmp_path).items()} == {name: content for name, (content, _) in before.items()}


def test_a_plan_that_fails_leaves_nothing(tmp_path, snapshot, monkeypatch):
    shutil.copy(growing.usual("llama").path, tmp_path / "model.onnx")
    before = snapshot(tmp_path)
    plan = Model(tmp_path / "model.onnx").plan(ffn=99)

    def fail(*_, **__):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(type(plan), "compare", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        plan.write()
    assert snapshot(tmp_path) == before


def test_the_record_of_a_growth(tmp_path):
    """A grown file says how it was made, a copy does not; the plan can be made again from it."""
    source = Model(growing.usual("llama").path)
    plan = source.plan(hidden=45, only_hidden=True, ffn=99, seed=3)
    path = growing.written(plan, tmp_path)
    again = source.plan_like(Model(path))
    assert again.request == plan.request and again.sizes == plan.sizes == {"hidden": (32, 45), "ffn": (72, 99)}
    assert growing.written(again, tmp_path, "again.onnx").read_bytes() == path.read_bytes()
    assert RECORD not in {p.key for p in onnx.load(growing.written(source.plan(), tmp_path, "copy.onnx")).metadata_props}
