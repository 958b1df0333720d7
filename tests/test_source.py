"""Opening files: what is found, and every way in which a file can be wrong."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxgrow import wire
from onnxgrow.errors import FileError
from onnxgrow.source import open_source

BIG = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
SMALL = np.arange(8, dtype=np.int64)


def model(*tensors: TensorProto, nodes=()) -> onnx.ModelProto:
    """A model with these initializers, or with one big and one small."""
    tensors = tensors or (numpy_helper.from_array(BIG, "big"), numpy_helper.from_array(SMALL, "small"))
    graph = helper.make_graph(list(nodes), "g", [], [], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external_tensor(shape=(64, 32), dtype=TensorProto.FLOAT, name="big", **keys) -> TensorProto:
    """A tensor in weights.bin; `keys` replace or add entries."""
    tensor = TensorProto(name=name, dims=shape, data_type=dtype, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "weights.bin", **keys}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def save(tmp_path):
    """Write a model, and weights.bin beside it; returns the model's path."""

    def write(proto: onnx.ModelProto | bytes) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
        (tmp_path / "weights.bin").write_bytes(b"\0" * 64 + BIG.tobytes())
        return path

    return write


def refused(path: Path, words: str) -> FileError:
    with pytest.raises(FileError, match=words) as error:
        open_source(path)
    assert error.value.hint, "every file error says what to do next"
    return error.value


def test_embedded_weights_are_detached_and_mapped(save):
    source = open_source(save(model()))
    assert list(source.tensors) == ["big"] and not source.external
    assert not source.proto.graph.initializer[0].HasField("raw_data")
    mapped = source.array("big")
    assert (mapped == BIG).all() and not mapped.flags.writeable and not mapped.flags.owndata
    assert (source.array("small") == SMALL).all()
    with pytest.raises(KeyError):
        source.array("other")


def test_external_weights_are_detached_and_small_ones_come_inline(save):
    small = external_tensor((4,), name="four", offset=64, length=16)
    source = open_source(save(model(external_tensor(offset=64, length=BIG.nbytes), small)))
    assert source.external and list(source.tensors) == ["big"]
    assert (source.array("big") == BIG).all()
    assert source.proto.graph.initializer[1].raw_data == BIG.tobytes()[:16]


def test_length_may_be_left_out(save):
    assert (open_source(save(model(external_tensor(offset=64)))).array("big") == BIG).all()


def test_typed_fields_stay_inline(save):
    typed = helper.make_tensor("typed", TensorProto.FLOAT, BIG.shape, BIG.ravel().tolist())
    source = open_source(save(model(typed)))
    assert not source.tensors and (source.array("typed") == BIG).all()


@pytest.mark.parametrize("name", ["BFLOAT16", "FLOAT16", "FLOAT8E4M3FN", "DOUBLE", "INT8", "BOOL", "COMPLEX64"])
def test_element_types_are_mapped(save, name):
    kind = getattr(TensorProto, name)
    values = (np.arange(2000) % 2).astype(helper.tensor_dtype_to_np_dtype(kind))
    mapped = open_source(save(model(helper.make_tensor("w", kind, (2000,), values.tobytes(), raw=True)))).array("w")
    assert mapped.dtype == values.dtype and (mapped == values).all()


@pytest.mark.parametrize("name", ["INT4", "UINT4", "FLOAT4E2M1"])
def test_packed_types_open_but_have_no_array(save, name):
    kind, size = getattr(TensorProto, name), 2001
    source = open_source(save(model(helper.make_tensor("w", kind, (4001,), bytes(size), raw=True))))
    assert source.tensors["w"].length == size
    with pytest.raises(FileError, match=f"packed {name}"):
        source.array("w")


def test_unknown_fields_survive(save):
    proto = model()
    added = wire.message(500, b"model") + proto.SerializeToString()
    tensor = proto.graph.initializer[0].SerializeToString() + wire.message(600, b"tensor")
    added += wire.message(wire.GRAPH, wire.message(wire.INITIALIZER, tensor.replace(b"big", b"bag")))
    header = open_source(save(added)).proto.SerializeToString()
    assert wire.message(500, b"model") in header and wire.message(600, b"tensor") in header


