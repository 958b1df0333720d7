"""Folders with a model: configs grow with it, files come along, and a folder has its name only when everything in it is right."""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from onnxgrow import configs, folders
from onnxgrow.errors import FileError, GraphError, OnnxgrowError, SizeError
from onnxgrow.model import Model
from tests import growing
from tests.test_cli import MODELS, contents, document, folder, run  # noqa: F401 (folder is a fixture)
from tests.zoo_models import SPECS

SHARED = next((p / "shared" / "models" for p in Path(__file__).resolve().parents if (p / "shared" / "models").is_dir()), None)
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
         "intermediate_size": 240, "num_hidden_layers": 4, "vocab_size": 256, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "max_position_embeddings": 512,
         "layer_types": ["a", "b", "c", "d"]}


@pytest.fixture
def model_folder(folder) -> Path:  # noqa: F811
    """`src`, as optimum writes one: a Llama-like model with its config, a tokenizer, and what else lies about."""
    src = folder / "src"
    (src / "additional_chat_templates").mkdir(parents=True)
    shutil.copy("model.onnx", src / "model.onnx")
    (src / "config.json").write_text(json.dumps(LLAMA))
    for name in ("tokenizer.json", "special_tokens_map.json", "README.md", "additional_chat_templates/tool.jinja", "model.safetensors", "model_quantized.onnx",
                 "model.safetensors.index.json", ".hidden"):
        (src / name).write_text(name)
    return src


def config_of(path) -> dict:
    return json.loads((Path(path) / "config.json").read_text())


def test_a_folder_in_and_a_folder_out(model_folder):
    before = contents(model_folder)
    doc = document("expand", "src", "--hidden", 144, "--layers", 6, "--no-validate")
    assert doc["output"] == "src-h144-l6"
    assert sorted(contents(Path("src-h144-l6"))) == ["README.md", "additional_chat_templates/tool.jinja", "config.json", "model.onnx", "special_tokens_map.json",
                                                    "tokenizer.json"]
    assert config_of("src-h144-l6") == LLAMA | {"hidden_size": 144, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 360,
                                                "num_hidden_layers": 6, "rms_norm_eps": 6.6666666e-06, "layer_types": ["a", "b", "b", "c", "d", "d"]}
    assert doc["folder"]["configs"]["config.json"]["hidden_size"] == {"old": 96, "new": 144}
    assert set(doc["folder"]["left_out"]) == {"model.safetensors", "model_quantized.onnx", "model.safetensors.index.json"}
    assert contents(model_folder) == before and run("validate", "src", "src-h144-l6")[0] == 0
    assert Model("src-h144-l6").architecture.hidden == 144
    assert oct(os.stat("src-h144-l6").st_mode & 0o777) == "0o755"
    run("expand", "src/model.onnx", "--hidden", 144, "--layers", 6, "-o", "plain.onnx", "--no-validate")
    assert Path("plain.onnx").read_bytes() == Path("src-h144-l6/model.onnx").read_bytes()


def test_a_file_can_be_written_from_a_folder_and_recipes_take_folders(model_folder):
    assert run("expand", "src", "--ffn", 300, "-o", "one.onnx", "--no-validate")[0] == 0 and Path("one.onnx").is_file()
    assert run("expand", "src", "--ffn", 300, "-o", "wide", "--no-validate", "--save-recipe", "grow.yaml")[0] == 0
    made = contents(Path("wide"))
    shutil.rmtree("wide")
    assert run("expand", "--recipe", "grow.yaml")[0] == 0 and contents(Path("wide")) == made


