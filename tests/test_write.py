"""Writing: the result is a sound model whatever its form, and whatever fails leaves nothing behind."""

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow import atomic, layout, transfer, wire
from onnxgrow.axismap import AxisMap, Fill
from onnxgrow.errors import FileError
from onnxgrow.recipe import Recipe
from onnxgrow.source import open_source
from onnxgrow.write import stage

HIDDEN, FFN, GROWN = 64, 96, 144


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def mlp() -> onnx.ModelProto:
    """y = relu(x w1 + b) w2 + c, with an unused bfloat16, an unused int4 and a typed tensor, and unknown fields."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h0"]),
        helper.make_node("Add", ["h0", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y0"]),
        helper.make_node("Add", ["y0", "c"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(normal(HIDDEN, FFN, seed=1), "w1"),
        numpy_helper.from_array(normal(FFN, seed=2), "b"),
        helper.make_tensor("half", TensorProto.BFLOAT16, (600,), os.urandom(1200), raw=True),
        numpy_helper.from_array(normal(FFN, HIDDEN, seed=3), "w2"),
        helper.make_tensor("four", TensorProto.INT4, (4001,), os.urandom(2001), raw=True),
        helper.make_tensor("c", TensorProto.FLOAT, (HIDDEN,), normal(HIDDEN, seed=4).tolist()),
        helper.make_tensor("words", TensorProto.STRING, (2,), [b"a", b"b"]),
    ]
    put = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", HIDDEN]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", put[:1], put[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(params=["embedded", "external"])
def path(request, tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    if request.param == "external":
        onnx.save(mlp(), folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    else:
        onnx.save(mlp(), folder / "model.onnx")
    return folder / "model.onnx"


def grown(path: Path):
    """The source, its edited proto and the recipes for a wider hidden layer; a detached and an inline tensor grow."""
    source = open_source(path)
    proto, recipes = onnx.ModelProto(), {}
    proto.CopyFrom(source.proto)
    old, wide = AxisMap.identity(HIDDEN), lambda fill: AxisMap.append(FFN, GROWN, fill)
    axes = {"w1": (old, wide(Fill.FREE)), "b": (wide(Fill.FREE),), "w2": (wide(Fill.ZERO), old)}
    for tensor in proto.graph.initializer:
        if tensor.name in axes:
            before, after = tuple(tensor.dims), tuple(axis.new for axis in axes[tensor.name])
            recipes[tensor.name] = Recipe(tensor.name, TensorProto.FLOAT, before, after, axes[tensor.name])
            tensor.dims[:] = after
    return source, proto, recipes


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": normal(3, HIDDEN, seed=9)})[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def tensors(path: Path) -> dict[str, bytes]:
    """The values of each initializer, as onnx itself reads them."""
    return {
        tensor.name: bytes(tensor.raw_data) or numpy_helper.to_array(tensor).tobytes()
        for tensor in onnx.load(path).graph.initializer
    }


@pytest.mark.parametrize("external", [None, True, False])
def test_grown_model_is_sound_and_equal(path, tmp_path, external):
    source, proto, recipes = grown(path)
    before = snapshot(path.parent)
    with stage(source, proto, recipes, tmp_path / "out.onnx", external=external) as staged:
        assert np.allclose(run(staged.path), run(path), atol=1e-4), "it runs before it has its name"
        assert not (tmp_path / "out.onnx").exists()
        assert staged.commit() == tmp_path / "out.onnx"
    data = tmp_path / "out.onnx.data"
    assert data.exists() == (source.external if external is None else external)
    assert sorted(os.listdir(tmp_path)) == sorted(["source", "out.onnx"] + ["out.onnx.data"] * data.exists())
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    assert np.allclose(run(tmp_path / "out.onnx"), run(path), atol=1e-4)
    found, old = tensors(tmp_path / "out.onnx"), tensors(path)
    assert list(found) == [tensor.name for tensor in proto.graph.initializer], "in the source's order"
    for name in found:
        made = recipes[name].evaluate(source.array(name)).tobytes() if name in recipes else old[name]
        assert found[name] == made, name
    assert snapshot(path.parent) == before, "the source is never changed"


def test_grown_model_opens_again(path, tmp_path):
    """What is written passes the read rules, and grows once more into the same bytes under another name."""
    source, proto, recipes = grown(path)
    stage(source, proto, recipes, tmp_path / "one.onnx").commit()
    again = open_source(tmp_path / "one.onnx")
    assert (again.array("w1") == recipes["w1"].evaluate(source.array("w1"))).all()
    assert again.tensors["four"].dtype == TensorProto.INT4
    for ref in again.tensors.values():
        assert not again.external or ref.offset % (4096 if ref.length >= 4096 else 64) == 0


@pytest.mark.parametrize("external", [True, False])
def test_bytes_do_not_depend_on_blocks_or_threads(path, tmp_path, external):
    source, proto, recipes = grown(path)
    results = []
    for number, (block_bytes, threads) in enumerate([(1, 1), (1000, 3), (1 << 20, 2)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = {"block_bytes": block_bytes, "threads": threads, "external": external}
        stage(source, proto, recipes, folder / "m.onnx", **options).commit()
        results.append(snapshot(folder))
    assert results[0] == results[1] == results[2]


def test_without_growth_the_files_are_copied(path, tmp_path):
    source = open_source(path)
    (tmp_path / "out").mkdir()
    stage(source, source.proto, {}, tmp_path / "out" / "model.onnx").commit()
    assert snapshot(tmp_path / "out") == snapshot(path.parent)


def test_copy_in_the_same_folder_gets_its_own_data(path):
    source = open_source(path)
    stage(source, source.proto, {}, path.with_name("copy.onnx")).commit()
    assert tensors(path.with_name("copy.onnx")) == tensors(path)
    if source.external:
        location = open_source(path.with_name("copy.onnx")).data
        assert list(location) == ["copy.onnx.data"]


def test_data_in_subfolders_is_copied_alike(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    onnx.save(mlp(), tmp_path / "in" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    proto = onnx.load(tmp_path / "in" / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entry.value.replace("w.bin", "sub/w.bin")
    shutil.move(tmp_path / "in" / "w.bin", tmp_path / "in" / "sub" / "w.bin")
    (tmp_path / "in" / "m.onnx").write_bytes(proto.SerializeToString())
    source = open_source(tmp_path / "in" / "m.onnx")
    stage(source, source.proto, {}, tmp_path / "out" / "m.onnx").commit()
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "in")


def test_unknown_fields_survive(tmp_path):
    content, mark = mlp().SerializeToString(), wire.message(555, b"from a later version")
    extra = numpy_helper.from_array(normal(40, 40), "extra").SerializeToString() + mark
    content += wire.message(wire.GRAPH, wire.message(wire.INITIALIZER, extra) + mark) + mark
    (tmp_path / "in.onnx").write_bytes(content)
    source, proto, recipes = grown(tmp_path / "in.onnx")
    stage(source, proto, recipes, tmp_path / "out.onnx").commit()
    assert (tmp_path / "out.onnx").read_bytes().count(mark) == 3


def test_a_tensor_may_come_from_another_one(path, tmp_path):
    """New layers copy old ones: a recipe names its origin. New inline and dropped ones follow the graph."""
    source = open_source(path)
    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    copy = TensorProto(name="copy", dims=(HIDDEN, FFN), data_type=TensorProto.FLOAT)
    proto.graph.initializer.append(copy)
    copy.name = "scaled"
    proto.graph.initializer.extend([copy, numpy_helper.from_array(normal(5), "new")])
    del proto.graph.initializer[2]
    axes = AxisMap.identity(HIDDEN), AxisMap.identity(FFN)
    shape, kind = (HIDDEN, FFN), TensorProto.FLOAT
    recipes = {
        "copy": Recipe("copy", kind, shape, shape, axes, origin="w1"),
        "scaled": Recipe("scaled", kind, shape, shape, axes, origin="w1", scale=2.0),
    }
    stage(source, proto, recipes, tmp_path / "out.onnx").commit()
    found, w1 = tensors(tmp_path / "out.onnx"), source.array("w1")
    assert found["copy"] == w1.tobytes() and found["scaled"] == (2 * w1).tobytes()
    assert found["new"] == normal(5).tobytes() and "half" not in found


def test_external_data_where_one_file_is_too_small(path, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "EMBEDDED_LIMIT", 50_000)
    source, proto, recipes = grown(path)
    stage(source, proto, recipes, tmp_path / "out.onnx").commit()
    assert (tmp_path / "out.onnx.data").exists() and np.allclose(run(tmp_path / "out.onnx"), run(path), atol=1e-4)
    with pytest.raises(FileError, match="do not fit into one ONNX file"):
        stage(source, proto, recipes, tmp_path / "other.onnx", external=False)


def test_progress_counts_to_the_end(path, tmp_path):
    source, proto, recipes = grown(path)
    calls = []
    stage(source, proto, recipes, tmp_path / "a.onnx", progress=lambda *call: calls.append(call), block_bytes=1000)
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done) and done[-1] <= totals[-1] < done[-1] + 5 * 4096 and len(set(totals)) == 1


def test_wrong_sizes_are_an_error_of_the_caller(path, tmp_path):
    source, proto, recipes = grown(path)
    with pytest.raises(ValueError, match="w1: the recipe makes"):
        stage(source, source.proto, recipes, tmp_path / "out.onnx")
    with pytest.raises(ValueError, match="without a recipe"):
        stage(source, proto, {}, tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["source"]


# Refusals and failures


def refused(words: str, *arguments, **options) -> None:
    with pytest.raises(FileError, match=words) as error:
        stage(*arguments, **options)
    assert error.value.hint


def test_existing_targets_are_kept(path, tmp_path):
    case = grown(path)
    for name in ("out.onnx", "out.onnx.data"):
        (tmp_path / name).write_text("mine")
        refused(f"{name} exists", *case, tmp_path / "out.onnx", external=True)
        (tmp_path / name).unlink()
    (tmp_path / "out.onnx").symlink_to("nowhere")
    refused("out.onnx exists", *case, tmp_path / "out.onnx")
    stage(*case, tmp_path / "out.onnx", overwrite=True).commit()
    assert not (tmp_path / "out.onnx").is_symlink() and np.allclose(run(tmp_path / "out.onnx"), run(path), atol=1e-4)
    (tmp_path / "folder.onnx").mkdir()
    refused("folder.onnx exists", *case, tmp_path / "folder.onnx", overwrite=True)


def test_a_target_that_appears_meanwhile_is_kept(path, tmp_path):
    staged = stage(*grown(path), tmp_path / "out.onnx")
    (tmp_path / "out.onnx").write_text("mine")
    with pytest.raises(FileError, match="exists"):
        staged.commit()
    assert (tmp_path / "out.onnx").read_text() == "mine"
    staged.discard()
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "source"]


def test_the_source_is_never_overwritten(path, tmp_path):
    """Not by name, link, hard link, nor as the data file of another name."""
    case, before = grown(path), snapshot(path.parent)
    (tmp_path / "link.onnx").symlink_to(path)
    os.link(path, tmp_path / "hard.onnx")
    for target in (path, tmp_path / "link.onnx", tmp_path / "hard.onnx", path.parent / ".." / "source" / "model.onnx"):
        refused("is the source model itself", *case, target, overwrite=True)
    if case[0].external:
        os.link(path.parent / "weights.bin", tmp_path / "out.onnx.data")
        refused("is the source model itself", *case, tmp_path / "out.onnx", overwrite=True)
    assert snapshot(path.parent) == before


def test_no_folder_or_no_right(path, tmp_path, monkeypatch):
    case = grown(path)
    refused("there is no folder", *case, tmp_path / "no" / "out.onnx")

    def forbidden(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic.tempfile, "mkdtemp", forbidden)
    refused("cannot write into .*: Permission denied", *case, tmp_path / "out.onnx")


def test_full_disk_is_seen_before(path, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    refused("has 5 bytes free, and [0-9]{5} are needed", *grown(path), tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(path, tmp_path, monkeypatch, error, threads):
    case, fill, calls = grown(path), transfer.Stream.fill, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise error
        fill(*arguments)

    monkeypatch.setattr(transfer.Stream, "fill", failing)
    before = snapshot(path.parent)
    expected = FileError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="No space left" if expected is FileError else None):
        stage(*case, tmp_path / "out.onnx", threads=threads, block_bytes=1000)
    assert os.listdir(tmp_path) == ["source"] and snapshot(path.parent) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_of_the_last_step_leaves_all_as_it_was(path, tmp_path, monkeypatch, overwrite):
    """Data has its name by then, and goes again; an older model stays whole, its own data too."""
    case = grown(path)
    if overwrite:
        stage(*case, tmp_path / "out.onnx", external=True).commit()
        for file in (tmp_path / "out.onnx", tmp_path / "out.onnx.data"):
            os.utime(file, ns=(1, 1))
    before, seen = snapshot(tmp_path), []
    staged = stage(*case, tmp_path / "out.onnx", external=True, overwrite=overwrite)

    def failing(staging, *_):
        seen.extend(sorted(file.name for file in tmp_path.iterdir() if file.suffix == ".data" or ".data." in file.name))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic.Staging, "_put", failing)
    with pytest.raises(FileError, match="cannot write .*out.onnx: Input/output error"):
        staged.commit()
    assert seen == ["out.onnx.data"] + ["out.onnx.data.1"] * overwrite
    staged.discard()
    assert snapshot(tmp_path) == before and not overwrite or np.allclose(run(tmp_path / "out.onnx"), run(path), atol=1e-4)


def test_an_exception_or_no_commit_discards(path, tmp_path):
    with pytest.raises(RuntimeError), stage(*grown(path), tmp_path / "out.onnx"):
        raise RuntimeError("validation failed")
    with stage(*grown(path), tmp_path / "out.onnx"):
        pass
    assert os.listdir(tmp_path) == ["source"]


def test_the_kernel_may_copy_in_parts(path, tmp_path, monkeypatch):
    whole = os.copy_file_range
    monkeypatch.setattr(
        transfer.os, "copy_file_range", lambda a, b, count, *offsets: whole(a, b, min(count, 100), *offsets)
    )
    stage(*grown(path), tmp_path / "out.onnx").commit()
    assert tensors(tmp_path / "out.onnx")["half"] == tensors(path)["half"]


def test_copies_without_the_kernel(path, tmp_path, monkeypatch):
    """Other systems, and other file systems, copy by hand; a source that shrinks is an error."""
    monkeypatch.delattr(transfer.os, "copy_file_range", raising=False)
    monkeypatch.setattr(transfer, "BLOCK_BYTES", 100)
    case = grown(path)
    stage(*case, tmp_path / "out.onnx").commit()
    assert tensors(tmp_path / "out.onnx")["half"] == tensors(path)["half"]
    os.truncate(case[0].tensors["half"].file, case[0].tensors["half"].offset + 10)
    del case[2]["w1"], case[2]["w2"]
    for tensor in case[1].graph.initializer:
        tensor.dims[:] = case[0].tensors[tensor.name].shape if tensor.name in ("w1", "w2") else tensor.dims
    refused("became shorter", *case, tmp_path / "other.onnx")
