"""Folders of transformers: every family, as it was and grown, loaded by the Auto class and compared with ONNX Runtime once more here."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from onnxgrow.errors import FileError, GraphError, NotEqualError, SizeError
from onnxgrow.model import Model
from onnxgrow.pytorch import parameters_of
from onnxgrow.pytorch.hugging import readings, write_hf
from onnxgrow.pytorch.hugging.names import Names, match, named
from onnxgrow.pytorch.hugging.readings import fit_theta
from onnxgrow.pytorch.hugging.verify import verify
from tests import zoo, zoo_models
from tests.growing import Case, arrays, opened, session, usual, written
from tests.zoo_models import BERT, SPECS, STATES, TABLE, VIT, VOCAB
from tests.zoo_modules import randomise

pytestmark = pytest.mark.filterwarnings("ignore")

FAMILIES = {  # model of the zoo: Auto class that loads its folder
    **dict.fromkeys(["bert-mlm", "roberta", "distilbert"], "AutoModelForMaskedLM"), "bert-cls": "AutoModelForSequenceClassification",
    **dict.fromkeys(["gpt2", "opt", "llama", "mistral", "qwen2", "gemma"], "AutoModelForCausalLM"), "vit": "AutoModelForImageClassification",
    "t5": "AutoModelForSeq2SeqLM", "t5-gated": "AutoModelForTextEncoding", "clip-text": "AutoModel", "clip-vision": "CLIPVisionModelWithProjection",
}
slow = pytest.mark.slow
COUPLED = ["bert-mlm", "gpt2", "vit", *(pytest.param(name, marks=slow) for name in ("roberta", "distilbert", "opt", "clip-text", "clip-vision"))]
FREE = ["llama", "t5", *(pytest.param(name, marks=slow) for name in ("mistral", "qwen2", "gemma", "t5-gated"))]  # hidden is not tied to heads
DEEPER = dict(layers=3, hidden=64, ffn=100)
WIDER_HEADS = dict(hidden=64, heads=4, head_dim=16)


def export(file: Path, target: Path, like: Path | None = None):
    """Write the folder of an ONNX file."""
    model = Model(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_hf(model, parameters_of(model), target, like)


def grow(case: Case, folder: Path, **sizes) -> Path:
    return written(opened(case.path).plan(**sizes), folder)


def difference(folder: Path, auto: str, file: Path, feeds: dict) -> float:
    """The first output of the folder's model against that of the ONNX file; the name of the Auto class is written down in this file."""
    native = getattr(transformers, auto).from_pretrained(folder).eval()
    with torch.no_grad():
        got = native(**{name: torch.from_numpy(np.array(x)) for name, x in feeds.items()})[0].numpy()
    return zoo.relative(got, session(file).run(None, feeds)[0])


def checked(case: Case, folder: Path, **sizes):
    """Grow, export, compare; returns the report and the config."""
    file = grow(case, folder, **sizes) if sizes else case.path
    report = export(file, folder / "hf")
    assert report.auto == FAMILIES[case.name] and report.max_rel <= 1e-5 and len(report.verified.cases) > 1
    feeds = arrays(SPECS[case.name].example(2, 9, seed=3))
    assert difference(folder / "hf", report.auto, file, feeds) <= 1e-5
    return report, json.loads((folder / "hf" / "config.json").read_text())


