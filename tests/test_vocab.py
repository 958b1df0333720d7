"""More words: old logits stay, new words start as they should, and whatever is no word is left alone."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxgrow.errors import MethodError, SizeError
from onnxgrow.model import Model
from onnxgrow.words import NOISE
from tests import growing, zoo
from tests.growing import Case
from tests.test_cli import MODELS, document, folder, run  # noqa: F401
from tests.zoo_models import HIDDEN, LABELS, SPECS, VOCAB

NEW = 131
TEXT = [name for name in SPECS if "image" not in SPECS[name].tags]
GROWTHS = {
    "alone": dict(vocab=NEW),
    "with everything": dict(vocab=NEW, hidden=50, only_hidden=True, ffn=101),
    "with the family": dict(vocab=NEW, hidden=2 * HIDDEN),
    "with copies": dict(vocab=NEW, hidden=2 * HIDDEN, method="copy"),
    "zero": dict(vocab=NEW, hidden=2 * HIDDEN, only_hidden=True, vocab_init="zero"),
    "random": dict(vocab=NEW, hidden=2 * HIDDEN, only_hidden=True, vocab_init="random", seed=3),
}
EVERYWHERE = ("bert-mlm", "roberta", "gpt2", "opt", "llama", "t5-encoder")  # by both exporters, also where tests must be quick
CASES = [pytest.param(case, label, id=f"{case}-{label}", marks=[pytest.mark.slow] * (not quick and (case != growing.usual(case.name) or not growing.in_turn(case.name, label, GROWTHS, share=3))))
         for case in growing.every_case() if case.name in TEXT for label in GROWTHS
         for quick in [label == "alone" and case.name in EVERYWHERE and (case.exporter == "torchscript" or case == growing.exported_by(case.name, "dynamo"))]]  # fmt: skip


def plan_of(case: Case, **sizes):
    return growing.opened(case.path).plan(**sizes)


def weights(path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def tables(path, words: int = NEW) -> list[np.ndarray]:
    """Matrices with an axis of words, as [words, width]."""
    found = [w for w in weights(path).values() if w.ndim == 2 and words in w.shape and 1 not in w.shape]
    return [w if w.shape[0] == words else w.T for w in found]


def fed(plan, feeds: dict, **others) -> dict:
    """Inputs of the source as the grown model takes them."""
    noise = np.random.default_rng(0)
    return {name: growing.spread(x, growing.map_of(plan, name), noise)[0] for name, x in (feeds | others).items()}


def answer(path, feeds: dict) -> dict[str, np.ndarray]:
    runner = growing.session(path)
    names = [o.name for o in runner.get_outputs()]
    return dict(zip(names, runner.run(names, feeds), strict=True))


# --- old words and new ones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "label"), CASES)
def test_old_logits_stay_and_new_words_are_sane(case, label, tmp_path, record_property):
    plan = plan_of(case, **GROWTHS[label])
    near = case.name in growing.POST_NORM and label == "with everything"
    assert plan.certificate.kind == ("near" if near else "exact") and plan.sizes["vocab"] == (VOCAB, NEW)
    path = growing.written(plan, tmp_path)
    error = growing.difference(plan, path, case)  # its ids are all of the old vocabulary
    record_property("error", error)
    assert error <= (growing.NEAR if near else growing.TOLERANCE)
    feeds = growing.feeds_of(case)[-1]
    growing.check_sound(path, growing.grown_feeds(plan, feeds))
    ids = np.resize(np.arange(VOCAB, NEW), feeds["input_ids"].shape)
    outputs = answer(path, fed(plan, feeds, input_ids=ids))
    assert all(np.isfinite(x).all() for x in outputs.values())
    if case.name not in ("bert-cls", "t5-encoder", "t5-gated", "clip-text"):
        assert outputs["logits"].shape[-1] == NEW


def test_logits_of_old_words_come_first(tmp_path):
    """Without any map of onnxgrow's."""
    case = Case("llama")
    path = growing.written(plan_of(case, vocab=NEW), tmp_path)
    for feeds, old in zip(growing.feeds_of(case), growing.source_outputs(case.path, case), strict=True):
        np.testing.assert_allclose(answer(path, feeds)["logits"][..., :VOCAB], old["logits"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("other", [Case("gpt2", "torchscript", opset=13), pytest.param(Case("bert-mlm", "dynamo", static=True), marks=pytest.mark.slow),
                                   pytest.param(Case("opt", "dynamo", opset=20), marks=pytest.mark.slow), Case("gpt2", "dynamo", static=True), Case("phi", "dynamo", opset=20),
                                   Case("phi", "torchscript", static=True), Case("llama-past", "dynamo", external=True)], ids=str)  # fmt: skip
def test_other_forms(other, tmp_path):
    plan = plan_of(other, vocab=NEW, hidden=2 * HIDDEN)
    path = growing.written(plan, tmp_path)
    assert growing.difference(plan, path, other) <= growing.TOLERANCE
    growing.check_sound(path, growing.grown_feeds(plan, growing.feeds_of(other)[-1]))


@pytest.mark.parametrize("name", ["gpt2", "bert-mlm", "gemma"])
def test_one_matrix_stays_one(name, tmp_path):
    """Tied through a Transpose."""
    case = growing.tied(Case(name), tmp_path)
    plan = plan_of(case, vocab=NEW, hidden=2 * HIDDEN)
    path = growing.written(plan, tmp_path)
    assert growing.difference(plan, path, case) <= growing.TOLERANCE and len(tables(path)) == 1


def test_a_head_written_as_gemm(tmp_path):
    """Over all tokens in one axis, the matrix itself transposed by the operator: tied and grown with hidden."""
    model = onnx.load(Case("gpt2").path)
    table = next(t.name for t in model.graph.initializer if list(t.dims) == [VOCAB, HIDDEN])
    last = next(n for n in model.graph.node if n.output[0] == "logits")
    shape = numpy_helper.from_array(np.array([-1, HIDDEN]), "flat")
    model.graph.initializer.append(shape)
    model.graph.node.remove(last)
    model.graph.node.append(helper.make_node("Reshape", [last.input[0], "flat"], ["rows"]))
    model.graph.node.append(helper.make_node("Gemm", ["rows", table], ["all"], transB=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("all", TensorProto.FLOAT, [None, VOCAB]))
    onnx.save(model, tmp_path / "gemm.onnx")
    case = growing.Edited(Case("gpt2"), tmp_path / "gemm.onnx")
    plan = plan_of(case, vocab=NEW, hidden=2 * HIDDEN)
    path = growing.written(plan, tmp_path)
    assert growing.difference(plan, path, case) <= growing.TOLERANCE
    assert answer(path, growing.feeds_of(case)[-1])["all"].shape == (21, NEW) and len(tables(path)) == 1


# --- what new rows hold ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [Case("llama"), Case("phi", "torchscript"), Case("bert-mlm", "torchscript")], ids=str)
def test_new_rows_are_near_the_mean(case, tmp_path):
    path = growing.written(plan_of(case, vocab=1000), tmp_path)
    assert len(tables(path, 1000)) == 2
    for table in tables(path, 1000):
        noise = table[VOCAB:] - table[:VOCAB].mean(axis=0)
        assert noise.std() == pytest.approx(NOISE * table[:VOCAB].std(), rel=0.05)
        assert len(np.unique(table[VOCAB:], axis=0)) == 1000 - VOCAB, "new words must be able to part"
    for bias in (w for w in weights(path).values() if w.shape == (1000,)):
        np.testing.assert_allclose(bias[VOCAB:], bias[:VOCAB].mean(), rtol=1e-5)


def test_zero_and_random_rows(tmp_path):
    case = growing.usual("phi")
    zero, random, flat = (growing.written(plan_of(case, vocab=1000, **options), tmp_path, f"{i}.onnx")
                          for i, options in enumerate([dict(vocab_init="zero"), dict(vocab_init="random"), dict(vocab_init="random", init_std=0.5)]))
    assert not any(table[VOCAB:].any() for table in tables(zero, 1000))
    for table, other in zip(tables(random, 1000), tables(flat, 1000), strict=True):
        assert table[VOCAB:].std() == pytest.approx(table[:VOCAB].std(), rel=0.05) and other[VOCAB:].std() == pytest.approx(0.5, rel=0.05)
    assert all(not w[VOCAB:].any() for path in (zero, random) for w in weights(path).values() if w.shape == (1000,)), "a bias starts at zero"


@pytest.mark.parametrize(("name", "copies"), [("gpt2", True), ("roberta", True), ("gemma", True), ("llama", False)])
@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_two_copies_of_one_matrix_stay_copies(name, copies, exporter, tmp_path):
    """Exporters write a tied head as a transposed copy; an untied head has noise of its own."""
    path = growing.written(plan_of(Case(name, exporter), vocab=NEW), tmp_path)
    table, head = tables(path)
    if copies:
        np.testing.assert_allclose(table, head, rtol=0, atol=1e-7)
    else:
        noise = [(x[VOCAB:] - x[:VOCAB].mean(axis=0)).ravel() for x in (table, head)]
        assert abs(np.corrcoef(noise)[0, 1]) < 0.1


@pytest.mark.parametrize("init", ["mean", "random"])
def test_new_rows_hold_what_a_wider_stream_wants(init, tmp_path):
    """A LayerNorm reads means, an RMSNorm zeros, and what copies read are copies: for new words as for old ones."""
    def table(name: str, hidden: int) -> np.ndarray:
        plan = plan_of(Case(name), vocab=NEW, hidden=hidden, only_hidden=True, vocab_init=init)
        return next(t for t in tables(growing.written(plan, tmp_path)) if t.shape == (NEW, hidden))

    means, zeros, copies = table("phi", 50), table("llama", 50), table("bert-mlm", 64)
    np.testing.assert_allclose(means[:, 32:], np.repeat(means[:, :32].mean(axis=1)[:, None], 18, axis=1), atol=1e-7)
    assert not zeros[:, 32:].any() and zeros[VOCAB:, :32].any()
    assert (copies[:, :32] == copies[:, 32:]).all() and copies[VOCAB:].any()


def test_the_seed_decides(tmp_path):
    def table(seed: int) -> np.ndarray:
        return tables(growing.written(plan_of(Case("llama"), vocab=NEW, seed=seed), tmp_path))[0]

    assert (table(0) == table(0)).all() and (table(0)[VOCAB:] != table(1)[VOCAB:]).any() and (table(0)[:VOCAB] == table(1)[:VOCAB]).all()


def test_naive_growth_still_starts_words_as_asked(tmp_path):
    plan = plan_of(Case("llama"), vocab=NEW, hidden=48, method="naive")
    (table,) = [t for t in tables(growing.written(plan, tmp_path)) if plan.certificate.kind == "not preserved"][:1]
    np.testing.assert_allclose(table[VOCAB:, :32].mean(axis=0), table[:VOCAB, :32].mean(axis=0), atol=0.01)


def test_a_word_that_is_forbidden_does_not_forbid_new_ones(tmp_path):
    """Marian gives its padding a bias of minus infinity."""
    model = onnx.load(Case("phi", "torchscript").path)
    bias = next(t for t in model.graph.initializer if list(t.dims) == [VOCAB])
    values = numpy_helper.to_array(bias).copy()
    values[7] = -np.inf
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, tmp_path / "forbidden.onnx")
    plan = Model(tmp_path / "forbidden.onnx").plan(vocab=NEW)
    assert not weights(growing.written(plan, tmp_path))[bias.name][VOCAB:].any()


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["mean", "zero", "random"])
def test_the_share_of_new_words_is_what_numpy_says(init, tmp_path):
    case = Case("llama")
    plan = plan_of(case, vocab=NEW, vocab_init=init)
    feeds = growing.feeds_of(case)[0]
    result = plan.write(tmp_path / "grown.onnx", feeds=feeds)
    logits = answer(result.path, feeds)["logits"].astype(np.float64)
    share = np.exp(logits[..., VOCAB:]).sum(-1) / np.exp(logits).sum(-1)
    found = result.report.new_words
    assert found["outputs"] == ["logits"]
    assert (found["mean"], found["max"]) == (pytest.approx(share.mean(), rel=1e-5), pytest.approx(share.max(), rel=1e-5))
    assert f"new words take {share.mean():.2%} of the probability in logits on average, {share.max():.2%} at most" in "\n".join(result.report.lines())
    assert any("larger denominator" in reason for reason in plan.certificate.reasons)


def test_large_logits_do_not_overflow(tmp_path):
    from onnxgrow.axismap import AxisMap, Draw, Fill
    from onnxgrow.compare import new_share

    rows = AxisMap.append(2, 3, Fill.DRAWN, Draw(True, 0.0, "w"))
    logits = np.array([[[1e4, 1e4, 1e4], [-1e4, -np.inf, -1e4]]], np.float32)
    assert new_share(logits, (AxisMap.identity(1), AxisMap.identity(2), rows)) == (pytest.approx((1 / 3 + 1 / 2) / 2), pytest.approx(1 / 2))
    assert new_share(logits, ()) == (None, None)


def test_nothing_is_said_about_words_where_none_are_new(tmp_path):
    for name, sizes in (("llama", dict(hidden=48)), ("t5-encoder", dict(vocab=NEW))):
        plan = plan_of(growing.usual(name), **sizes)
        report = plan.write(tmp_path / f"{name}.onnx").report
        assert report.equal and report.new_words is None and plan.certificate.reasons == ()


# --- what counts words, and what does not ----------------------------------------------------------------------------


def with_labels(path, labels: int) -> None:
    """The classifier of the zoo with another number of labels."""
    model = onnx.load(growing.usual("bert-cls").path)
    for t in model.graph.initializer:
        if LABELS in t.dims:
            values = np.resize(numpy_helper.to_array(t), [labels if n == LABELS else n for n in t.dims])
            t.CopyFrom(numpy_helper.from_array(values, t.name))
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = labels
    onnx.save(model, path)


def test_as_many_labels_as_words_are_still_labels(tmp_path):
    with_labels(tmp_path / "labels.onnx", VOCAB)
    plan = Model(tmp_path / "labels.onnx").plan(vocab=NEW)
    report = plan.write(tmp_path / "grown.onnx").report
    assert report.equal and report.new_words is None
    assert {r.new_shape for r in plan.decisions.applied.recipes.values()} == {(NEW, HIDDEN)}
    assert any(note.startswith(f"logits has {VOCAB} entries too") for note in plan.decisions.target.notes)


def test_hidden_states_as_wide_as_the_vocabulary_are_no_words(tmp_path):
    model = onnx.load(growing.usual("t5-encoder").path)
    table = next(t for t in model.graph.initializer if list(t.dims) == [VOCAB, HIDDEN])
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[:HIDDEN], table.name))
    onnx.save(model, tmp_path / "square.onnx")
    plan = Model(tmp_path / "square.onnx").plan(vocab=50)
    assert plan.write(tmp_path / "grown.onnx").report.equal
    assert [r.new_shape for r in plan.decisions.applied.recipes.values()] == [(50, HIDDEN)]