def test_external_data_and_a_subfolder(model_folder):
    (model_folder / "onnx").mkdir()
    os.remove("src/model.onnx"), os.remove("src/model_quantized.onnx")
    onnx.save(onnx.load("model.onnx"), "src/onnx/model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    assert run("expand", "src", "--hidden", 144, "-o", "grown")[0] == 0
    assert {"onnx/model.onnx", "onnx/model.onnx.data", "config.json", "tokenizer.json"} <= set(contents(Path("grown")))
    assert not any("onnx_data" in name for name in contents(Path("grown")))


# --- the config says what the graph is --------------------------------------------------------------------------------

NAMES = ["bert-mlm", "gpt2", "llama", "qwen3", "vit", "t5-encoder", "bart"]
NAMES += [pytest.param(name, marks=pytest.mark.slow) for name in ("distilbert", "opt", "falcon-kv2", "roberta", "mistral", "gemma-kv2", "gpt-neox", "phi", "clip-text", "gptj")]
WORDS = {"hidden_size": "hidden", "num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "head_dim": "head_dim", "intermediate_size": "ffn",
         "num_hidden_layers": "layers", "vocab_size": "vocab"}


def native_shapes(path: Path, cls: str) -> dict[str, tuple[int, ...]]:
    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = getattr(transformers, cls)(config)
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


@cache
def architecture(path: Path):
    return Model(path).architecture


def wrong(path: Path, cls: str) -> list[str]:
    """Weights of the graph that have a parameter of their name in the class that the config makes, and another shape."""
    native = native_shapes(path, cls)
    held = {t.name: tuple(t.dims) for t in onnx.load(path / "model.onnx").graph.initializer}
    pairs = {name: (held[name], native[end]) for name in held for end in native if name == end or name.endswith(f".{end}")}
    assert pairs, list(held)
    config, a = transformers.AutoConfig.from_pretrained(path), architecture(path / "model.onnx")
    said = {word: (getattr(config, word, None), getattr(a, role)) for word, role in WORDS.items() if word != "num_hidden_layers" or not config.is_encoder_decoder}
    odd = [f"{word}: {here}, {there}" for word, (here, there) in said.items() if here is not None and there is not None and here != there]
    return odd + [f"{name}: {a}, {b}" for name, (a, b) in pairs.items() if a not in (b, b[::-1])]


@pytest.mark.parametrize("name", NAMES)
def test_transformers_makes_the_grown_model_from_the_grown_config(name, tmp_path):
    """Weights that kept their names in the export have the shapes of the class that transformers makes from the config."""
    native = next(m for m in SPECS[name].make("eager").modules() if isinstance(m, transformers.PreTrainedModel))
    src = tmp_path / "src"
    src.mkdir()
    shutil.copy(growing.Case(name).path, src / "model.onnx")
    native.config.save_pretrained(src)
    cls = type(native).__name__
    assert not wrong(src, cls)
    model = Model(src)
    d = model.architecture
    more = {} if name in ("bart", "t5-encoder") else {"layers": 4}
    plan = model.plan(hidden=2 * d.hidden, ffn=160, method="copy" if d.norm_place == "after" else "auto", **more)
    result, _ = folders.write_folder(plan, src, tmp_path / "grown", validate=False)
    assert not wrong(result.path, cls)
    shutil.copy(src / "config.json", result.path / "config.json")
    assert wrong(result.path, cls), "the old config must not fit"


@cache
def plan_like_it(**request):
    """A plan of the model that LLAMA describes."""
    return Model(MODELS / "tiny-llama.onnx").plan(**request)


def plan_of(src: Path, config: dict, **request):
    src.mkdir(exist_ok=True)
    shutil.copy(MODELS / "tiny-llama.onnx", src / "model.onnx")
    (src / "config.json").write_text(json.dumps(config))
    return Model(src).plan(**request)


def without(*keys) -> dict:
    return {key: value for key, value in LLAMA.items() if key not in keys}


@pytest.mark.parametrize(("config", "request_", "found"), [
    (without("head_dim"), {"hidden": 144}, {"num_attention_heads": 6}),
    (without("head_dim"), {"hidden": 120, "only_hidden": True}, {"head_dim": 24}),
    (LLAMA | {"head_dim": None}, {"hidden": 120, "only_hidden": True}, {"head_dim": 24}),
    (without("intermediate_size") | {"n_inner": None}, {"ffn": 300}, {"n_inner": 300}),
    ({"text_config": LLAMA, "vision_config": {"hidden_size": 7}}, {"ffn": 300}, {"text_config.intermediate_size": 300}),
    (LLAMA | {"rope_parameters": {"rope_theta": 10000.0}}, {"ffn": 300}, {}),
])
def test_what_a_config_leaves_unsaid(config, request_, found):
    changes = configs.grow_config(config, plan_like_it(**request_)).changes
    assert found.items() <= {key: new for key, (_, new) in changes.items()}.items()


@pytest.mark.parametrize(("config", "request_", "words"), [
    (LLAMA | {"hidden_size": 64}, {"hidden": 144}, "does not belong to this model: it has hidden_size 64, and the graph has hidden 96"),
    (LLAMA | {"num_hidden_layers": 12}, {"layers": 6}, "it has num_hidden_layers 12"),
    (without("intermediate_size"), {"ffn": 300}, "no entry that could say ffn 240 -> 300"),
    (without("vocab_size"), {"vocab": 300}, "no entry that could say vocab"),
    (without("head_dim") | {"model_type": "bert"}, {"hidden": 120, "only_hidden": True}, "could say head_dim 24 at hidden 120"),
])
def test_what_a_config_cannot_say_is_refused(tmp_path, config, request_, words):
    plan = plan_of(tmp_path / "src", config, **request_)
    with pytest.raises(SizeError, match=words) as refused:
        folders.write_folder(plan, tmp_path / "src", tmp_path / "grown", validate=False)
    assert "name the model file itself" in str(refused.value) and sorted(os.listdir(tmp_path)) == ["src"]


# --- refusals, and nothing half done ----------------------------------------------------------------------------------


def test_nothing_is_left_of_what_fails(model_folder, monkeypatch):
    before = contents(Path("."))
    for module, step, problem in ((folders, "copy", OSError(28, "No space left on device")), (configs, "follow_numbers", KeyboardInterrupt())):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, lambda *_: (_ for _ in ()).throw(problem))
            code, _, err = run("expand", "src", "--hidden", 144, "-o", "grown", "--no-validate")
            assert code == 1 and ("No space left" in err or "interrupted" in err)
    assert contents(Path(".")) == before and sorted(os.listdir()) == ["gpt.onnx", "model.onnx", "src"]


