"""Files beside a model: inputs, recipes, configs, caches, trained weights, and what a model's own metadata says of its growth."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np

from onnxgrow.provenance import RECORD
from onnxgrow.regions import REGIONS
from tests.hostile_base import EXPAND, INSPECT, Group, base

PARTLY = "expand model.onnx --ffn 40 --inputs x.npz -o out/grown.onnx"


# --- the model as a path -------------------------------------------------------------------------------------------------------------

paths = Group("The model as a path")
paths.add("no regular file", "a device", lambda folder: None, "not a regular file", "inspect /dev/zero")
paths.add("memory of the process", "/proc/self/mem", lambda folder: None, "is empty", "inspect /proc/self/mem")


@paths("not a regular file")
def pipe(folder):
    """a FIFO"""
    os.mkfifo(folder / "model.onnx")


@paths("cannot read the model file", name="loop of links as the model")
def loop(folder):
    """a link to itself"""
    (folder / "model.onnx").symlink_to("model.onnx")


@paths("", INSPECT, name="deep folder")
def deep(folder):
    """control: a model behind links"""
    (folder / "real.onnx").write_bytes(base().SerializeToString())
    (folder / "model.onnx").symlink_to("real.onnx")


# --- inputs --------------------------------------------------------------------------------------------------------------------------

inputs = Group("Inputs (--inputs)")


def with_inputs(name: str, about: str, says: str, write) -> None:
    def make(folder):
        write(folder / "x.npz")
        return base()
    inputs.add(name, about, make, says, PARTLY)


class Evil:
    def __reduce__(self):
        return os.system, ("touch ../owned",)


def zipped(entries: dict[str, bytes], method=zipfile.ZIP_DEFLATED):
    def write(path: Path):
        with zipfile.ZipFile(path, "w", method) as file:
            for name, content in entries.items():
                file.writestr(name, content)
    return write


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w", force_zip64=True) as out:
        out.write(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1200000000,)}"))
        block = bytes(1 << 24)
        for _ in range(300):
            out.write(block)


def lying(path: Path) -> None:
    """A directory that says ten bytes where there are more."""
    held = io.BytesIO()
    zipped({"x.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}", bytes(16))})(held)
    path.write_bytes(held.getvalue().replace(struct.pack("<I", len(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}", bytes(16)))), struct.pack("<I", 10)))


with_inputs("pickled array", "an object that runs a command when it is loaded", "cannot read inputs", lambda path: np.savez(path, x=np.array([Evil()], dtype=object)))
with_inputs("pickle called npz", "no archive", "is not a .npz file", lambda path: path.write_bytes(b"\x80\x05cos\nsystem\n."))
with_inputs("archive bomb", "5 MB that become 5 GB", "are the most that are read", zip_bomb)
with_inputs("entry with a path", "'../../owned.npy'", "there is no array for the input", zipped({"../../owned.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4))}))
with_inputs("array of 10^12 entries", "with 4 bytes of data", "cannot read inputs", zipped({"x.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}", bytes(4))}))
with_inputs("negative shape", "(-1, 5)", "cannot read inputs", zipped({"x.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5)}", bytes(4))}))
with_inputs("code as a header", "__import__ in the place of a shape", "cannot read inputs", zipped({"x.npy": npy("{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os')}", bytes(4))}))
with_inputs("array header without end", "nested 9,000 deep", "cannot read inputs", zipped({"x.npy": npy("[" * 9000, bytes(4))}))
with_inputs("directory that lies", "of fewer bytes than there are", "cannot read inputs", lying)
with_inputs("pipe as inputs", "a FIFO", "not a regular file", lambda path: os.mkfifo(path))
with_inputs("text entries", "no arrays at all", "", zipped({"readme.txt": b"hello"}))


# --- recipes -------------------------------------------------------------------------------------------------------------------------

recipes = Group("Recipes (--recipe)")


def recipe(name: str, about: str, says: str, text: str | bytes) -> None:
    def make(folder):
        (folder / "r.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return base()
    recipes.add(name, about, make, says, "expand model.onnx --recipe r.yaml --ffn 40 -o out/grown.onnx")


recipe("recipe that is code", "!!python/object/apply:os.system", "cannot be read as YAML", "method: !!python/object/apply:os.system ['touch ../owned']\n")
recipe("recipe with an object", "!!python/name", "cannot be read as YAML", "method: !!python/name:os.system\n")
recipe("billion laughs", "aliases of aliases", "no aliases", "sizes: {}\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefghi", "bcdefghij")))
recipe("alias of itself", "a list that holds itself", "no aliases", "sizes: &a [*a]\n")
recipe("recipe without end", "nested 30,000 deep", "cannot be read as YAML", "sizes: " + "[" * 30_000)
recipe("huge recipe", "a megabyte", "are the most that are read", "# x\n" * 300_000)
recipe("number of 5,000 digits", "as a size", "cannot be read as YAML", "sizes: {ffn: " + "9" * 5000 + "}\n")
recipe("infinite size", ".inf", "not a whole number", "sizes: {ffn: .inf}\n")
recipe("rules in a recipe", "a Python file to run", "names rules", "rules: evil.py\n")
recipe("escapes in a recipe", "a key with terminal escapes", "no key", '"\\e[31mred": 1\n')
recipe("key twice", "of which readers take different ones", "given twice", "method: pad\nmethod: naive\n")
recipe("no text", "bytes that are no UTF-8", "cannot be read as YAML", b"\xff\xfe\x80\x80 a: 1")


@recipes("not a regular file", "expand model.onnx --recipe r.yaml -o out/grown.onnx")
def pipe_as_a_recipe(folder):
    """a FIFO"""
    os.mkfifo(folder / "r.yaml")
    return base()


# --- folders -------------------------------------------------------------------------------------------------------------------------

folders = Group("Folders")
GROW = "expand src --ffn 40 -o out/grown"


def folder_of(name: str, about: str, says: str, file: str, content: str | bytes, *commands: str) -> None:
    def make(folder):
        (folder / "src").mkdir()
        (folder / "src" / "model.onnx").write_bytes(base().SerializeToString())
        (folder / "src" / file).write_bytes(content.encode() if isinstance(content, str) else content)
    folders.add(name, about, make, says, *(commands or (GROW,)))


folder_of("config without end", "nested 100,000 deep", "cannot read", "config.json", '{"a": ' * 100_000)
folder_of("number of a million digits", "in config.json", "cannot read", "config.json", '{"intermediate_size": ' + "9" * 1_000_000 + "}")
folder_of("infinite number", "1e999 where a size stands", "is no JSON", "config.json", '{"intermediate_size": 1e999}')
folder_of("NaN", "which is no JSON", "is no JSON", "config.json", '{"intermediate_size": NaN}')
folder_of("config that is a list", "[]", "holds no config", "config.json", "[]")
folder_of("config of wrong types", "lists and objects where sizes stand", "", "config.json", json.dumps({"intermediate_size": [{"a": None}], "num_hidden_layers": {}, "layer_types": 7, "architectures": {}}))
folder_of("config that is no text", "ff fe", "cannot read", "config.json", b"\xff\xfe\xfd{")
folder_of("genai config out of the folder", "filename '../../secret.onnx'", "names these models", "genai_config.json", json.dumps({"model": {"decoder": {"filename": "../../secret.bin"}}}))
folder_of("genai config with an absolute path", "filename '/etc/passwd'", "names these models", "genai_config.json", json.dumps({"model": {"decoder": {"filename": "/etc/passwd"}}}))
folder_of("genai config of wrong types", "a list for a name", "", "genai_config.json", json.dumps({"model": {"decoder": {"filename": ["a"], "sliding_window": 3}}}), "inspect src", GROW)
folder_of("genai config without sizes", "decoder alone", "", "genai_config.json", json.dumps({"model": {"decoder": {"filename": "model.onnx"}}}))
folder_of("tokenizer without end", "nested 100,000 deep: it is copied, not read", "", "tokenizer.json", "[" * 100_000)


@folders("is a link out of the folder", GROW)
def tokenizer_that_is_a_link(folder):
    """to a file elsewhere, which would be copied"""
    (folder / "src").mkdir()
    (folder / "src" / "model.onnx").write_bytes(base().SerializeToString())
    (folder / "src" / "tokenizer.json").symlink_to(folder.parent / "secret.bin")


@folders("", GROW)
def config_that_is_a_pipe(folder):
    """a FIFO, which is no file of the model"""
    (folder / "src").mkdir()
    (folder / "src" / "model.onnx").write_bytes(base().SerializeToString())
    os.mkfifo(folder / "src" / "config.json")


@folders("is a folder", "inspect models--a--b", GROW.replace("src", "models--a--b"))
def cache_that_points_elsewhere(folder):
    """refs/main of a hub's cache says '../../..'"""
    cache = folder / "models--a--b"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("../../..")
    (cache / "snapshots").mkdir()