# --- every family ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_source_becomes_a_folder(name, tmp_path):
    report, config = checked(usual(name), tmp_path)
    assert config["architectures"] == [type(SPECS[name].build().model).__name__] == [report.cls]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_grown_model_becomes_a_folder_of_its_new_sizes(name, tmp_path):
    _, config = checked(usual(name), tmp_path, **DEEPER)
    native = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert (native.hidden_size, native.num_hidden_layers) == (64, 3)
    assert 100 in (config.get(key) for key in ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim", "d_ff"))


@slow
@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("attn", zoo.ATTENTIONS)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sizes", [{}, dict(hidden=64), dict(ffn=101), dict(layers=4), DEEPER, WIDER_HEADS], ids=str)
def test_all_exports(name, exporter, attn, sizes, tmp_path):
    checked(Case(name, exporter, attn), tmp_path, **sizes)


@pytest.mark.parametrize("name", ["gpt2-past", "llama-past"])
def test_caches_are_compared_too(name, tmp_path):
    report = export(Case(name, "torchscript", "sdpa").path, tmp_path / "hf")
    assert report.verified.outputs.keys() == {"logits", *(f"present_{kind}_{i}" for kind in ("key", "value") for i in range(2))} and report.max_rel <= 1e-5


@pytest.mark.parametrize("name", ["roberta", "opt"])
def test_more_words_and_positions(name, tmp_path):
    _, config = checked(usual(name), tmp_path, vocab=120, positions=64)
    assert config["vocab_size"] == 120


def test_a_model_without_a_head(tmp_path, monkeypatch):
    """Its pooler is not in the graph; what it gets is said."""
    monkeypatch.setattr(zoo_models, "SPECS", dict(SPECS))
    zoo_models.hugging("bert-body", "BertModel", "encoder", STATES, BERT, TABLE)
    file = tmp_path / "body.onnx"
    zoo.write(zoo_models.SPECS["bert-body"], file, "torchscript", "eager", 17, False, 0)
    report = export(file, tmp_path / "hf")
    assert (report.cls, report.auto) == ("BertModel", "AutoModel") and any("pooler.dense.weight: not in the graph" in note for note in report.notes)


def two_towers(file: Path) -> Model:
    """A whole CLIP: towers of different sizes, similarities and embeddings as outputs."""
    torch.manual_seed(0)  # some weights are as the library makes them
    text, picture = BERT | dict(eos_token_id=VOCAB - 1), VIT | dict(hidden_size=40, intermediate_size=88, num_attention_heads=5)
    native = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=picture, projection_dim=24))

    class Towers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = randomise(native, 0)

        def forward(self, ids, mask, pixels):
            out = self.model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
            return out.logits_per_image, out.text_embeds

    inputs = [*SPECS["clip-text"].example().values(), SPECS["clip-vision"].example(2)["pixel_values"]]
    names = dict(input_names=["input_ids", "attention_mask", "pixel_values"], output_names=["logits_per_image", "text_embeds"])
    axes = dict(input_ids={0: "rows", 1: "sequence"}, attention_mask={0: "rows", 1: "sequence"}, pixel_values={0: "pictures"})
    torch.onnx.export(Towers().eval(), tuple(inputs), file, **names, dynamic_axes=axes, opset_version=17, dynamo=False)
    return Model(file)


def test_both_towers_of_clip(tmp_path):
    model = two_towers(tmp_path / "clip.onnx")
    file = written(model.plan(set={"vision.ffn": 100}, layers=3), tmp_path)
    report = export(file, tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert (report.cls, report.auto) == ("CLIPModel", "AutoModel") and report.max_rel <= 1e-5
    assert (config.text_config.hidden_size, config.vision_config.hidden_size, config.vision_config.intermediate_size) == (32, 40, 100)
    wide = export(written(model.plan(set={"vision.hidden": 80, "text.hidden": 64}), tmp_path), tmp_path / "hf2")  # heads and ffn follow in each
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf2")
    assert wide.max_rel <= 1e-5 and (config.text_config.hidden_size, config.text_config.num_attention_heads) == (64, 8)
    assert (config.vision_config.hidden_size, config.vision_config.num_attention_heads, config.vision_config.intermediate_size) == (80, 10, 176)


# --- what configs couple ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUPLED)
def test_heads_that_do_not_fill_hidden_are_refused(name, tmp_path):
    file = grow(usual(name), tmp_path, heads=5)
    with pytest.raises(SizeError) as refused:
        export(file, tmp_path / "hf")
    assert refused.value.what == "this config has no head size: hidden must be heads · head_dim, and 32 is not 5 · 8"
    assert "hidden 32 with 4 heads or hidden 40 with 5 heads" in refused.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["grown.onnx"]


@pytest.mark.parametrize("name", FREE)
def test_heads_that_do_not_fill_hidden_are_written_where_the_config_can_say_it(name, tmp_path):
    checked(usual(name), tmp_path, heads=6)


@pytest.mark.parametrize("name", [*COUPLED, "llama"])
def test_a_scale_of_scores_that_was_kept_goes_into_the_queries(name, tmp_path):
    sizes = WIDER_HEADS if name != "llama" else dict(head_dim=16)
    report, _ = checked(usual(name), tmp_path, **sizes)
    assert "queries · 1.41421: the graph scales scores by 0.353553, the class by 0.25" in report.notes


def test_epsilon_follows_hidden(tmp_path):
    _, config = checked(usual("gpt2"), tmp_path, hidden=64)
    assert config["layer_norm_epsilon"] == 5e-6 and config["tie_word_embeddings"]


def test_an_epsilon_that_is_written_down_in_the_library_scales_the_stream(tmp_path):
    report, _ = checked(usual("opt"), tmp_path, hidden=64)
    assert any(note.startswith("the residual stream · 1.41421: OPT has an epsilon of 1e-05 written down") for note in report.notes)


def test_norms_of_different_epsilons_are_refused_by_name(tmp_path):
    model = onnx.load(Case("gpt2").path)
    norm = [n for n in model.graph.node if n.op_type == "LayerNormalization"][1]
    next(a for a in norm.attribute if a.name == "epsilon").f = 1e-3
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(SizeError, match=rf"one epsilon for all norms.*1e-05 in .*; 0\.001 in {norm.name}"):
        export(tmp_path / "two.onnx", tmp_path / "hf")


def test_llama_with_a_hidden_size_that_heads_do_not_divide_is_a_mistral_without_a_window(tmp_path):
    report, config = checked(usual("llama"), tmp_path, hidden=45, only_hidden=True)
    assert report.cls == "MistralForCausalLM" and config["sliding_window"] is None and any("is the network of Llama" in note for note in report.notes)


def test_rotary_frequencies_that_go_on_have_a_larger_base(tmp_path):
    _, config = checked(usual("llama"), tmp_path, head_dim=12)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e6} and config["head_dim"] == 12


