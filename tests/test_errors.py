"""Every message of docs/errors.md is produced by the program, and the program can say nothing that is not on the page."""

from __future__ import annotations

import json
import re
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from onnxgrow.errors import MethodError
from onnxgrow.model import Model
from tests import error_words
from tests.error_cases import FAMILIES, provoke, says
from tests.error_cases_source import ROOT, Message, covers, messages
from tests.test_fixed_sizes import ATTENTION, FEED, written

for file in Path(__file__).parent.glob("error_cases_*.py"):  # they say what they know to FAMILIES
    import_module(f"tests.{file.stem}")
CASES = {(family.error, saying): case for family in FAMILIES for saying, case in family.items()}
WORDS = json.loads(error_words.KEPT.read_text(encoding="utf-8")) if error_words.KEPT.exists() else {}
EXIT = {"UsageError": 2}  # all others: 1

# Raised where nothing that a user can do leads: (file, message) and why it is not on the page.
INTERNAL = {
    ("onnxgrow/external.py", "…"): "a message of the page again, with the name of the tensor",
    ("onnxgrow/runtime.py", "…"): "what ONNX Runtime says of one run; the callers put it into messages of their own",
    ("onnxgrow/maps.py", "copies of one part of this axis would be shares, those of another not"): "a check of the solver's result, which gives all parts of a dim one mode",
    ("onnxgrow/unfold.py", "a part of a fused operator (…) would have to stand alone, and opset … spells it otherwise"): "a check after folding: parts are kept together",
    ("onnxgrow/rejoin.py", "what a loop starts with can no longer be told"): "a check after folding: what stands around a loop is never grown away",
    ("onnxgrow/jointplan.py", "… holds another … than the graphs before it"): "a check of what was written: both decoders are made by the same recipes",
    ("onnxgrow/rejoin.py", "a grown body would need …, which only the analysis has"): "the same",
}