@folders("", "inspect src")
def ten_thousand_files(folder):
    """of no meaning, beside the model"""
    (folder / "src").mkdir()
    (folder / "src" / "model.onnx").write_bytes(base().SerializeToString())
    for i in range(2000):
        (folder / "src" / f"{i}.txt").touch()


# --- records of a growth ---------------------------------------------------------------------------------------------------------------

records = Group("Records of a growth in the metadata")


def record(name: str, about: str, says: str, key: str, value: str, *commands: str) -> None:
    def make(folder):
        model = base()
        model.metadata_props.add(key=key, value=value)
        return model
    records.add(name, about, make, says, *(commands or (INSPECT, "validate model.onnx model.onnx", "diff model.onnx model.onnx", EXPAND)))


record("record without end", "nested 100,000 deep", "", RECORD, '{"before": ' + "[" * 100_000)
record("record of infinite sizes", "1e999", "", RECORD, '{"sizes": {"ffn": 1e999}, "seed": 1e999}')
record("record of wrong types", "lists for numbers", "", RECORD, '{"sizes": [1], "depth": {"layers": 7}, "method": {}, "seed": "x", "before": [7, {"source": {"sha256": 1}}]}')
record("record of huge layers", "10^9 of them", "", RECORD, '{"sizes": {}, "depth": {"layers": {"layers": 1000000000}, "method": "identity", "placement": "interleave", "block_init": "copy"}}')
record("record of a huge size", "10^12", "", RECORD, '{"sizes": {"ffn": 1000000000000}}')
record("record that prints escapes", "in the command and the reasons", "", RECORD, '{"command": "\\u001b[31mred", "version": "\\u202e1", "reasons": ["a\\n  next: run evil"]}')
record("old entries without end", "nested 100,000 deep", "the record", REGIONS, '{"ranges": ' + "[" * 100_000, INSPECT, "export model.onnx -o out/pt")
record("old entries of nowhere", "negative, and 2^62", "the record", REGIONS, '{"ranges": [[[-5, 4611686018427387904]]], "tensors": {"embed": [0, 0]}}', INSPECT, "export model.onnx -o out/pt")


