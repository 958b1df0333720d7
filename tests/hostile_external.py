"""External data that lies where it must not, or is not what it says (CVE-2022-25882, 2024-27318, 2024-5187, 2025-51480, 2026-27489, 2026-34445 to 34447)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.hostile_base import EXPAND, Group, base

group = Group("External data")
REFUSED = "refused external data"


def moved(folder: Path, change=None, **keys) -> onnx.ModelProto:
    """The sound model with its largest weight in weights.bin; `keys` replace or add entries (None leaves one out), `change` gets the tensor."""
    model = base()
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    content = tensor.raw_data
    (folder / "weights.bin").write_bytes(content)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": 0, "length": len(content), **keys}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    if change:
        change(tensor)
    return model


def keys(name: str, about: str, says: str, **given) -> None:
    group.add(name, about, lambda folder: moved(folder, **given), says)


keys("external data, sound", "control: weights beside the model", "")
for name, location in {"absolute path": "/etc/passwd", "parent folder": "../secret.bin", "parent folder inside": "a/../../secret.bin", "backslashes": "..\\secret.bin",
                       "drive letter": "C:secret.bin", "network share": "\\\\server\\share\\x", "NUL in the path": "weights.bin\0.txt", "empty path": "",
                       "name too long": "x" * 5000, "newline and escapes in the path": "a\n\x1b[2Jnext: rm -rf"}.items():
    keys(name, f"location {location[:24]!r}", "there is no external data file" if "newline" in name else REFUSED, location=location)
keys("percent escapes", "location '%2e%2e/secret.bin'", "there is no external data file", location="%2e%2e/secret.bin")
keys("look-alike dots", "location with full-width dots", "there is no external data file", location="．．/secret.bin")
keys("device file", "location '/dev/zero'", REFUSED, location="/dev/zero")
keys("folder as data", "location '.'", "is a folder", location=".")
keys("no location", "the key is missing", REFUSED, location=None)
keys("unknown key", "key 'colour'", REFUSED, colour="red")
keys("keys of Python objects", "key '__class__', which onnx once set as an attribute", REFUSED, __class__="os.system")
keys("negative offset", "offset -4096", REFUSED, offset=-4096)
keys("offset that is no number", "offset '0x10'", REFUSED, offset="0x10")
keys("offset past the end", "offset 2^62", REFUSED, offset=1 << 62)
keys("offset beyond 64 bits", "offset 10^30", REFUSED, offset=10**30)
keys("length past the end", "length 2^40", "bytes of data, the file has", length=1 << 40)
keys("length of another shape", "length 4", "bytes of data, the file has", length=4)
keys("the model as its own data", "location 'model.onnx': bytes of the file itself", "", location="model.onnx")


@group(REFUSED)
def location_twice(folder):
    """two keys 'location', of which readers take different ones"""
    return moved(folder, lambda t: t.external_data.add(key="location", value="/etc/passwd"))


@group("has a negative size")
def negative_dims(folder):
    """dims -1"""
    return moved(folder, lambda t: t.dims.__setitem__(0, -1))


@group("bytes of data, the file has")
def huge_dims(folder):
    """dims whose product has 125 bits"""
    return moved(folder, lambda t: t.dims.extend([1 << 62, 1 << 62]))


@group(REFUSED)
def huge_dims_and_no_length(folder):
    """10^12 entries with a few hundred bytes of data, the length left out"""
    def change(t):
        del t.dims[:]
        t.dims.extend([10**6, 10**6])
    return moved(folder, change, length=None)


@group(REFUSED)
def link_out_of_the_folder(folder):
    """a symbolic link to a file elsewhere"""
    model = moved(folder)
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(folder.parent / "secret.bin")
    return model


@group(REFUSED)
def folder_that_is_a_link(folder):
    """location 'sub/secret.bin', where sub is a link to the folder above"""
    (folder / "sub").symlink_to("..")
    return moved(folder, location="sub/secret.bin")


@group("")
def link_inside_the_folder(folder):
    """control: a link to a file beside it"""
    (folder / "link.bin").symlink_to("weights.bin")
    return moved(folder, location="link.bin")


@group(REFUSED)
def hard_link(folder):
    """a hard link to a file elsewhere"""
    model = moved(folder)
    (folder / "weights.bin").unlink()
    os.link(folder.parent / "secret.bin", folder / "weights.bin")
    return model


@group("cannot be resolved")
def loop_of_links(folder):
    """links that point at each other"""
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return moved(folder, location="a")


@group("not a regular file")
def pipe_as_data(folder):
    """a FIFO, on which a reader waits for ever"""
    os.mkfifo(folder / "pipe")
    return moved(folder, location="pipe")


@group("external data file")
def socket_as_data(folder):
    """a socket"""
    held = socket.socket(socket.AF_UNIX)
    at = os.getcwd()
    os.chdir(folder)
    held.bind("s")
    os.chdir(at)
    held.close()
    return moved(folder, location="s")


@group("")
def overlapping_data(folder):
    """two tensors of the same bytes: allowed, both are read"""
    model = moved(folder)
    first = next(t for t in model.graph.initializer if t.external_data)
    other = model.graph.initializer.add()
    other.CopyFrom(first)
    other.name = "unused"
    return model


@group("bytes, and 1000000000 are allowed", f"{EXPAND} --max-output-bytes 1000000000", name="file full of holes",
       about="a sparse data file of 4 TB that takes no room on the disk")
def holes(folder):
    size = 4 * 10**12
    try:
        (folder / "holes.bin").touch()
        os.truncate(folder / "holes.bin", size)
    except OSError:  # a file system without such files
        size = 4096
        os.truncate(folder / "holes.bin", size)
    model = base()
    t = model.graph.initializer.add(name="unused", dims=[size], data_type=TensorProto.UINT8, data_location=TensorProto.EXTERNAL)
    t.external_data.add(key="location", value="holes.bin")
    return model


@group(REFUSED)
def in_a_constant(folder):
    """a Constant's tensor, outside of the folder"""
    model = base()
    t = TensorProto(name="c", dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    t.external_data.add(key="location", value="../secret.bin")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=t))
    return model


@group(REFUSED)
def in_a_function(folder):
    """a tensor in a function that nobody calls"""
    model = base()
    f = model.functions.add(name="f", domain="d")
    f.node.add().CopyFrom(in_a_constant(folder).graph.node[0])
    return model


@group(REFUSED)
def in_a_branch(folder):
    """a weight of a branch of an If"""
    model = base()
    body = helper.make_graph([], "b", [], [onnx.ValueInfoProto(name="c")], [in_a_constant(folder).graph.node[0].attribute[0].t])
    model.graph.initializer.append(helper.make_tensor("cond", TensorProto.BOOL, [], [True]))
    model.graph.node.insert(0, helper.make_node("If", ["cond"], ["y"], then_branch=body, else_branch=body))
    return model


@group(REFUSED)
def in_a_sparse_tensor(folder):
    """the values of a sparse initializer"""
    model = base()
    s = model.graph.sparse_initializer.add(dims=[4])
    s.values.CopyFrom(in_a_constant(folder).graph.node[0].attribute[0].t)
    return model


@group(REFUSED)
def in_the_training_info(folder):
    """a weight of the training graph, which onnxgrow carries along"""
    model = base()
    g = model.training_info.add().algorithm
    g.initializer.add().CopyFrom(in_a_constant(folder).graph.node[0].attribute[0].t)
    return model


