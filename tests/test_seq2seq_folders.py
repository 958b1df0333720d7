"""Encoder and decoders in files of their own grow as one, and say word by word what the source says."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import onnxgrow
from onnxgrow import jointplan, turns, validate
from onnxgrow.errors import FileError, GraphError, MethodError, NotEqualError, OnnxgrowError
from onnxgrow.joint import JointModel
from onnxgrow.provenance import growth_of
from onnxgrow.regions import read_regions
from tests import seq2seq
from tests.seq2seq import ENCODER, FIRST, FFN, HIDDEN, MERGED, NEXT, Caller, asked
from tests.test_cli import contents, document, run

APART, TOLERANCE = (ENCODER, FIRST, NEXT), 1e-5
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """t5/ and bart/ with all four graphs; tests change copies."""
    place = tmp_path_factory.mktemp("seq2seq")
    for name in seq2seq.MODELS:
        seq2seq.export(name, place / name)
        seq2seq.merge(place / name)
    return place


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
    """A function: `source`, a copy of a model with some of its files, in a working folder of its own."""
    def copy(name: str, files: tuple[str, ...] = APART) -> Path:
        Path("source").mkdir()
        for file in (*files, "config.json"):
            shutil.copy(exported / name / file, Path("source") / file)
        (Path("source") / "tokenizer.json").write_text("{}")
        return Path("source")

    monkeypatch.chdir(tmp_path)
    return copy


def gap(grown: Path, source: Path = Path("source"), merged: tuple[bool, bool] = (False, False)) -> float:
    """Largest difference of logits between two folders, word by word, relative to the largest one; new words aside."""
    fed = asked()
    a, b = (Caller(place, how).logits(*fed, first=4) for place, how in zip((source, grown), merged))
    assert np.ptp(a) > 1 and b.shape[:2] == a.shape[:2]
    return float(np.abs(b[..., : a.shape[-1]] - a).max() / np.abs(a).max())


def weights(file: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


def changed(file: str, change) -> None:
    """Edit a graph of `source`."""
    m = onnx.load(Path("source") / file)
    change(m.graph)
    onnx.save(m, Path("source") / file)


# --- what grows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", seq2seq.MODELS)
@pytest.mark.parametrize("merged", [False, True])
def test_the_callers_of_these_tests_say_what_pytorch_says(exported, name, merged):
    ids, mask, words = asked()
    with torch.no_grad():
        wanted = seq2seq.model(name)(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(words)).logits.numpy()
    found = Caller(exported / name, merged).logits(ids, mask, words, first=4)
    assert np.abs(found - wanted).max() < TOLERANCE * np.abs(wanted).max()


GROWTHS = [
    ("t5", ("--hidden", 48), {"d_model": 48, "num_heads": 6, "d_ff": 108, "layer_norm_epsilon": pytest.approx(1e-6 * 32 / 48)}),
    ("t5", ("--layers", 4, "--head-dim", 12), {"num_layers": 4, "num_decoder_layers": 4, "d_kv": 12}),
    ("t5", ("--decoder-layers", 3, "--vocab", 128), {"num_decoder_layers": 3, "vocab_size": 128}),
    ("bart", ("--hidden", 64), {"d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 144, "decoder_ffn_dim": 144}),
    ("bart", ("--encoder-layers", 3, "--ffn", 101), {"encoder_layers": 3, "encoder_ffn_dim": 101, "decoder_ffn_dim": 101}),
    ("bart", ("--layers", 3, "--depth-method", "gate", "--positions", 64), {"encoder_layers": 3, "decoder_layers": 3, "max_position_embeddings": 62}),
]


@pytest.mark.parametrize(("name", "flags", "config"), GROWTHS)
def test_a_grown_folder_says_the_same_words(folder, name, flags, config):
    source = folder(name)
    before = contents(source)
    doc = document("expand", "source", *flags, "-o", "grown")
    assert doc["validation"]["equal"] and doc["folder"]["graphs"] == list(APART) and doc["folder"]["left_out"] == []
    assert sorted(contents(Path("grown"))) == sorted([*APART, "config.json", "tokenizer.json"]) and contents(source) == before
    assert gap(Path("grown")) < TOLERANCE
    held = json.loads(Path("grown/config.json").read_text())
    assert {key: held[key] for key in config} == config
    assert {case["label"].rpartition(", then ")[2] for case in doc["validation"]["cases"]} >= {f"3 words of {FIRST}"}
    assert run("validate", "source", "grown")[0] == 0


def test_names_stay_and_each_file_has_its_record(folder):
    source = folder("bart")
    run("expand", "source", "--hidden", 64, "--layers", 3, "-o", "grown", "--no-validate")
    for file in APART:
        old, new = onnx.load(source / file), onnx.load(Path("grown") / file)
        onnx.checker.check_model(new, full_check=True)
        for part in ("input", "output"):
            before, after = ([v.name for v in getattr(m.graph, part)] for m in (old, new))
            assert [n for n in after if n in before] == before and all(n.split(".")[0] in ("present", "past_key_values") for n in after[len(before):])
        assert {n.name for n in old.graph.node} <= {n.name for n in new.graph.node}
        assert growth_of(new)["source"]["sha256"] == onnxgrow.provenance.sha256(source / file)
        regions = read_regions(new)
        assert regions.tensors and {t.name for t in new.graph.initializer} >= set(regions.tensors)
    sizes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load("grown/" + NEXT).graph.input if v.name.endswith("2.decoder.key")]
    assert sizes == [[0, 8, 0, 8]]


@pytest.mark.parametrize("flags", [("--hidden", 64, "--vocab", 128), ("--layers", 4, "--block-init", "random", "--seed", 3), ("--layers", 3, "--depth-method", "gate", "--ffn", 90)])
def test_both_decoders_hold_one_model(folder, flags):
    """Random new parts too: what both have is the same to the byte, however it is called."""
    folder("bart")
    assert run("expand", "source", *flags, "-o", "grown", "--no-validate")[0] == 0
    first, later = (sorted(x.tobytes() for x in weights(Path("grown") / file).values() if x.size > 1 and x.dtype == np.float32) for file in (FIRST, NEXT))
    lost = [x for x in later if x not in first]
    cross = 4 * (seq2seq.LAYERS if "--layers" not in flags else int(flags[flags.index("--layers") + 1]))  # matrix and bias of keys and values of what the encoder said
    assert not lost and len(first) == len(later) + cross


def test_the_embedding_that_encoder_and_decoder_share_stays_one(folder):
    folder("t5")
    assert run("expand", "source", "--hidden", 48, "--vocab", 130, "-o", "grown")[0] == 0
    tables = [next(x for x in weights(Path("grown") / file).values() if x.shape == (130, 48)) for file in APART]
    assert all(np.array_equal(tables[0], other) for other in tables[1:])
    model = onnxgrow.load("source")
    assert isinstance(model, JointModel) and model.parameters == sum(p.numel() for p in seq2seq.model("t5").parameters()) + seq2seq.VOCAB * HIDDEN  # the head, transposed
    assert [(s.name, s.layers) for s in model.stacks] == [("encoder_layers", 2), ("decoder_layers", 2)] and model.architecture.layers == 4 and not model.architecture.gated


def test_what_does_not_change_is_copied(folder):
    folder("t5", (*APART, MERGED))
    doc = document("expand", "source", "--encoder-layers", 3, "-o", "grown")
    assert doc["validation"]["max_rel"] == 0
    old, new = contents(Path("source")), contents(Path("grown"))
    assert {name for name in old if old[name] != new[name]} == {ENCODER, "config.json"}


# --- both decoders in one file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "files"), [("t5", (ENCODER, MERGED)), ("bart", (*APART, MERGED))])
def test_a_merged_decoder_grows_with_the_others(folder, name, files):
    folder(name, files)
    doc = document("expand", "source", "--hidden", 64, "--layers", 3, "-o", "grown")
    assert sorted(doc["folder"]["graphs"]) == sorted(files) and any(case["label"].endswith(f"3 words of {MERGED}") for case in doc["validation"]["cases"])
    assert gap(Path("grown"), merged=(True, True)) < TOLERANCE
    if FIRST in files:
        assert gap(Path("grown"), merged=(True, False)) < TOLERANCE
    grown = onnx.load("grown/" + MERGED)
    onnx.checker.check_model(grown, full_check=True)
    assert [n.name for n in grown.graph.node] == ["optimum::if"]
    assert [v.name for v in grown.graph.input if v.name in {i.name for i in onnx.load("source/" + MERGED).graph.input}][-1] == "use_cache_branch"
    empty = [n for a in grown.graph.node[0].attribute if a.name == "then_branch" for n in a.g.node if n.op_type == "Constant" and n.output[0].startswith("present")]
    assert [n.output[0] for n in empty] == [f"present.{k}.encoder.{kind}" for k in range(3) for kind in ("key", "value")]
    assert {tuple(n.attribute[0].t.dims) for n in empty} == {(0, 8, 1, 8)}


def test_a_merged_decoder_of_another_model_is_left_out(folder):
    folder("t5", (*APART, MERGED))
    m = onnx.load("source/" + MERGED)
    m.graph.initializer[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(m.graph.initializer[0]) + 1, m.graph.initializer[0].name))
    onnx.save(m, "source/" + MERGED)
    doc = document("expand", "source", "--ffn", 90, "-o", "grown", "--no-validate")
    assert doc["folder"]["left_out"] == [MERGED] and not Path("grown", MERGED).exists()


def test_a_merged_decoder_that_is_built_in_another_way(folder):
    folder("t5", (ENCODER, MERGED))
    changed(MERGED, lambda g: g.node.append(helper.make_node("Identity", ["logits"], ["again"])))
    with pytest.raises(FileError, match="is built in another way"):
        onnxgrow.load("source")


# --- files ------------------------------------------------------------------------------------------------------------


def test_external_data(folder):
    source = folder("bart", (*APART, MERGED))
    for file in (*APART, MERGED):
        onnx.save(onnx.load(source / file), source / file, save_as_external_data=True, location=f"{file}_data", size_threshold=100)
    doc = document("expand", "source", "--hidden", 64, "-o", "grown")
    assert doc["validation"]["equal"] and set(contents(Path("grown"))) == {*APART, MERGED, *(f"{f}.data" for f in (*APART, MERGED)), "config.json", "tokenizer.json"}
    assert gap(Path("grown")) < TOLERANCE


def test_a_subfolder_a_recipe_and_python(folder):
    folder("t5")
    os.mkdir("source/onnx")
    for file in APART:
        os.rename(f"source/{file}", f"source/onnx/{file}")
    assert run("expand", "source", "--ffn", 90, "--no-validate", "--save-recipe", "grow.yaml")[0] == 0
    made = contents(Path("source-f90"))
    assert sorted(made) == ["config.json", *sorted(f"onnx/{file}" for file in APART), "tokenizer.json"]
    shutil.rmtree("source-f90")
    assert run("expand", "--recipe", "grow.yaml")[0] == 0 and contents(Path("source-f90")) == made
    result = onnxgrow.load("source").plan(ffn=90).write("again")
    assert result.report.equal and contents(Path("again")) == made


def test_symbolic_sizes_may_have_other_names_in_each_file(folder):
    folder("t5")
    for file in (FIRST, NEXT):
        def called(g, file=file):
            for d in (d for v in (*g.input, *g.output) for d in v.type.tensor_type.shape.dim if d.HasField("dim_param")):
                d.dim_param = f"{file.partition('.')[0]}_{d.dim_param}"
        changed(file, called)
    doc = document("expand", "source", "--hidden", 48, "-o", "grown")
    assert doc["validation"]["equal"] and gap(Path("grown")) < TOLERANCE
    before, after = ([[d.dim_param for d in v.type.tensor_type.shape.dim] for v in onnx.load(f"{place}/{FIRST}").graph.input] for place in ("source", "grown"))
    assert before == after


def test_given_inputs(folder):
    folder("t5")
    ids, mask, words = asked()
    np.savez("feeds.npz", **{"encoder:input_ids": ids, "encoder:attention_mask": mask, "decoder:input_ids": words[:, :4], "decoder_with_past:input_ids": words[:, 4:5]})
    doc = document("expand", "source", "--hidden", 48, "-o", "grown", "--inputs", "feeds.npz")
    assert [case["label"] for case in doc["validation"]["cases"]] == ["the given inputs", f"the given inputs, then 3 words of {FIRST}"]


# --- nothing half done, nothing wrong ---------------------------------------------------------------------------------


def test_nothing_is_left_of_what_fails(folder, monkeypatch):
    folder("t5")
    for module, step, problem in ((turns, "_follow", KeyboardInterrupt()), (jointplan, "recheck", GraphError("no", hint="none")), (jointplan, "add_record", OSError(28, "No space left"))):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, lambda *_, problem=problem: (_ for _ in ()).throw(problem))
            assert run("expand", "source", "--ffn", 90, "-o", "grown")[0] == 1
        assert sorted(os.listdir()) == ["source"]


def test_a_decoder_with_a_past_that_grew_wrong_is_found(folder, monkeypatch):
    """Three times: it holds other weights than the first one, the joined graphs differ, and so do the words that are said one by one."""
    folder("t5")
    parts, compared = jointplan.JointPlan.parts, validate.validate

    def wrong(self):
        for part in parts(self):
            key = next(iter(part.recipes), None) if part.file.name == NEXT else None
            yield replace(part, recipes=part.recipes | {key: replace(part.recipes[key], scale=1.01)}) if key else part

    monkeypatch.setattr(jointplan.JointPlan, "parts", wrong)
    plan = onnxgrow.load("source").plan(ffn=90)
    with pytest.raises(GraphError, match="holds another"):
        plan.write("grown")
    monkeypatch.setattr(jointplan.JointPlan, "_read_back", lambda self, place, parts: self.model.opened_folder(place)[0])
    with pytest.raises(NotEqualError, match="decoder_with_past"):
        plan.write("grown")
    monkeypatch.setattr(validate, "validate", lambda s, roles, source, grown, *more, **options: compared(s, roles, source, source, *more, **options))
    with pytest.raises(NotEqualError, match="outputs differ"):
        plan.write("grown")
    assert sorted(os.listdir()) == ["source"]


def test_a_cache_with_another_meaning_in_the_next_step_is_refused(folder):
    """Parts of a head change places from step to step: as long as both are of one size, or nothing grows, that is the source's own affair."""
    folder("t5")

    def turn(g):
        node = next(n for n in g.node if "present.0.decoder.key" in n.output)
        node.output[0] = "straight"
        for n in g.node:
            n.input[:] = ["straight" if i == "present.0.decoder.key" else i for i in n.input]
        g.initializer.append(numpy_helper.from_array(np.array([3, 5]), "cuts"))
        g.node.extend([helper.make_node("Split", ["straight", "cuts"], ["a", "b"], "cut", axis=3), helper.make_node("Concat", ["b", "a"], ["present.0.decoder.key"], "turned", axis=3)])

    changed(NEXT, turn)
    with pytest.raises(MethodError, match="keeps would not be what it takes in the next step: 'present.0.decoder.key'"):
        onnxgrow.load("source").plan(head_dim=16)
    assert onnxgrow.load("source").plan(ffn=90).write("grown").report.equal