def page() -> list[tuple[str, str]]:
    """(class, saying) of every row, in order."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\w+): .*?\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return [(error, saying) for error, body in sections for row in re.findall(r"^\| ([^|]*`) \|", body, re.M) for saying in re.findall("`([^`]+)`", row)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("error", "saying"), CASES, ids=[f"{error}-{saying}" for error, saying in CASES])
def test_the_message_is_produced(error, saying, tmp_path, monkeypatch):
    error_words.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters and libraries
        document, code = provoke(CASES[error, saying], tmp_path, monkeypatch)
    assert says(document["message"], saying), document
    assert document["type"] == error and code in (None, EXIT.get(error, 1)), (document, code)
    assert document["hint"] and document["hint"] != document["message"], document
    if error_words.are_kept(document):
        assert error_words.words(document, tmp_path) == WORDS[f"{error}: {saying}"], "if it is meant: python -m tests.error_words --write"


def test_every_row_of_the_page_has_a_case_and_every_case_its_row():
    listed = page()
    assert len(listed) > 200 and len(listed) == len({*listed})
    assert {*listed} == {*CASES}


def test_the_page_has_every_message_of_the_program():
    missing = [m for m in messages() if not _known(m)]
    assert not missing, "\n".join(f"{m.place}: {m.error}: {m.text}" for m in missing)


def _known(message: Message) -> bool:
    internal = (message.place.partition(":")[0], message.text) in INTERNAL
    return internal or any(covers(saying, message.text) for error, saying in CASES if error == message.error)


def test_what_is_called_internal_is_still_there():
    assert INTERNAL.keys() <= {(m.place.partition(":")[0], m.text) for m in messages()}


def test_every_message_has_a_next_step():
    assert not [m for m in messages() if not m.hinted]


def test_messages_are_read_off_the_source():
    """Texts in variables, in choices, and given by callers; so that an empty reading does not pass for a complete page."""
    found = {(m.error, m.text) for m in messages()}
    assert len(found) > 230
    assert ("UsageError", "there is no array for the input …") in found and ("UsageError", "the model has no input …") in found  # a variable that is a choice
    assert ("GraphError", "the grown model does not run with …: …") in found  # a variable
    assert ("GraphError", "every output is drawn at random") in found  # an argument
    assert ("FileError", "… is damaged or incomplete: it …") in found  # words in braces
    assert ("GraphError", "a size here would have to be … and …") in found  # a class below another
    assert [m.error for m in messages() if m.text == "no command …; …"] == ["UsageError"]  # click's


@pytest.mark.parametrize(("saying", "message", "fits"), [
    ("… is … and cannot shrink to …", "hidden is 96 and cannot shrink to 48", True), ("… is … and cannot shrink to …", "hidden cannot shrink to 48 and is 96", False),
    ("is empty", "x is empty", True), ("is empty", "x is full", False)])
def test_sayings_are_compared_in_order(saying, message, fits):
    assert says(message, saying) == fits


def test_an_unknown_message_is_seen():
    for text in ("the moon is in the wrong quarter", "… cannot grow tonight", "… is too …"):
        assert not _known(Message(text, "SizeError", "onnxgrow/target.py:1", True))
    assert not _known(Message("no size asked for", "SizeError", "onnxgrow/commands.py:1", True)), "of another class"


def test_classes_of_the_program_go_by_the_name_of_their_family():
    from onnxgrow.constants import TwoSizes
    from onnxgrow.errors import OnnxgrowError

    place = type("Node", (), {"label": "reshape"})()
    assert TwoSizes("a size", place, "a hint").kind == "GraphError" and OnnxgrowError("bare").kind == "OnnxgrowError"
    assert json.dumps({"type": TwoSizes("a size", place, "a hint").kind})


# --- what crashed before there was a message, or an answer --------------------------------------------------------------


def test_an_expand_to_sizes_that_the_ids_say_grows(tmp_path):
    path = written(tmp_path, "most = ReduceMax ids\none1 = Div most most\nshape = Reshape one1 flat1\nlogits = Expand y shape", more={"flat1": np.array([1])}, most={"keepdims": 0})
    assert Model(path).plan(ffn=17).write(tmp_path / "grown.onnx").report.equal


@pytest.mark.parametrize("last", ["row = Unsqueeze g zero", "row = Identity g", "row = Identity up", "turned = Identity head\nrow = Identity turned", "row = Identity ids"])
def test_an_output_that_is_a_parameter_is_exported(last, tmp_path):
    from onnxgrow.pytorch import export

    tail = f"logits = MatMul y head\n{last}"
    path = written(tmp_path, tail, more={"zero": np.array([0])}, outputs=("logits",))
    assert export(Model(path), tmp_path / "pt").agreement.max_rel < 1e-5


def test_a_first_output_of_one_number_is_refused_for_transformers(tmp_path):
    from onnxgrow.pytorch.hugging.facts import Facts

    model = Model(written(tmp_path, "logits = MatMul y head\ntotal = ReduceSum logits", total={"keepdims": 0}))
    assert Facts(model.roles, model.architecture, None).output == (0, False)


@pytest.mark.parametrize(("asked", "words"), [
    (dict(head_dim=6), "head_dim cannot grow from 4 to 6: .*\n  next: ask for a whole multiple \\(8\\), which is filled with copies, or"),
    (dict(head_dim=8, method="pad"), "from 4 to 8: .*\n  next: leave --method pad out, since this is a whole multiple, which is filled with copies, or use"),
    (dict(head_dim=6, method="pad"), "from 4 to 6: .*\n  next: without --method pad, ask for a whole multiple \\(8\\)")])
def test_a_dim_of_several_parts_is_spoken_of_as_a_whole(asked, words, tmp_path):
    """Queries with a norm over rotary halves (as Persimmon has them): each half would grow from 2 to 3, and nobody asked for that."""
    turn = "qn = LayerNormalization q g4 b4\nqa, qb = Split qn\nqc = Neg qb\nqr = Concat qc qa\nqs = Mul qr sin\nqu = Mul qn cos\nqq = Add qs qu\ns0 = MatMul qq k"
    more = {n: np.arange(1, 5, dtype=np.float32) for n in ("g4", "b4", "sin", "cos")}
    path = written(tmp_path, lines=ATTENTION.replace("s0 = MatMul q k", turn) + FEED, more=more, qa={"axis": -1}, qr={"axis": -1})
    with pytest.raises(MethodError, match=words):
        Model(path).plan(**asked)
    if asked == dict(head_dim=6):
        assert Model(path).plan(head_dim=8).write(tmp_path / "grown.onnx").report.equal
