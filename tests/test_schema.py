"""The schemas in docs/schema are those of the documents: every command's, in all their forms, and nothing besides."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import onnx
import pytest
from jsonschema import Draft202012Validator
from onnx import numpy_helper
from referencing import Registry, Resource

from onnxgrow.commands import main
from tests import growing
from tests.several_models import export
from tests.test_cli import folder, run  # noqa: F401 (folder is a fixture)

ROOT = Path(__file__).parents[1]
SCHEMAS = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted((ROOT / "docs" / "schema").glob("*.json"))}
REGISTRY = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items())


def refuse_constant(name: str):
    raise AssertionError(f"{name} is no JSON")


def problems(name: str, document) -> list[str]:
    found = Draft202012Validator({"$ref": f"{name}.json"}, registry=REGISTRY).iter_errors(document)
    return [f"{e.json_path}: {e.message}" for e in found]


def check(*arguments, code: int = 0) -> dict:
    """The document of a command, which must fit the schema of its name, or that of errors."""
    found, out, _ = run(*arguments, "--json")
    document = json.loads(out, parse_constant=refuse_constant)
    assert found == code, document
    name = "error" if "error" in document else document["command"]
    assert not problems(name, document), problems(name, document)
    return document


def test_every_schema_is_one_and_closed():
    """Draft 2020-12, and no object takes keys that are not listed, unless it says what their values are."""
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema" and schema["title"], name
        waiting = [schema]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                if part.get("type") == "object" or "properties" in part:
                    assert part.get("additionalProperties") is not None and part["additionalProperties"] is not True, (name, part)
                    assert set(part.get("required", ())) <= set(part.get("properties", ())), (name, part)
                waiting += part.values()
            elif isinstance(part, list):
                waiting += part


def test_every_command_with_documents_has_a_schema():
    commands = {name for name, command in main.commands.items() if any(p.name == "as_json" for p in command.params)}
    assert {f"{name}.json" for name in commands} <= SCHEMAS.keys()
    used = {part["$ref"] for schema in SCHEMAS.values() for part in _parts(schema) if "$ref" in part}
    assert used <= SCHEMAS.keys() and SCHEMAS.keys() == {f"{name}.json" for name in commands} | used | {"error.json"}


def _parts(schema):
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _parts(part)
    if isinstance(schema, dict):
        yield schema


def test_inspect(folder):  # noqa: F811
    check("inspect", "model.onnx"), check("inspect", "gpt.onnx"), check("inspect", export("clip", "torchscript"))
    run("expand", "model.onnx", "--ffn", 300, "--no-validate", "-o", "one.onnx"), run("expand", "one.onnx", "--layers", 5, "--no-validate", "-o", "two.onnx")
    assert check("inspect", "two.onnx")["growth"]["before"]
    proto = onnx.load("model.onnx")
    proto.metadata_props.add(key="onnxgrow.growth", value='{"command": 7, "source": {"sha256": "no hash"}}')
    onnx.save(proto, "odd.onnx")
    check("inspect", "odd.onnx")


@pytest.mark.parametrize("flags", [["--hidden", 144, "--layers", 5, "--plan"], ["--hidden", 144, "--vocab", 300], ["--ffn", 300, "--no-validate"],
                                   ["--hidden", 144, "--method", "naive", "--plan"], ["--ffn", 480, "--method", "copy", "--plan"],
                                   ["--layers", 6, "--depth-method", "gate", "--block-init", "random", "--plan"]], ids=lambda flags: "-".join(map(str, flags)))
def test_expand(folder, flags):  # noqa: F811
    check("expand", "model.onnx", *flags)


@pytest.mark.parametrize("name", ["gpt2", "bert-mlm", "llama-past", "moe-batched", "falcon", "gemma2", "t5-encoder"])
def test_plans_of_other_families(name):
    hidden, layers = (64, []) if name in ("bert-mlm", "moe-batched") else (45, ["--positions", 57] * (name == "gpt2"))
    check("expand", growing.usual(name).path, "--hidden", hidden, "--only-hidden", *layers, "--plan")
    check("expand", growing.usual(name).path, "--heads", 8, "--ffn", 144, "--plan")


def test_expand_of_a_folder_with_torch(folder):  # noqa: F811
    (folder / "src").mkdir()
    shutil.copy("model.onnx", "src/model.onnx")
    (folder / "src" / "config.json").write_text(json.dumps({"intermediate_size": 240, "num_hidden_layers": 4, "layer_types": list("abcd")}))
    document = check("expand", "src", "--ffn", 300, "--layers", 5, "-o", "grown", "--torch", "grown_pt")
    assert document["folder"]["configs"]["config.json"]["layer_types"]["new"] == list("abcdd")


def test_validate(folder):  # noqa: F811
    run("expand", "model.onnx", "--vocab", 300, "--no-validate", "-o", "grown.onnx")
    check("validate", "model.onnx", "grown.onnx")
    proto = onnx.load("grown.onnx")
    tensor = next(t for t in proto.graph.initializer if t.name == "tokens.weight")
    tensor.raw_data = (numpy_helper.to_array(tensor) * float("nan")).tobytes()
    onnx.save(proto, "grown.onnx")
    document = check("validate", "model.onnx", "grown.onnx", code=1)
    assert document["validation"]["max_rel"] is None and document["validation"]["first_difference"]


def test_export_and_import_weights(folder):  # noqa: F811
    check("export", "model.onnx", "-o", "model_pt")
    check("import-weights", "model.onnx", "model_pt/model.safetensors", "-o", "trained.onnx")
    check("import-weights", "model.onnx", "model_pt/model.safetensors", "-o", "again.onnx", "--no-validate")


@pytest.mark.slow
def test_export_in_its_other_forms(folder):  # noqa: F811
    check("export", "model.onnx", "-o", "other_pt", "--no-validate")
    check("export", growing.usual("llama").path, "-o", "llama_hf", "--format", "hf")


def test_check_rules(folder):  # noqa: F811
    text = (ROOT / "examples" / "custom_rule" / "acme_rules.py").read_text(encoding="utf-8")
    Path("rules.py").write_text(text.replace("acme::", "schema::"), encoding="utf-8")
    Path("lies.py").write_text(text.replace("acme::", "schemaliar::").replace('other="f(0)=0"', 'other="keep"'), encoding="utf-8")
    check("check-rules", "rules.py"), check("check-rules", "lies.py", code=1)


def test_suggest_and_diff(folder):  # noqa: F811
    assert check("suggest", "model.onnx", "--params", "3M")["suggestions"]
    check("suggest", "gpt.onnx", "--memory", "100MB", "--precision", "fp32")
    run("expand", "model.onnx", "--hidden", 144, "--layers", 5, "--no-validate", "-o", "grown.onnx")
    assert check("diff", "model.onnx", "grown.onnx", code=1)["weights"]["changes"]
    assert check("diff", "model.onnx", "model.onnx")["same"]
    check("diff", "model.onnx", "gpt.onnx", code=1)


def test_report(folder):  # noqa: F811
    run("expand", "model.onnx", "--hidden", 144, "--layers", 5, "--no-validate", "-o", "grown.onnx")
    assert check("report", "model.onnx", "grown.onnx", "-o", "page.html", "--gradients")["gradients"]["live"]


@pytest.mark.slow
def test_demo(folder):  # noqa: F811
    check("demo", "--steps", 1), check("demo", "--steps", 1, "--keep", "here")


@pytest.mark.parametrize(("arguments", "code"), [
    (["inspect", "nothing.onnx"], 1), (["expand", "model.onnx", "--hidden", 100], 1), (["expand", "model.onnx"], 2), (["expand", "model.onnx", "--hiden", 3], 2),
    (["expand", "--recipe", "nothing.yaml"], 1), (["export", "model.onnx", "--format", "onnx"], 2), (["check-rules", "nothing.py"], 2),
])
def test_errors(folder, arguments, code):  # noqa: F811
    check(*arguments, code=code)


def test_another_key_or_type_is_seen(folder):  # noqa: F811
    """Planted at every depth of real documents: a key too many, one too few, another type."""
    run("expand", "model.onnx", "--hidden", 144, "--no-validate", "-o", "grown.onnx")
    documents = [check("inspect", "grown.onnx"), check("expand", "model.onnx", "--hidden", 144, "--vocab", 300, "--layers", 5, "-o", "two.onnx"),
                 check("validate", "model.onnx", "grown.onnx")]
    free = {"sizes", "filled", "skipped", "ignored", "fixed", "data", "configs"}
    for document in documents:
        for path in _objects(document):
            if path and path[-1] in free:
                continue
            for change in (lambda at: at.update(more=1), lambda at: at.pop(next(iter(at)), None), lambda at: at.update({next(iter(at)): {"odd": []}})):
                changed = copy.deepcopy(document)
                at = changed
                for step in path:
                    at = at[step]
                change(at)
                assert problems(document["command"], changed), path


def _objects(part, path: tuple = ()):
    """Where the objects of a document are; of a list the first entry."""
    if isinstance(part, dict):
        if part and path[-2:-1] != ("outputs",) or path[-3:-2] == ("cases",):
            yield path
        for key, value in part.items():
            yield from _objects(value, (*path, key))
    elif isinstance(part, list) and part:
        yield from _objects(part[0], (*path, 0))