def test_only_a_grown_folder_is_replaced(model_folder):
    Path("mine").mkdir()
    Path("mine/diary.txt").write_text("dear diary")
    shutil.copytree("src", "copy")
    os.remove("copy/model_quantized.onnx")
    plan = Model("src").plan(ffn=300)
    for name in ("mine", "src", "copy"):
        with pytest.raises(FileError, match=f"{name} exists") as refused:
            folders.write_folder(plan, Path("src"), Path(name), validate=False, overwrite=True)
        assert "--force" not in str(refused.value)
    assert Path("mine/diary.txt").read_text() == "dear diary"
    assert run("expand", "src", "--hidden", 144, "-o", "grown", "--no-validate")[0] == 0
    code, _, err = run("expand", "src", "--ffn", 300, "-o", "grown", "--no-validate")
    assert code == 1 and "or give --force" in err and config_of("grown")["hidden_size"] == 144
    assert run("expand", "src", "--ffn", 300, "-o", "grown", "--no-validate", "--force")[0] == 0
    assert config_of("grown") == LLAMA | {"intermediate_size": 300} and not [n for n in os.listdir() if n.startswith(".")]
    code, _, err = run("expand", "src", "--ffn", 300, "-o", "nowhere/grown")
    assert code == 1 and "there is no folder" in err