@pytest.mark.parametrize(("name", "found"), [("gpt2", True), ("llama", False)])
def test_logits_of_the_last_token(name, found, tmp_path):
    """[batch, words]: a copy of the table shows that they are words; otherwise they might be labels, and the plan says so."""
    model = onnx.load(Case(name).path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1), "last"))
    model.graph.node.append(helper.make_node("Gather", ["logits", "last"], ["next"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("next", TensorProto.FLOAT, [None, VOCAB]))
    onnx.save(model, tmp_path / "last.onnx")
    plan = Model(tmp_path / "last.onnx").plan(vocab=NEW)
    result = plan.write(tmp_path / "grown.onnx")
    assert result.report.equal and (result.report.new_words is not None) == found
    assert any("labels, not words" in note for note in plan.decisions.target.notes) != found


def test_more_positions_than_words(tmp_path):
    """Both are looked up by what is fed; they are added up, so one of them is the vocabulary: the one that the head says."""
    model = onnx.load(Case("llama").path)
    table = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
    places = np.random.default_rng(0).standard_normal((200, HIDDEN)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(places, "places"))
    model.graph.input.append(helper.make_tensor_value_info("spots", TensorProto.INT64, ["batch", "sequence"]))
    at = list(model.graph.node).index(table)
    out, table.output[0] = table.output[0], "words"
    model.graph.node.insert(at + 1, helper.make_node("Gather", ["places", "spots"], ["added"]))
    model.graph.node.insert(at + 2, helper.make_node("Add", ["words", "added"], [out]))
    onnx.save(model, tmp_path / "places.onnx")
    opened = Model(tmp_path / "places.onnx")
    assert opened.roles.size("vocab") == VOCAB and opened.roles.size("table.spots") == 200
    assert opened.plan(vocab=NEW).write(tmp_path / "grown.onnx").report.equal


# --- encoders and decoders -------------------------------------------------------------------------------------------


def pair(name: str):
    """A small encoder-decoder by the TorchScript exporter, cached with the zoo."""
    import torch
    import transformers

    from tests.zoo_models import IDS, T5, Spec, randomise  # fmt: skip
    from tests.zoo_models import TEXT as SIZES

    class Pair(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, *ids):
            return (self.model(input_ids=ids[0], decoder_input_ids=ids[1], use_cache=False).logits,)

    sizes = dict(layers=1, attention_heads=4, ffn_dim=72)
    stacks = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sizes.items()}
    apart = IDS | stacks | dict(d_model=HIDDEN, max_position_embeddings=40, pad_token_id=60)
    apart |= dict(share_encoder_decoder_embeddings=False, decoder_vocab_size=77)
    make = {"t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
            "marian": lambda: transformers.MarianMTModel(transformers.MarianConfig(**apart))}[name]  # fmt: skip

    def inputs(sizes, batch, length, seed):
        ids = torch.randint(0, 77, (2, batch, length), generator=torch.Generator().manual_seed(seed))
        return {"input_ids": ids[0], "decoder_input_ids": ids[1]}

    axes = {"input_ids": {0: "batch", 1: "source"}, "decoder_input_ids": {0: "batch", 1: "target"}, "logits": {0: "batch", 1: "target"}}
    path = zoo.cache_folder() / f"vocab-{name}.onnx"
    if not path.exists():
        spec = Spec(name, lambda attn: randomise(Pair(make()), 0), inputs, axes, ("logits",), frozenset(), SIZES)
        zoo.write(spec, path, "torchscript", "eager", 17, False, 0)
    return path


def test_a_shared_table_serves_encoder_and_decoder(tmp_path):
    plan = Model(pair("t5")).plan(vocab=NEW, hidden=48, only_hidden=True)
    result = plan.write(tmp_path / "grown.onnx")
    assert plan.certificate.kind == "exact" and result.report.max_rel <= growing.TOLERANCE
    assert len(tables(result.path)) == 2 and result.report.new_words["outputs"] == ["logits"]


def test_two_vocabularies_are_told_apart(tmp_path):
    model = Model(pair("marian"))
    with pytest.raises(SizeError, match="different sizes: table.decoder_input_ids of 77, table.input_ids of 99") as refusal:
        model.plan(vocab=NEW)
    assert "--set table.decoder_input_ids=SIZE --set table.input_ids=SIZE" in str(refusal.value)
    for sizes, outputs in (({"table.input_ids": NEW}, None), ({"table.input_ids": NEW, "table.decoder_input_ids": 90}, ["logits"])):
        report = model.plan(set=sizes).write(tmp_path / f"{len(sizes)}.onnx").report
        assert report.equal and (report.new_words or {}).get("outputs") == outputs


# --- numbers that are written down -----------------------------------------------------------------------------------


def behind_the_ids(path, *nodes, **constants) -> Model:
    """The GPT-like model with nodes between its ids `ids` and everything that reads them; they make `limited`."""
    model = onnx.load(MODELS / "tiny-gpt.onnx")
    (ids,) = [v.name for v in model.graph.input]
    for n in model.graph.node:
        n.input[:] = ["limited" if name == ids else name for name in n.input]
    for k, (op, *names) in enumerate(nodes):
        model.graph.node.insert(k, helper.make_node(op, [ids if name == "ids" else name for name in names[:-1]], [names[-1]]))
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    onnx.save(model, path)
    return Model(path)


LIMITS = {
    "clipped": ([("Clip", "ids", "zero", "last", "limited")], dict(zero=0, last=255)),
    "cut off": ([("Min", "last", "ids", "limited")], dict(last=255)),
    "counted from the end": ([("Less", "ids", "zero", "below"), ("Add", "ids", "words", "up"), ("Where", "below", "up", "ids", "limited")],
                             dict(zero=0, words=256)),
    "unknown": ([("Less", "ids", "words", "known"), ("Where", "known", "ids", "unknown", "limited")], dict(words=256, unknown=3)),
    "wrapped": ([("Mod", "ids", "words", "limited")], dict(words=256)),
}


@pytest.mark.parametrize(("nodes", "constants"), LIMITS.values(), ids=LIMITS)
def test_limits_of_ids_follow(nodes, constants, tmp_path):
    plan = behind_the_ids(tmp_path / "limited.onnx", *nodes, **constants).plan(vocab=300)
    result = plan.write(tmp_path / "grown.onnx")
    assert result.report.equal and sum("limit of ids" in reason for reason in plan.decisions.edits.reasons) == 1
    free = Model(MODELS / "tiny-gpt.onnx").plan(vocab=300).write(tmp_path / "free.onnx").path
    (ids,) = [v.name for v in onnx.load(free).graph.input]
    feeds = {ids: np.array([[7, 299, 256, 0]])}
    assert (answer(result.path, feeds)["logits"] == answer(free, feeds)["logits"]).all(), "new ids reach their own rows"


def test_sizes_in_reshapes_follow(tmp_path):
    model = onnx.load(MODELS / "tiny-gpt.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 256]), "flat"))
    model.graph.node.append(helper.make_node("Reshape", ["logits", "flat"], ["rows"]))
    model.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 256]))
    onnx.save(model, tmp_path / "flat.onnx")
    result = Model(tmp_path / "flat.onnx").plan(vocab=300).write(tmp_path / "grown.onnx")
    assert result.report.equal and result.report.new_words["outputs"] == ["logits", "rows"]
    assert onnx.load(result.path).graph.output[1].type.tensor_type.shape.dim[1].dim_value == 300