def test_rotary_frequencies_that_repeat_are_refused(tmp_path):
    file = grow(usual("llama"), tmp_path, head_dim=16, method="copy")
    with pytest.raises(SizeError, match="no powers of one base") as refused:
        export(file, tmp_path / "hf")
    assert "--method pad, which continues the series" in refused.value.hint


@pytest.mark.parametrize(("n", "theta"), [(4, 10000.0), (32, 500000.0), (64, 1e6), (3, 12345.678)])
def test_the_base_of_frequencies_is_a_short_number(n, theta):
    assert fit_theta((theta ** (-np.arange(n) / n)).astype(np.float32)) == pytest.approx(theta, rel=1e-6)


def test_gemma_scales_embeddings_and_keeps_the_head(tmp_path):
    report, config = checked(usual("gemma"), tmp_path, hidden=50, only_hidden=True)
    assert config["tie_word_embeddings"] and any(note.startswith("embeddings · 0.8: the graph multiplies them by 5.65685") for note in report.notes)


def test_t5_scales_its_last_gain(tmp_path):
    report, _ = checked(usual("t5"), tmp_path, hidden=64)
    assert any(note.startswith("last gain · 1.41421: the graph scales states by 0.176777") for note in report.notes)


def test_copies_of_a_tied_head_are_written_untied(tmp_path):
    _, config = checked(usual("bert-mlm"), tmp_path, hidden=64)
    assert config["tie_word_embeddings"] is False


def test_layers_that_differ_are_refused():
    layers = {f"h.{i}.mlp.c_fc.bias": lambda size=size: np.zeros(size) for i, size in enumerate((72, 80))}
    with pytest.raises(SizeError, match="layers differ in a size that a config states once: h.0.mlp.c_fc.bias 72, h.1.mlp.c_fc.bias 80"):
        Names(layers).size("mlp.c_fc.bias")


# --- evidence and names ---------------------------------------------------------------------------------------------


def test_an_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(GraphError, match="no architecture of transformers that can be written has parameters named like these") as refused:
        export(Case("torch-encoder-prenorm").path, tmp_path / "hf")
    assert "BERT, CLIP, CLIP text" in refused.value.hint


def test_a_lost_parameter_is_named(tmp_path):
    model = Model(usual("vit").path)
    parameters = {name: make for name, make in parameters_of(model).items() if not name.endswith("layers.1.mlp.fc2.weight")}
    with pytest.raises(GraphError, match=r"ViTForImageClassification does not fit the graph: needs vit\.layers\.1\.mlp\.fc2\.(bias, vit.*)?weight"):
        write_hf(model, parameters, tmp_path / "hf")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("prefix", ["", "model.", "wrapper.model."])
def test_prefixes_do_not_matter(prefix):
    native = SPECS["gpt2"].build().model
    names = {prefix + key: lambda x=x: x.numpy() for key, x in native.state_dict().items()}
    found = match(native, named(names))
    assert not found.problems and found.keys["transformer.h.0.ln_1.bias"] == f"{prefix}transformer.h.0.ln_1.bias"


def test_names_of_older_releases_are_known():
    native = SPECS["vit"].build().model
    older = {"layers.": "encoder.layer.", "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
             "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
             "mlp.fc2": "output.dense"}
    names = {}
    for key, x in native.state_dict().items():
        for new, old in older.items():
            key = key.replace(new, old)
        names[key] = lambda x=x: x.numpy()
    assert any("attention.attention.query" in name for name in names) and not match(native, named(names)).problems


def test_weights_of_conv1d_are_turned_back():
    """Also square ones, where shapes say nothing."""
    model = Model(usual("gpt2").path)
    name = next(n for n in parameters_of(model) if n.endswith("h.0.attn.c_proj.weight") or n.endswith("h.0.attn.c_proj.linear.weight"))
    native = SPECS["gpt2"].build().model.transformer.h[0].attn.c_proj.weight.detach().numpy()
    assert np.array_equal(parameters_of(model)[name]().T, native)