def test_several_models_or_none(model_folder):
    os.rename("src/model.onnx", "src/encoder_model.onnx"), os.rename("src/model_quantized.onnx", "src/decoder_with_past_model.onnx")
    code, _, err = run("expand", "src", "--hidden", 144)
    assert code == 1 and "holds the graphs of one model: decoder_with_past_model.onnx, encoder_model.onnx" in err and "with all of its files" in err
    os.rename("src/encoder_model.onnx", "src/other.onnx"), os.rename("src/decoder_with_past_model.onnx", "src/another.onnx")
    code, _, err = run("expand", "src", "--hidden", 144)
    assert code == 1 and "holds several models: another.onnx, other.onnx" in err and "name one of them" in err
    os.remove("src/other.onnx"), os.remove("src/another.onnx")
    code, _, err = run("inspect", "src")
    assert code == 1 and "src is a folder" in err


def test_a_broken_config(model_folder):
    plan = Model("src").plan(ffn=300)
    for text in ("{", "[]", '"x"'):
        Path("src/config.json").write_text(text)
        with pytest.raises(OnnxgrowError, match="config.json"):
            folders.write_folder(plan, Path("src"), Path("grown"), validate=False)
    code, _, err = run("expand", "src", "--ffn", 300, "--no-validate")
    assert code == 1 and "config.json" in err and "Traceback" not in err
    assert sorted(os.listdir()) == ["gpt.onnx", "model.onnx", "src"]


# --- the hub's cache --------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(model_folder) -> Path:
    """hub/models--acme--tiny with blobs, a snapshot of links into them, and refs/main."""
    root = model_folder.parent / "hub" / "models--acme--tiny"
    snapshot = root / "snapshots" / "0123abcd"
    for place in (root / "blobs", snapshot, root / "refs"):
        place.mkdir(parents=True)
    (root / "refs" / "main").write_text("0123abcd")
    os.remove(model_folder / "model_quantized.onnx")
    onnx.save(onnx.load("model.onnx"), "src/model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    for number, file in enumerate(sorted(f for f in model_folder.iterdir() if f.is_file())):
        shutil.move(file, root / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    shutil.rmtree("src")
    return root


@pytest.mark.parametrize("inner", ["", pytest.param("snapshots/0123abcd", marks=pytest.mark.slow), "snapshots/0123abcd/model.onnx"])
def test_a_model_in_the_cache_of_the_hub(hub, inner):
    """The name of the model, its snapshot or the file, validated in ONNX Runtime; nothing is written into the cache."""
    before = contents(hub)
    flags = ["-o", "grown.onnx"] * inner.endswith(".onnx")
    doc = document("expand", hub / inner, "--hidden", 144, *flags)
    assert doc["validation"]["equal"] and contents(hub) == before
    if not flags:
        assert doc["output"] == "tiny-h144" and config_of("tiny-h144")["hidden_size"] == 144
        assert not any(p.is_symlink() for p in Path("tiny-h144").iterdir()) and Path("tiny-h144/tokenizer.json").read_text() == "tokenizer.json"
    assert run("validate", hub / inner, doc["output"])[0] == 0


def test_links_elsewhere_are_refused(hub, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    snapshot = hub / "snapshots" / "0123abcd"
    (snapshot / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(FileError, match="notes.txt is a link out of the folder"):
        folders.carried_files(snapshot)
    code, _, err = run("expand", snapshot, "--hidden", 144, "-o", "grown", "--no-validate")
    assert code == 1 and "is a link out of the folder" in err and not Path("grown").exists()


# --- onnxruntime-genai ------------------------------------------------------------------------------------------------

GENAI = {"model": {"type": "gpt2", "vocab_size": 1000, "context_length": 512, "bos_token_id": 98, "eos_token_id": 98, "pad_token_id": 98, "decoder": {
    "filename": "past.onnx", "session_options": {"provider_options": []}, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_size": 8,
    "num_hidden_layers": 5, "sliding_window": {"window_size": 64, "layers": [0, 4]},
    "inputs": {"input_ids": "input_ids", "position_ids": "position_ids", "attention_mask": "attention_mask", "past_names": "past_%d"},
    "outputs": {"logits": "logits", "present_names": "present_%d"}}},
    "search": {"max_length": 40, "do_sample": False, "num_beams": 1, "past_present_share_buffer": False}}


@pytest.fixture
def genai_folder(tmp_path, monkeypatch) -> Path:
    if SHARED is None or not (SHARED / "genai_tinygpt2_fp32.onnx").is_file():
        pytest.skip("the graphs of other projects are not here")
    (tmp_path / "src").mkdir()
    shutil.copy(SHARED / "genai_tinygpt2_fp32.onnx", tmp_path / "src" / "past.onnx")
    (tmp_path / "src" / "genai_config.json").write_text(json.dumps(GENAI))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "src"


def test_genai_config_grows(genai_folder):
    document("expand", "src", "--hidden", 48, "--layers", 7, "--vocab", 1024, "-o", "grown", "--no-validate")
    found, old = json.loads(Path("grown/genai_config.json").read_text())["model"], GENAI["model"]
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6, "num_hidden_layers": 7}
    places = Model("src").plan(layers=7).deeper.places["layers"]
    slide = [i for i, place in enumerate(places) if place.block in (0, 4)]
    assert found == old | {"vocab_size": 1024, "decoder": old["decoder"] | sizes | {"sliding_window": {"window_size": 64, "layers": slide}}}
    assert run("validate", "src", "grown")[0] == 0


def test_genai_configs_that_do_not_fit(genai_folder):
    def changed(**decoder):
        model = GENAI["model"] | {"decoder": GENAI["model"]["decoder"] | decoder}
        (genai_folder / "genai_config.json").write_text(json.dumps(GENAI | {"model": model}))
        return run("expand", "src", "--layers", 7, "-o", "grown", "--no-validate")

    code, _, err = changed(num_hidden_layers=6)
    assert code == 1 and "model.decoder.num_hidden_layers is 6, and the graph has layers 5" in err
    code, _, err = changed(inputs={"past_names": "past.%d.both"})
    assert code == 1 and "the grown model has no input 'past.0.both'" in err
    for name in ("../src/past.onnx", "/etc/passwd", "", 7):
        code, _, err = changed(filename=name)
        assert code == 1 and "one decoder beside it can be grown" in err
    (genai_folder / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "past.onnx"}, "vision": {"filename": "eye.onnx"}}}))
    code, _, err = run("expand", "src", "--layers", 7, "-o", "grown")
    assert code == 1 and "decoder (past.onnx), vision (eye.onnx)" in err and sorted(os.listdir()) == ["src"]