# --- trained weights -------------------------------------------------------------------------------------------------------------------

trained = Group("Trained weights (import-weights)")


def weights(name: str, about: str, says: str, content: bytes) -> None:
    def make(folder):
        (folder / "t.safetensors").write_bytes(content)
        return base()
    trained.add(name, about, make, says, "import-weights model.onnx t.safetensors -o out/back.onnx")


def safetensors(header: str | dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


weights("weights as a pickle", "what torch.load would run", "cannot read", b"\x80\x02cos\nsystem\n(S'touch ../owned'\ntR.")
weights("header of 2^63 bytes", "in a file of 30", "cannot read", safetensors("{}", length=1 << 63))
weights("header without end", "nested 100,000 deep", "cannot read", safetensors('{"a":' * 100_000))
weights("offsets past the end", "4 GB of 4 bytes", "cannot read", safetensors({"w": entry(shape=(1 << 30,), offsets=(0, 1 << 32))}, bytes(4)))
weights("offsets backwards", "from 4 to 0", "cannot read", safetensors({"w": entry(offsets=(4, 0))}, bytes(4)))
weights("offsets that overlap", "two tensors of the same bytes", "cannot read", safetensors({"v": entry(), "w": entry()}, bytes(4)))
weights("shape of another length", "10^12 entries in 4 bytes", "cannot read", safetensors({"w": entry(shape=(10**6, 10**6))}, bytes(4)))
weights("type that is none", "'object'", "cannot read", safetensors({"w": entry(dtype="object")}, bytes(4)))
weights("names with escapes", "of no parameter", "parameters are missing", safetensors({"\x1b[31m": entry()}, bytes(4)))


@trained("not a regular file", "import-weights model.onnx t.safetensors -o out/back.onnx")
def pipe_as_weights(folder):
    """a FIFO"""
    os.mkfifo(folder / "t.safetensors")
    return base()
