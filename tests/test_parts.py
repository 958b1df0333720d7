"""Where the parameters are: against the names that an exporter leaves, which the program itself never looks at."""

from __future__ import annotations

from collections import Counter

import pytest

from onnxgrow import load
from onnxgrow.parts import find_parts
from onnxgrow.terminal.dims import dim_rows
from tests.growing import exported_by
from tests.test_cli import MODELS
from tests.zoo import export
from tests.zoo_models import SPECS

NAMES = {  # what the name of a weight holds -> its part (None: not in the file, it reads a cache), the first that fits; by model
    "t5": [("relative_attention_bias", "positions"), ("layer_norm", "norms"), ("EncDecAttention", "cross attention"), ("SelfAttention", "attention"),
           ("DenseReluDense", "feed-forward"), ("shared", "words"), ("lm_head", "head")],
    "bart-decoder": [("positions", "positions"), ("layer_norm", "norms"), ("layernorm", "norms"), ("encoder_attn.k_proj", None), ("encoder_attn.v_proj", None),
                     ("encoder_attn", "cross attention"), ("self_attn", "attention"),
                     ("fc", "feed-forward"), ("embed_tokens", "words"), ("lm_head", "head")],
    "gpt2": [("wte", "words"), ("wpe", "positions"), ("ln_", "norms"), ("attn", "attention"), ("mlp", "feed-forward"), ("lm_head", "head")],
    "vit": [("patch_embeddings", "input map"), ("cls_token", "input map"), ("position_embeddings", "positions"), ("layernorm", "norms"),
            ("attention", "attention"), ("intermediate", "feed-forward"), ("mlp", "feed-forward"), ("output.dense", "feed-forward"), ("classifier", "output map")],
}


def by_name(name: str, rules) -> Counter:
    """part -> parameters of the module that was exported, from names alone."""
    out: Counter = Counter()
    for full, parameter in SPECS[name].build().named_parameters():
        (found, *_) = [part for key, part in rules if key in full]
        out[found] += parameter.numel() * (found is not None)
    return out


@pytest.mark.parametrize(("name", "exporter"), [pytest.param(name, exporter, marks=[pytest.mark.slow] * (exporter == "dynamo" and name not in ("gpt2", "vit")))
                                                for name in NAMES for exporter in ("dynamo", "torchscript")])
def test_parts_are_those_that_the_names_say(name, exporter):
    model = load(export(name, exporter, "eager"))
    found: Counter = Counter()
    for part in find_parts(model.roles, model.stacks):
        found[part.kind] += part.parameters
    wanted = by_name(name, NAMES[name])
    wanted["head"] = found["head"]  # exporters write a head of its own where the module has the words again
    assert found == +wanted


@pytest.mark.parametrize("name, exporter", [("bert-mlm", "torchscript"), ("llama-past", "torchscript"), ("moe-listed", "dynamo"), ("gemma2-past", "torchscript"), ("falcon-kv2", "torchscript"),
                                            pytest.param("gemma2-past", "dynamo", marks=pytest.mark.slow)])
def test_nothing_is_lost_and_nothing_counted_twice(name, exporter):
    model = load(exported_by(name, exporter).path)
    parts = find_parts(model.roles, model.stacks)
    assert sum(p.parameters for p in parts) == model.parameters and len({(p.kind, p.stack, p.place) for p in parts}) == len(parts)
    assert {"attention", "feed-forward", "norms", "words"} <= {p.kind for p in parts} and "cross attention" not in {p.kind for p in parts}


def test_a_table_that_is_also_the_head_is_called_tied(tmp_path):
    import onnx

    proto = onnx.load(MODELS / "tiny-gpt.onnx")
    table = next(n.input[0] for n in proto.graph.node if n.op_type == "Gather" and "tokens" in n.input[0])
    last = next(n for n in reversed(proto.graph.node) if n.op_type == "MatMul")
    last.input[1] = "turned"
    at = list(proto.graph.node).index(last)
    proto.graph.node.insert(at, onnx.helper.make_node("Transpose", [table], ["turned"], perm=[1, 0]))
    onnx.save(proto, tmp_path / "tied.onnx")
    plain, model = load(MODELS / "tiny-gpt.onnx"), load(tmp_path / "tied.onnx")
    assert not any(p.tied for p in find_parts(plain.roles, plain.stacks))
    (words,) = [p for p in find_parts(model.roles, model.stacks) if p.tied]
    assert (words.kind, words.parameters) == ("words", 256 * 96) and "head" not in {p.kind for p in find_parts(model.roles, model.stacks)}


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt"])
def test_dims_grow_in_the_steps_and_with_the_company_that_the_table_says(name):
    model = load(MODELS / f"{name}.onnx")
    rows = [r for r in dim_rows(model.roles, model.architecture) if r.name not in ("layers", "v_head_dim")]
    assert len(rows) >= 5
    for row in rows:
        plan = model.plan(set={row.name: int(row.size) + row.step})
        follows = set() if row.follows == "-" else set(row.follows.split(", "))
        assert plan.sizes.keys() == {row.name} | follows, row
        if row.step > 1:
            with pytest.raises(Exception, match=r"multiple|whole|share|evenly"):
                model.plan(set={row.name: int(row.size) + 1})