def test_onnxruntime_genai_generates_the_same(genai_folder):
    """Greedy text of the library itself, before and after; it sizes its caches by the config."""
    og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")

    def text(path: str, ids=(5, 17, 900, 3)):
        model = og.Model(path)
        settings = og.GeneratorParams(model)
        settings.set_search_options(max_length=24, do_sample=False)
        generator = og.Generator(model, settings)
        generator.append_tokens(np.array([ids], np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return generator.get_sequence(0).tolist()

    config = json.loads(json.dumps(GENAI))
    del config["model"]["decoder"]["sliding_window"]
    (genai_folder / "genai_config.json").write_text(json.dumps(config))
    assert run("expand", "src", "--hidden", 48, "--layers", 7, "-o", "grown", "--no-validate")[0] == 0
    assert text("grown") == text("src")
    shutil.copy("src/genai_config.json", "grown/genai_config.json")
    with pytest.raises(Exception):
        text("grown")


def test_transformers_is_not_needed(model_folder, monkeypatch):
    """Names in the table are found without it; only an entry that is missing asks for it."""
    monkeypatch.setitem(sys.modules, "transformers.models.auto.configuration_auto", None)
    assert run("expand", "src", "--hidden", 144, "--layers", 6, "--no-validate", "-o", "grown")[0] == 0
    plan = plan_of(model_folder, without("head_dim"), hidden=120, only_hidden=True)
    with pytest.raises(SizeError):
        configs.grow_config(without("head_dim"), plan)
    with pytest.raises(GraphError):
        from onnxgrow import genai

        genai.check_names(GENAI, onnx.load("model.onnx"))
