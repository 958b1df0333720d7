"""What a grown file says about itself: which entries are its source's, and which are new."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxgrow.errors import FileError
from onnxgrow.model import Model
from onnxgrow.provenance import RECORD
from onnxgrow.regions import REGIONS, Regions, read_regions
from onnxgrow.roles import FLOATS
from tests import deepening, growing
from tests.growing import Case

PADDED = [("gpt2", "together"), ("gpt2", "hidden-family"), ("llama", "together"), ("llama", "heads"), ("llama", "kv_heads"), ("llama-past", "head_dim"),
          ("bert-mlm", "ffn"), ("vit", "hidden-family"), ("t5-encoder", "head_dim"), ("falcon", "heads"), ("moe-batched", "ffn")]  # fmt: skip
COPIED = [("bert-mlm", "hidden-double"), ("gpt2", "copy-hidden"), ("llama", "copy-head_dim"), ("gpt2", "copy-ffn"), ("llama", "heads-per-kv")]


def floats(path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type in FLOATS}


def regions_of(path) -> Regions:
    return read_regions(onnx.load(path, load_external_data=False))


def new_entries(path) -> int:
    regions = regions_of(path)
    return sum(np.count_nonzero(~regions.mask(name, values.shape)) for name, values in floats(path).items())


def grown(tmp_path, name: str, exporter: str = "dynamo", **request):
    return growing.written(growing.opened(growing.exported_by(name, exporter).path).plan(**request), tmp_path)


# --- widths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "label"), PADDED)
def test_old_entries_hold_the_values_of_the_source(name, label, tmp_path):
    """Padding scatters the old entries of a matrix in their order; gains of norms are left out, since a repair may scale them."""
    case = growing.usual(name)
    path = growing.written(growing.plan_of(case, label), tmp_path)
    regions, old, new = regions_of(path), floats(case.path), floats(path)
    matrices = [tensor for tensor in regions.tensors if sum(n > 1 for n in new[tensor].shape) > 1]
    assert matrices and all(np.array_equal(new[t][regions.mask(t, new[t].shape)], old[t].ravel()) for t in matrices)
    assert all(old[t].shape == new[t].shape for t in old.keys() & new.keys() - regions.tensors.keys()), "what grows is listed"


@pytest.mark.parametrize(("name", "label"), PADDED + COPIED)
def test_new_entries_are_the_new_parameters(name, label, tmp_path):
    """Each old entry is old in one place, so that what is left is what the plan counts as new; of copies that holds for the first alone."""
    plan = growing.plan_of(growing.usual(name), label)
    assert new_entries(growing.written(plan, tmp_path)) == plan.new_parameters > 0


@pytest.mark.parametrize("request_", [dict(vocab=130), dict(positions=60), dict(experts=7), dict(experts=7, hidden=48)])
@pytest.mark.parametrize("name", ["moe-batched", "moe-listed"])
def test_words_positions_and_experts(name, request_, tmp_path):
    """Experts of a list have tensors of their own, and a router may get an offset: wholly new ones, and counted as that."""
    plan = growing.opened(growing.usual(name).path).plan(**request_)
    path = growing.written(plan, tmp_path)
    assert new_entries(path) == plan.new_parameters
    alien = floats(path).keys() - floats(growing.usual(name).path).keys()
    assert all(regions_of(path).is_grown(t) for t in alien) and bool(alien) == ("experts" in request_)


def test_the_first_copy_is_the_old_one(tmp_path):
    table = "model.bert.embeddings.token_type_embeddings.weight"
    path = grown(tmp_path, "bert-mlm", hidden=64, only_hidden=True, method="copy")
    old, new = floats(Case("bert-mlm").path)[table], floats(path)[table]
    rows, columns = regions_of(path).axes(table, new.shape)
    assert rows.all() and columns[:32].all() and not columns[32:].any()
    assert np.array_equal(new[:, 32:], old) and np.array_equal(new[:, columns], old)


def test_heads_stay_whole(tmp_path):
    """Each rotary half of each head grows from 4 to 6 at its own end: runs of old entries with gaps between them."""
    path = grown(tmp_path, "llama", head_dim=12)
    query = next(t for t, values in floats(path).items() if values.shape == (32, 48))
    rows, columns = regions_of(path).axes(query, (32, 48))
    assert rows.all() and np.array_equal(columns, np.tile(np.arange(6) < 4, 8))


def test_a_table_that_goes_on(tmp_path):
    """Its values are computed while planning; its old rows are old, and no parameters in any case."""
    path = grown(tmp_path, "gptj", positions=60)
    regions, old, new = regions_of(path), floats(Case("gptj").path), floats(path)
    tables = {t: regions.mask(t, new[t].shape) for t in regions.tensors}
    assert tables and all(np.array_equal(new[t][mask], old[t].ravel()) and mask.size > np.count_nonzero(mask) for t, mask in tables.items())


# --- depth -----------------------------------------------------------------------------------------------------------


def test_inserted_blocks_are_grown_and_old_ones_old(tmp_path):
    """Layers 1 and 3 are new; 0 and 2 are the source's, the latter under another number."""
    path = grown(tmp_path, "gpt2", layers=4)
    regions, old, new = regions_of(path), floats(Case("gpt2").path), floats(path)
    for name, values in new.items():
        assert regions.mask(name, values.shape).all() == (not regions.is_grown(name)) == (".h.1." not in name and ".h.3." not in name), name
        if not regions.is_grown(name):
            assert np.array_equal(values, old[name.replace(".h.2.", ".h.1.")]), name


