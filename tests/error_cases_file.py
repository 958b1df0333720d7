"""FileError: how each message of this family is provoked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.error_cases import Family, in_folder, raising
from tests.test_cli import WHOLE, run
from tests.test_source import BIG, external_tensor
from tests.test_source import model as sourced

file = Family("FileError")
GROW = "expand bad.onnx --ffn 300 --no-validate"


def bad(content: bytes | onnx.ModelProto) -> str:
    """The command that grows a file with this content; weights.bin lies beside it."""
    Path("bad.onnx").write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    Path("weights.bin").write_bytes(b"\0" * 64 + BIG.tobytes())
    return GROW


CONTENTS = {  # saying: what the file holds
    "… is empty": b"",
    "… is damaged or incomplete": WHOLE[:-500],
    "… is not an ONNX model": b"this is a text, not a model\n" * 9,
    "holds no graph": b"\x08\x08",
    "names no operator set version": b"\x08\x08\x3a\x00",
    "a zip archive, perhaps a PyTorch checkpoint": b"PK\x03\x04" + b"\0" * 50,
    "a Python pickle": b"\x80\x02}q\x00",
    "a Git LFS pointer, not the model itself": b"version https://git-lfs.github.com/spec/v1\n",
    "has two initializers of one name": sourced(numpy_helper.from_array(BIG, "w"), numpy_helper.from_array(BIG, "w")),
    "refused external data: …": sourced(external_tensor(location="../weights.bin")),
    "has a negative size": sourced(external_tensor((-64, -32))),
    "the element type … has no raw data": sourced(external_tensor(dtype=TensorProto.STRING)),
    "needs … bytes of data, the file has …": sourced(external_tensor(length=BIG.nbytes - 1)),
    "external data file …": sourced(external_tensor(location="missing.bin")),
}
for saying, content in CONTENTS.items():
    file(saying)(lambda folder, patch, content=content: bad(content))

file.lines({
    "there is no …": "expand none.onnx --hidden 144",
    "is the source model itself, which is never changed": "expand model.onnx --ffn 300 -o model.onnx --force --no-validate",
    "there is no folder …": "expand model.onnx --ffn 300 -o none/g.onnx --no-validate",
    "cannot read the recipe …": "expand --recipe none.yaml",
    "… exists": "expand model.onnx --ffn 300 -o gpt.onnx --no-validate",
})


@file("a folder")
def a_folder(folder, patch):
    Path("bad.onnx").mkdir()
    return GROW


@file("not a regular file")
def a_pipe(folder, patch):
    os.mkfifo("bad.onnx")
    return GROW


@file("cannot read the … file …")
def no_right(folder, patch):
    patch.setattr("onnxgrow.external.os.open", raising(PermissionError(13, "Permission denied")))
    return "inspect model.onnx"


@file("holds packed … weights")
def packed(folder, patch):
    from onnxgrow.source import open_source

    path = Path("bad.onnx")
    bad(sourced(helper.make_tensor("w", TensorProto.INT4, (4001,), bytes(2001), raw=True)))
    return lambda: open_source(path).array("w")


# --- targets -------------------------------------------------------------------------------------------------------------


@file("cannot write into …")
def no_right_to_write(folder, patch):
    patch.setattr("onnxgrow.atomic.tempfile.mkdtemp", raising(PermissionError(13, "Permission denied")))
    return "expand model.onnx --ffn 300 --no-validate"


@file("bytes free, and … are needed")
def full(folder, patch):
    patch.setattr("onnxgrow.atomic.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    return "expand model.onnx --ffn 300 --no-validate"


@file("cannot write …: …")
def full_in_the_middle(folder, patch):
    patch.setattr("onnxgrow.transfer.Stream.fill", raising(OSError(28, "No space left on device")))
    return "expand model.onnx --ffn 300 --no-validate"


@file("became shorter while it was read")
def shrinking(folder, patch):
    from onnxgrow.transfer import copy

    def act():
        with open(os.devnull, "wb", buffering=0) as out:
            copy(Path("short"), 0, out, 0, 100)
    Path("short").write_bytes(b"x" * 10)
    return act


@file("do not fit into one ONNX file")
def too_much_for_one_file(folder, patch):
    from onnxgrow.source import open_source
    from onnxgrow.write import stage

    patch.setattr("onnxgrow.layout.EMBEDDED_LIMIT", 50_000)
    source, other = open_source("model.onnx"), open_source("model.onnx").proto
    other.doc_string = "another"
    return lambda: stage(source, other, {}, "out.onnx", external=False)


# --- weights, folders, configs -----------------------------------------------------------------------------------------


def trained(change) -> str:
    """The command that brings back weights that were changed first."""
    from safetensors.numpy import load_file, save_file

    assert run("export", "gpt.onnx", "-o", "pt", "--no-validate")[0] == 0
    tensors = load_file("pt/model.safetensors")
    change(tensors)
    save_file(tensors, "wrong.safetensors")
    return "import-weights gpt.onnx wrong.safetensors"


file.lines({"cannot read …": "import-weights model.onnx missing.safetensors"})
WEIGHTS = {
    "of … parameters are missing, the first is …": lambda t: t.pop("norm.weight"),
    "tensors belong to no parameter of …": lambda t: t.update(more=np.zeros(3, np.float32)),
    "has the shape …, the model needs …": lambda t: t.update({"norm.weight": np.zeros(7, np.float32)}),
}
for saying, change in WEIGHTS.items():
    file(saying)(lambda folder, patch, change=change: trained(change))


@file("holds no model.py")
def no_code(folder, patch):
    from onnxgrow.pytorch import load_folder

    return lambda: load_folder(folder)


@file("holds several models: …")
def several(folder, patch):
    in_folder()
    shutil.copy("gpt.onnx", "src/other.onnx")
    os.rename("src/model.onnx", "src/one.onnx")
    return "inspect src"


@file("names these models: …")
def parts(folder, patch):
    in_folder(genai={"model": {"encoder": {"filename": "a.onnx"}, "decoder": {"filename": "b.onnx"}}})
    return "inspect src"


@file("is a link out of the folder")
def link(folder, patch):
    in_folder({"intermediate_size": 240})
    Path("secret.txt").write_text("secret")
    Path("src/notes.txt").symlink_to(folder / "secret.txt")
    return "expand src --ffn 300 --no-validate -o grown"


@file("holds no config")
def no_config(folder, patch):
    in_folder("[]")
    return "expand src --ffn 300 --no-validate -o grown"


@file("cannot copy …")
def unreadable(folder, patch):
    from onnxgrow.pytorch.hugging.like import carry_over, open_like

    in_folder({})
    Path("src/tokenizer.json").write_text("{}")
    patch.setattr("onnxgrow.pytorch.hugging.like.shutil.copyfile", raising(PermissionError(13, "Permission denied")))
    return lambda: carry_over(open_like(Path("src")), Path("out"))


@file("cannot use the folder …")
def no_folder(folder, patch):
    Path("taken").touch()
    return "demo --keep taken"


@file("already holds files of the demo")
def used(folder, patch):
    Path("tiny-llama.onnx").touch()
    return "demo --keep ."


# --- the record of a growth --------------------------------------------------------------------------------------------


def with_record(text: str, name: str = "w", shape: tuple[int, ...] = (3, 4)):
    from onnxgrow.regions import REGIONS, read_regions

    model = helper.make_model(helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.zeros(shape, np.float32), name)]))
    model.metadata_props.add(key=REGIONS, value=text)
    return lambda: read_regions(model)


RECORD = '{"ranges":[[[0,2]]],"tensors":{"w":[null,0]}}'
file("the record … is damaged: …")(lambda folder, patch: with_record("{}"))
file("the record … does not fit a tensor of shape …")(lambda folder, patch: with_record(RECORD, shape=(3, 1)))
file("the record … names an initializer that the graph does not have")(lambda folder, patch: with_record(RECORD, name="other"))