def test_the_decoder_with_a_past_that_has_other_layers(folder, exported, monkeypatch, tmp_path):
    folder("t5")
    monkeypatch.setattr(seq2seq, "LAYERS", 1)
    monkeypatch.setitem(seq2seq.MODELS, "t5", lambda: seq2seq.transformers.T5ForConditionalGeneration(seq2seq.transformers.T5Config(
        vocab_size=seq2seq.VOCAB, d_model=HIDDEN, d_kv=8, d_ff=FFN, num_layers=1, num_heads=4, attn_implementation="eager")))
    monkeypatch.setattr(seq2seq, "model", seq2seq.model.__wrapped__)
    seq2seq.export("t5", tmp_path / "small")
    shutil.copy(tmp_path / "small" / NEXT, Path("source") / NEXT)
    with pytest.raises(GraphError, match="have other layers: 2 in layers, and 1 in layers"):
        onnxgrow.load("source").plan(layers=3)


@pytest.mark.parametrize(("file", "change", "words"), [
    (FIRST, lambda g: g.output.remove(g.output[1]), "takes 'past_key_values.0.decoder.key', and decoder_model.onnx gives no 'present.0.decoder.key'"),
    (ENCODER, lambda g: setattr(g.output[0].type.tensor_type, "elem_type", TensorProto.FLOAT16), "takes 'encoder_hidden_states' as float .*, and encoder_model.onnx gives"),
])
def test_graphs_that_do_not_belong_together(folder, file, change, words):
    folder("t5")
    changed(file, change)
    with pytest.raises(OnnxgrowError, match=words):
        onnxgrow.load("source")