def test_last_raw_data_counts_as_in_protobuf(save):
    tensor = numpy_helper.from_array(BIG, "big").SerializeToString() + wire.message(wire.RAW_DATA, (BIG + 1).tobytes())
    body = model().graph.SerializeToString().replace(b"big", b"bag") + wire.message(wire.INITIALIZER, tensor)
    rest = model()
    rest.ClearField("graph")
    source = open_source(save(rest.SerializeToString() + wire.message(wire.GRAPH, body)))
    assert (source.array("big") == BIG + 1).all() and (source.array("bag") == BIG).all()


def test_opens_without_reading_the_weights(tmp_path):
    """A file with a hole of 1 GB: opening takes no memory to speak of and little time."""
    size = 1 << 30
    tensor = TensorProto(name="hole", dims=[size], data_type=TensorProto.UINT8).SerializeToString()
    tensor += wire.head(wire.RAW_DATA, size)
    head = model().SerializeToString() + wire.head(wire.GRAPH, len(tensor) + size + 6)
    head += wire.head(wire.INITIALIZER, len(tensor) + size) + tensor
    path = tmp_path / "hole.onnx"
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
    source = open_source(path)
    assert source.tensors["hole"].length == size and len(source.proto.SerializeToString()) < 1000


# What is wrong with a file


def test_missing(tmp_path):
    refused(tmp_path / "no.onnx", "there is no model file .*no.onnx")


def test_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_pipe_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "not a regular file")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"this is a text, not a model\n" * 9, "is not an ONNX model"),
        (b"\x00" * 100, "is not an ONNX model"),
        (b"\xff" * 100, "is not an ONNX model: it has a number longer than 64 bits at byte 0"),
        (b"PK\x03\x04" + b"\0" * 50, "zip archive"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x08\x08", "holds no graph"),
        (b"\x08\x08\x3a\x00", "no operator set version"),
        (b"\x08\x08\x3b\x3c", "wire type 3"),
        (b"\x3a\x02\x2a\x7f", "byte 4, inside a field that should end at byte 131"),
    ],
)
def test_not_onnx(save, content, words):
    refused(save(content), words)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_parsed(content):
    """The scanner neither hangs, nor recurses, nor fails otherwise."""
    try:
        wire.detach(content, 8)
    except wire.WireError as error:
        assert re.search(r"byte \d+", str(error))


def test_header_parses_as_protobuf_does():
    """Detaching nothing is the identity, also where a graph comes in two parts, which protobuf merges."""
    content = model().SerializeToString() * 2
    assert wire.detach(content, 1 << 20) == (content, [None] * 4)


def test_truncation_at_every_byte(save):
    """A file cut anywhere is refused by name; only between fields behind the operator sets may it end."""
    proto = model()
    proto.metadata_props.add(key="a", value="b")
    whole = proto.SerializeToString()
    legal = {next(field.end for field in wire.fields(whole, 0, len(whole)) if field.number == 8), len(whole)}
    for cut in [*range(0, 200), *range(200, len(whole) - 200, 97), *range(len(whole) - 200, len(whole))]:
        if cut not in legal:
            refused(save(whole[:cut]), "model.onnx")


def test_two_initializers_of_one_name(save):
    refused(save(model(numpy_helper.from_array(BIG, "w"), numpy_helper.from_array(SMALL, "w"))), "two initializers")


@pytest.mark.parametrize("values", [BIG, SMALL])
def test_shape_and_data_disagree(save, values):
    tensor = numpy_helper.from_array(values, "w")
    tensor.dims[0] += 1
    error = refused(save(model(tensor)), "bytes of data")
    assert error.node == "w"