@pytest.mark.parametrize("name", ["gpt2", "bert-mlm", "torch-encoder-postnorm", "moe-listed", "t5"])
@pytest.mark.parametrize("label", ["one-more", "wide", "random", "stack", "gate"])
def test_new_layers_are_counted_whole(name, label, tmp_path):
    """A plan counts no single numbers, and so no gates: one for each branch of a new block, or one for the block."""
    case = growing.usual(name)
    plan = growing.opened(case.path).plan(**deepening.growths(name)[label])
    path = growing.written(plan, tmp_path)
    numbers = [t for t, values in floats(path).items() if values.ndim == 0 and regions_of(path).is_grown(t)]
    assert new_entries(path) == plan.new_parameters + len(numbers)
    assert {t for t in floats(path) if t.rpartition(".")[2].startswith("gate") and not floats(path)[t].ndim} == set(numbers)
    assert bool(numbers) == (label == "gate")


# --- the record ------------------------------------------------------------------------------------------------------


def test_growing_twice_describes_the_last_growth(tmp_path):
    """What came with the first growth is old in the second; the record of the first one goes."""
    first = growing.written(growing.opened(Case("gpt2").path).plan(ffn=80, layers=3), tmp_path, "first.onnx")
    plan = Model(first).plan(vocab=130, ffn=90)
    second = growing.written(plan, tmp_path, "second.onnx")
    regions, old, new = regions_of(second), floats(first), floats(second)
    assert new_entries(second) == plan.new_parameters and not any(regions.is_grown(t) for t in new)
    assert all(np.array_equal(new[t][regions.mask(t, new[t].shape)], old[t].ravel()) for t in new)
    assert [p.key for p in onnx.load(second).metadata_props].count(REGIONS) == 1
    copy = growing.written(Model(second).plan(), tmp_path, "copy.onnx")
    assert regions_of(copy) == regions, "a copy is no growth"


def test_no_growth_no_regions(tmp_path):
    case = growing.usual("llama")
    assert regions_of(case.path) is None and regions_of(growing.written(growing.opened(case.path).plan(), tmp_path)) is None


def test_the_text_is_short_and_always_the_same(tmp_path):
    deep = growing.written(growing.opened(Case("gpt2").path).plan(layers=24), tmp_path, "deep.onnx")
    texts = [{p.key: p.value for p in Model(deep).plan(hidden=48, head_dim=12).proto().metadata_props}[REGIONS] for _ in range(2)]
    assert texts[0] == texts[1] and len(texts[0]) < 16_000
    assert Regions.from_json(texts[0]).to_json() == texts[0] and len(json.loads(texts[0])["ranges"]) < 6


def test_both_records_stand_side_by_side(tmp_path):
    assert {REGIONS, RECORD} <= {p.key for p in onnx.load(grown(tmp_path, "llama", ffn=80)).metadata_props}


@pytest.mark.parametrize("external", [False, True])
def test_regions_need_no_weights(external, tmp_path):
    path = growing.written(growing.plan_of(Case("bert-mlm", "torchscript", external=external), "ffn"), tmp_path)
    (tmp_path / "grown.onnx.data").unlink(missing_ok=True)
    assert regions_of(path).tensors


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ranges":[],"tensors":{"w":[0,null]}}', '{"ranges":[[3]],"tensors":{}}', '{"ranges":[],"tensors":{"w":7}}',
                                  '{"ranges":[[[2,1]]],"tensors":{}}', '{"ranges":[[[-1,1]]],"tensors":{}}'])
def test_a_damaged_record_is_refused(text):
    model = helper.make_model(helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.zeros((3, 4), np.float32), "w")]))
    model.metadata_props.add(key=REGIONS, value=text)
    with pytest.raises(FileError, match="onnxgrow.regions is damaged"):
        read_regions(model)


@pytest.mark.parametrize(("name", "shape", "words"), [("other", (3, 4), "does not have"), ("w", (3, 1), "does not fit"), ("w", (3,), "does not fit")])
def test_a_file_that_was_changed_is_refused(name, shape, words):
    """Another tool renamed or folded weights: what the record says is about tensors that are no longer there."""
    model = helper.make_model(helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.zeros(shape, np.float32), name)]))
    model.metadata_props.add(key=REGIONS, value='{"ranges":[[[0,2]]],"tensors":{"w":[null,0]}}')
    with pytest.raises(FileError, match=words) as refused:
        read_regions(model)
    assert refused.value.node == "w" and "grow the model again" in refused.value.hint