def test_other_operator_sets(folder):
    folder("t5")
    m = onnx.load("source/" + NEXT)
    m.opset_import[0].version = 18
    onnx.save(m, "source/" + NEXT)
    with pytest.raises(FileError, match="has version 18 of the operator set ai.onnx"):
        onnxgrow.load("source")


@pytest.mark.parametrize(("command", "code", "words"), [
    (("expand", "source", "--ffn", 90, "-o", "one.onnx"), 2, "holds several graphs, and one.onnx is one file"),
    (("expand", "source", "--ffn", 90, "--dequantize"), 2, "--dequantize takes one graph"),
    (("expand", "source", "--ffn", 90, "--torch", "pt", "-o", "grown"), 1, "--torch takes one graph"),
    (("export", "source", "-o", "pt"), 1, "PyTorch code takes one graph"),
    (("suggest", "source", "--params", "1M"), 1, "suggest takes one graph"),
    (("report", "source", "source", "-o", "report.html"), 1, "a report takes one graph"),
    (("validate", "source", f"source/{ENCODER}"), 1, "holds no graphs like those of source"),
])
def test_what_takes_one_graph_says_so(folder, command, code, words):
    folder("t5")
    found, _, err = run(*command)
    assert found == code and words in err and "next: " in err and sorted(os.listdir()) == ["source"]


def test_one_of_the_files_alone_grows_in_depth(folder):
    """Keys and values of what the encoder said belong to their layer, though they are handed out."""
    folder("bart")
    doc = document("expand", f"source/{FIRST}", "--layers", 4, "-o", "grown.onnx")
    assert doc["validation"]["equal"]
    names = [o.name for o in onnx.load("grown.onnx").graph.output]
    assert names == ["logits", *(f"present.{k}.{side}.{kind}" for k in range(4) for side in ("decoder", "encoder") for kind in ("key", "value"))]