@pytest.mark.parametrize("shape", [(-64, -32), (-1, 0)])
def test_negative_sizes(save, shape):
    refused(save(model(external_tensor(shape))), "negative size")


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.UNDEFINED, 999])
def test_types_without_raw_data(save, kind):
    refused(save(model(external_tensor(dtype=kind))), "has no raw data")


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"colour": "red"}, "keys .*colour"),
        ({"location": ""}, "plain path"),
        ({"location": "/etc/passwd"}, "plain path"),
        ({"location": "../weights.bin"}, "plain path"),
        ({"location": "a/../weights.bin"}, "plain path"),
        ({"location": "a\\weights.bin"}, "plain path"),
        ({"location": "C:weights.bin"}, "plain path"),
        ({"location": "weights.bin\0.txt"}, "plain path"),
        ({"location": "x" * 5000}, "cannot be resolved"),
        ({"location": "missing.bin"}, "there is no external data file .*missing.bin"),
        ({"location": "."}, "is a folder"),
        ({"offset": "-1"}, "not a number"),
        ({"offset": "0x10"}, "not a number"),
        ({"length": "٣"}, "not a number"),
        ({"offset": 65}, "it ends at byte"),
        ({"offset": 1 << 62}, "it ends at byte"),
        ({"length": BIG.nbytes - 1}, "bytes of data"),
    ],
)
def test_read_rules(save, keys, words):
    error = refused(save(model(external_tensor(**keys))), words)
    assert error.node == "big"


def test_no_location(save):
    tensor = external_tensor()
    del tensor.external_data[:]
    refused(save(model(tensor)), "location must")


def test_a_key_twice(save):
    tensor = external_tensor()
    tensor.external_data.add(key="location", value="other.bin")
    refused(save(model(tensor)), "may come once")


def test_huge_shape(save):
    refused(save(model(external_tensor((1 << 62, 1 << 62)))), "it ends at byte")


def test_link_out_of_the_folder(save, tmp_path_factory):
    path = save(model(external_tensor()))
    outside = tmp_path_factory.mktemp("outside") / "secret.bin"
    outside.write_bytes(BIG.tobytes())
    (path.parent / "weights.bin").unlink()
    (path.parent / "weights.bin").symlink_to(outside)
    refused(path, "link out of the model's folder")


def test_loop_of_links(save):
    path = save(model(external_tensor(location="loop")))
    (path.parent / "loop").symlink_to("loop")
    refused(path, "cannot be resolved|there is no")


def test_link_inside_the_folder_and_subfolders_are_fine(save):
    path = save(model(external_tensor(location="sub/link.bin", offset=64)))
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "link.bin").symlink_to(path.parent / "weights.bin")
    assert (open_source(path).array("big") == BIG).all()


def test_hugging_face_cache(save, tmp_path):
    """snapshots/<revision>/ holds links into blobs/, to the model and to its data alike."""
    path = save(model(external_tensor(offset=64)))
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "abc" / "onnx"
    snapshot.mkdir(parents=True)
    for name in ("model.onnx", "weights.bin"):
        shutil.move(path.parent / name, tmp_path / "blobs" / name[::-1])
        (snapshot / name).symlink_to(Path("../../../blobs") / name[::-1])
    assert (open_source(snapshot / "model.onnx").array("big") == BIG).all()


def test_pipe_as_data(save):
    path = save(model(external_tensor(location="pipe")))
    os.mkfifo(path.parent / "pipe")
    refused(path, "not a regular file")


def test_external_data_elsewhere_is_read_in(save):
    """Tensors of attributes, subgraphs and functions may be external too: they come inline, under the same rules."""
    branch = helper.make_graph([], "branch", [], [onnx.ValueInfoProto(name="inner")], [external_tensor((4,), name="inner", offset=64)])
    constant = helper.make_node("Constant", [], ["c"], value=external_tensor((4,), name="value", offset=64))
    nodes = [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch), constant]
    proto = model(nodes=nodes)
    proto.functions.add(name="f", domain="d").node.add().CopyFrom(constant)
    source = open_source(save(proto))
    assert source.external
    found = source.proto.SerializeToString()
    assert found.count(BIG.tobytes()[:16]) == 4 and b"weights.bin" not in found
    constant.attribute[0].t.external_data[0].value = "/etc/passwd"
    refused(save(model(nodes=[constant])), "plain path")