# --- nothing that differs is left behind -------------------------------------------------------------------------------


def test_a_wrong_epsilon_is_seen_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(readings, "epsilons", lambda roles, width: [("norm", 1e-2)])
    with pytest.raises(NotEqualError, match="'logits' of GPT2LMHeadModel differs from 'logits' of the graph by"):
        export(usual("gpt2").path, tmp_path / "hf")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("name", "field", "value"), [
    ("gpt2", "layer_norm_epsilon", 1e-2), ("llama", "rope_parameters", {"rope_type": "default", "rope_theta": 5000.0}),
    ("vit", "hidden_act", "gelu_new"), ("roberta", "pad_token_id", 3)])
def test_a_config_that_was_changed_is_seen(name, field, value, tmp_path):
    export(usual(name).path, tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    config = json.loads(file.read_text())
    assert config[field] != value
    file.write_text(json.dumps(config | {field: value}))
    with pytest.raises(NotEqualError):
        verify(Model(usual(name).path), getattr(transformers, FAMILIES[name]), tmp_path / "hf")


def test_an_existing_folder_is_left_alone(tmp_path, snapshot):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(FileError, match="hf exists"):
        export(usual("gpt2").path, tmp_path / "hf")
    assert snapshot(tmp_path) == before


# --- --like --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def like(tmp_path) -> Path:
    """A folder of a small BERT as people have them: config, tokenizer, weights, a file of their own."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "source"
    config = type(SPECS["bert-mlm"].build().model.config)(**BERT, hidden_dropout_prob=0.25, pad_token_id=7, layer_norm_eps=1e-12)
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1} | {f"word{i}": i for i in range(2, VOCAB)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    (folder / "notes.md").write_text("ours")
    for name in ("pytorch_model.bin", "model.safetensors", "model.safetensors.index.json", ".gitattributes"):
        (folder / name).write_text("old weights")
    return folder


def test_tokenizer_and_config_are_carried_over(like, tmp_path):
    file = grow(usual("bert-mlm"), tmp_path, hidden=64, vocab=120)
    report = export(file, tmp_path / "hf", like)
    assert {"tokenizer.json", "tokenizer_config.json", "notes.md"} <= set(report.carried)
    assert not {"config.json", "model.safetensors", "pytorch_model.bin"} & set(report.carried)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.hidden_size, config.vocab_size, config.hidden_dropout_prob, config.pad_token_id) == (64, 120, 0.25, 7)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("word5 word9")["input_ids"] == [5, 9]
    assert any(note.startswith("vocab_size 99 -> 120") for note in report.notes) and not any("dropout" in note for note in report.notes)
    assert not {"pytorch_model.bin", ".gitattributes", "model.safetensors.index.json"} & {p.name for p in (tmp_path / "hf").iterdir()}


def test_a_folder_without_a_config_is_no_source(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match=r"cannot read .*config\.json: there is no such file"):
        export(usual("gpt2").path, tmp_path / "hf", tmp_path / "empty")


def test_a_config_of_another_type_is_refused(tmp_path):
    transformers.GPTNeoXConfig().save_pretrained(tmp_path / "neox")
    with pytest.raises(GraphError, match="is of the type 'gpt_neox', which cannot be written"):
        export(usual("gpt2").path, tmp_path / "hf", tmp_path / "neox")


def test_a_window_that_no_comparison_can_reach_is_noted(tmp_path):
    native = SPECS["mistral"].build().model.config
    type(native)(**native.to_dict() | dict(sliding_window=2048)).save_pretrained(tmp_path / "other")
    report = export(usual("mistral").path, tmp_path / "hf", tmp_path / "other")
    assert any(note.startswith("the config has a window of 2048 positions, the graph of 4096") for note in report.notes)


def test_a_config_that_scales_rotary_frequencies_must_be_that_of_the_graph(tmp_path):
    native = SPECS["llama"].build().model.config
    rope = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
    type(native)(**native.to_dict() | dict(rope_parameters=rope)).save_pretrained(tmp_path / "scaled")
    with pytest.raises(SizeError, match="the rotary frequencies of the config are not those of the graph"):
        export(usual("llama").path, tmp_path / "hf", tmp_path / "scaled")
    native.save_pretrained(tmp_path / "plain")
    assert export(usual("llama").path, tmp_path / "hf", tmp_path / "plain").max_rel <= 1e-5


def test_the_report_tells_how_to_load(tmp_path):
    report = export(usual("gpt2").path, tmp_path / "hf")
    assert report.lines()[1] == f"load it with transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'hf')!r})"
    assert json.loads(json.dumps(report.to_json()))["class"] == "GPT2LMHeadModel"
