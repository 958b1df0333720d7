"""The record in a grown file: true, repeatable, the same wherever the growth is run, and read with care."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from pathlib import Path

import onnx
import pytest

import onnxgrow
from onnxgrow.model import Model
from onnxgrow.provenance import RECORD, growth_lines, growth_of
from tests.test_cli import document, folder, run  # noqa: F401 (folder is a fixture)


def sha(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def growth(path) -> dict:
    return document("inspect", path)["growth"]


GROWTHS = [["--hidden", 144], ["--hidden", 120, "--only-hidden", "--seed", 7], ["--set", "ffn=301", "--kv-heads", 4, "--init-std", 0.01],
           ["--layers", 6, "--depth-method", "gate", "--placement", "after:1,2", "--block-init", "random"],
           ["--vocab", 300, "--pad-vocab-to", 64, "--vocab-init", "random", "--wake", 0.001], ["--ffn", 480, "--method", "copy"]]


@pytest.mark.parametrize("flags", GROWTHS, ids=lambda flags: flags[0] + str(flags[1]))
def test_the_command_of_the_record_makes_the_same_file(folder, flags):  # noqa: F811
    assert run("expand", "model.onnx", *flags, "-o", "one.onnx", "--no-validate")[0] == 0
    told = growth("one.onnx")
    assert told["source"] == {"sha256": sha("model.onnx"), "data": {}} and told["version"] == onnxgrow.__version__ and told["before"] == []
    words = shlex.split(told["command"])
    assert words[:3] == ["onnxgrow", "expand", "MODEL"] and told["certificate"] == "exact"
    os.rename("model.onnx", "another name.onnx")
    assert run("expand", "another name.onnx", *words[3:], "-o", "two.onnx", "--no-validate")[0] == 0
    assert sha("one.onnx") == sha("two.onnx")


def test_nothing_of_this_machine_is_in_it(folder):  # noqa: F811
    """Another folder, another name, another day, a rule file elsewhere: the same bytes."""
    (folder / "secret place").mkdir()
    (folder / "secret place" / "mine.py").write_text("")
    shutil.copy("model.onnx", "secret place/other.onnx")
    os.utime("secret place/other.onnx", (1, 1))
    run("expand", "model.onnx", "--hidden", 144, "--rules", "secret place/mine.py", "-o", "one.onnx", "--no-validate")
    run("expand", folder / "secret place" / "other.onnx", "--hidden", 144, "--rules", "secret place/mine.py", "--no-validate")
    assert sha("one.onnx") == sha("secret place/other-h144.onnx") and growth("one.onnx")["command"].endswith("--hidden 144 --rules mine.py")
    assert str(folder).encode() not in Path("one.onnx").read_bytes() and b"secret" not in Path("one.onnx").read_bytes()


def test_data_files_are_hashed_too(folder):  # noqa: F811
    onnx.save(onnx.load("model.onnx"), "split.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    run("expand", "split.onnx", "--hidden", 144, "-o", "one.onnx", "--no-validate")
    assert growth("one.onnx")["source"] == {"sha256": sha("split.onnx"), "data": {"weights.bin": sha("weights.bin")}}


def test_a_file_that_was_grown_twice_tells_both(folder):  # noqa: F811
    """And validates against both of its sources: the last record alone would not say that hidden grew."""
    run("expand", "model.onnx", "--hidden", 144, "-o", "one.onnx", "--no-validate")
    run("expand", "one.onnx", "--ffn", 400, "-o", "two.onnx", "--no-validate")
    told = growth("two.onnx")
    assert told["command"] == "onnxgrow expand MODEL --ffn 400" and told["source"]["sha256"] == sha("one.onnx")
    (first,) = told["before"]
    assert first["command"] == "onnxgrow expand MODEL --hidden 144" and first["source"]["sha256"] == sha("model.onnx") and "before" not in first
    assert Model("one.onnx").plan_like(Model("two.onnx")).sizes == {"ffn": (360, 400)}
    whole = Model("model.onnx").plan_like(Model("two.onnx")).sizes
    assert whole["ffn"] == (240, 400) and whole["hidden"] == (96, 144) and whole["heads"] == (4, 6)
    assert run("validate", "one.onnx", "two.onnx")[0] == run("validate", "model.onnx", "two.onnx")[0] == 0


def test_people_see_it(folder):  # noqa: F811
    assert "grown by" not in run("inspect", "model.onnx")[1] and growth("model.onnx") is None
    run("expand", "model.onnx", "--hidden", 144, "--method", "naive", "-o", "one.onnx", "--no-validate")
    out = run("inspect", "one.onnx")[1]
    assert "grown by onnxgrow" in out and "onnxgrow expand MODEL --hidden 144 --method naive" in out and sha("model.onnx") in out
    assert growth("one.onnx")["certificate"] == "not preserved" and growth("one.onnx")["reasons"]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"before": 7}', '{"before": [1, null]}', '{"source": [], "reasons": 5}', '{"sizes": 3}', '{"method": "best"}', "[" * 10000])
def test_what_others_wrote_there_is_read_with_care(folder, text):  # noqa: F811
    proto = onnx.load("model.onnx")
    proto.metadata_props.add(key=RECORD, value=text)
    onnx.save(proto, "odd.onnx")
    growth_lines(proto)
    told = growth_of(proto)
    assert told is None or set(told) >= {"command", "source", "before"}
    assert run("inspect", "odd.onnx")[0] == run("validate", "odd.onnx", "odd.onnx")[0] == 0 and run("expand", "odd.onnx", "--ffn", 300, "-o", "grown.onnx", "--no-validate")[0] == 0
    assert json.loads(next(p.value for p in onnx.load("grown.onnx").metadata_props if p.key == RECORD))["sizes"] == {"ffn": 300}