def one_hot(path, off: float = 0.0) -> Model:
    """The GPT-like model with its words looked up as Keras does: one-hot numbers times the table."""
    model = onnx.load(MODELS / "tiny-gpt.onnx")
    (ids,) = [v.name for v in model.graph.input]
    at, node = next((k, n) for k, n in enumerate(model.graph.node) if n.op_type == "Gather" and n.input[1] == ids)
    model.graph.node.remove(node)
    model.graph.node.insert(at, helper.make_node("MatMul", ["lit", node.input[0]], [node.output[0]]))
    model.graph.node.insert(at, helper.make_node("OneHot", [ids, "depth", "off_on"], ["lit"], name="light"))
    values = {"depth": np.array(256), "off_on": np.array([off, 1], np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    onnx.save(model, path)
    return Model(path)


def test_one_hot_numbers_get_the_new_depth(tmp_path):
    plan = one_hot(tmp_path / "lit.onnx").plan(vocab=300, hidden=120, only_hidden=True)
    result = plan.write(tmp_path / "grown.onnx")
    assert plan.certificate.kind == "exact" and plan.dead_parameters == 0 and result.report.max_rel <= growing.TOLERANCE
    free = Model(MODELS / "tiny-gpt.onnx").plan(vocab=300, hidden=120, only_hidden=True).write(tmp_path / "free.onnx").path
    (ids,) = [v.name for v in onnx.load(free).graph.input]
    feeds = {ids: np.array([[7, 299, 256, 0]])}
    np.testing.assert_allclose(answer(result.path, feeds)["logits"], answer(free, feeds)["logits"], atol=1e-4)
    with pytest.raises(MethodError, match="OneHot"):
        one_hot(tmp_path / "lit.onnx", off=0.1).plan(vocab=300)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "ArgMax"])
def test_what_more_words_would_change_is_refused(op, tmp_path):
    model = onnx.load(MODELS / "tiny-gpt.onnx")
    model.graph.node.append(helper.make_node(op, ["logits"], ["said"], name="tail", axis=-1))
    model.graph.output.append(helper.make_tensor_value_info("said", TensorProto.INT64 if op == "ArgMax" else TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "said.onnx")
    with pytest.raises(MethodError, match=f"vocab cannot grow from 256 to 300: .* {op}") as refusal:
        Model(tmp_path / "said.onnx").plan(vocab=300)
    assert refusal.value.node == "tail" and "logits as its output" in refusal.value.hint


@pytest.mark.parametrize("name", ["vit", "deit", "clip-vision"])
def test_pictures_have_no_vocabulary(name):
    for sizes in (dict(vocab=NEW), dict(pad_vocab_to=64)):
        with pytest.raises(SizeError, match="this model has no vocabulary"):
            plan_of(Case(name), **sizes)


def test_a_model_that_is_fed_embeddings_has_no_vocabulary(tmp_path):
    model = onnx.load(Case("llama").path)
    table = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
    model.graph.node.remove(table)
    model.graph.node.insert(0, helper.make_node("Add", ["embeds", "placed"], [table.output[0]]))
    model.graph.node.insert(0, helper.make_node("Gather", [table.input[0], "position_ids"], ["placed"]))
    shape = ["batch", "sequence"]
    model.graph.input.extend([helper.make_tensor_value_info("embeds", TensorProto.FLOAT, [*shape, HIDDEN]),
                              helper.make_tensor_value_info("position_ids", TensorProto.INT64, shape)])  # fmt: skip
    onnx.save(model, tmp_path / "embeds.onnx")
    with pytest.raises(SizeError, match="this model has no vocabulary"):
        Model(tmp_path / "embeds.onnx").plan(vocab=NEW)


# --- the command line ------------------------------------------------------------------------------------------------


def test_options(folder):  # noqa: F811
    doc = document("expand", "model.onnx", "--vocab", 300, "--pad-vocab-to", 64, "--vocab-init", "zero", "-o", "grown.onnx")
    assert doc["plan"]["sizes"] == {"vocab": {"old": 256, "new": 320}}
    assert doc["plan"]["notes"] == ["new words: zero (--vocab-init)", "vocab is rounded up to a multiple of 64: 320"]
    assert {"drawn", "zero"} & {fill for r in doc["plan"]["initializers"] for fill in r["fill"]} == {"zero"}
    assert doc["plan"]["outputs"][0]["fill"] == ["-", "-", "free"] and doc["validation"]["equal"]
    assert 0 < doc["validation"]["new_words"]["mean"] < doc["validation"]["new_words"]["max"] < 1
    again = document("validate", "model.onnx", "grown.onnx")["validation"]
    assert again["new_words"] == doc["validation"]["new_words"]
    record = {p.key: p.value for p in onnx.load("grown.onnx").metadata_props}["onnxgrow.growth"]
    assert {"pad_vocab_to": 64, "vocab_init": "zero"}.items() <= json.loads(record).items()


def test_padding_alone(folder):  # noqa: F811
    code, out, _ = run("expand", "model.onnx", "--pad-vocab-to", 100, "-o", "grown.onnx")
    assert code == 0 and "vocab: 256 -> 300\n" in out and "new words take " in out and "larger denominator" in out
    code, out, _ = run("expand", "model.onnx", "--pad-vocab-to", 100, "--plan")
    assert "note: vocab is rounded up to a multiple of 100: 300" in out and "tokens.weight: [256, 96] -> [300, 96]  fill drawn, -" in out


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--vocab", 200], 1, "vocab is 256 and cannot shrink to 200"), (["--vocab", 0], 2, "0 is not in the range"),
    (["--pad-vocab-to", 0], 2, "0 is not in the range"), (["--vocab", 300, "--vocab-init", "ones"], 2, "'ones' is not one of"),
    (["--vocab", 300, "--set", "vocab=301"], 2, "vocab is asked for twice"),
])  # fmt: skip
def test_wrong_options(folder, arguments, code, words):  # noqa: F811
    got, _, err = run("expand", "model.onnx", *arguments)
    assert got == code and words in err
