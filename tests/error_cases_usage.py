"""UsageError, and the few bare OnnxgrowErrors: how each message is provoked."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import onnx
import yaml

from tests.error_cases import Family
from tests.test_check_rules import HEAD
from tests.test_cli import run
from tests.zoo import export as zoo_export

usage = Family("UsageError")
FFN = "expand model.onnx --ffn 300"

usage.lines({
    "no size asked for": "expand model.onnx",
    "several sizes asked for, which may contradict each other": "suggest model.onnx --params 3M --flops 2G",
    "… is not a number": "suggest model.onnx --params many",
    "… has no unit": "suggest model.onnx --memory 16",
    "… has an unknown unit": "suggest model.onnx --params 3Q",
    "is no size that a model can have": "suggest model.onnx --params 0",
    "is not NAME=SIZE": "expand model.onnx --set ffn",
    "is asked for twice: …": "expand model.onnx --hidden 144 --set hidden=192",
    "has no layer … that repeats": "expand model.onnx --layers 6 --placement after:9",
    "cannot be shared evenly behind …": "expand model.onnx --layers 7 --placement after:0,1",
    "says how layers are added, and none are asked for": "expand model.onnx --hidden 144 --placement end",
    "says how new words start, and none are asked for": "expand model.onnx --hidden 144 --vocab-init zero",
    "says what --hidden takes along, and there is no --hidden": "expand model.onnx --only-hidden --ffn 300",
    "--no-validate leaves nothing to do for --inputs and --provider": f"{FFN} --no-validate --provider cpu",
    "--plan writes nothing, and --torch is a folder to write": f"{FFN} --plan --torch x",
    "--like gives a Hugging Face folder to start from": "export model.onnx --like x",
    "is for --format torch: …": "export model.onnx --format hf --force",
    "--quiet and --verbose contradict each other": f"{FFN} -q -v",
    "no placement …": "expand model.onnx --layers 6 --placement middle",
    "cannot read inputs from …": f"{FFN} --inputs none.npz",
    "no rule file …": f"{FFN} --rules none.py",
    "no command …": "exspand model.onnx",
})


@usage("is inside one")
def inside(folder, patch):
    return f"expand {zoo_export('gemma2', 'torchscript')} --layers 6 --placement after:0 --no-validate -o grown.onnx"


@usage("no method …")
def unknown_word(folder, patch):
    from onnxgrow.model import Model

    return lambda: Model(Path("model.onnx")).plan(ffn=300, method="magic")


@usage("there is no provider …")
def no_provider(folder, patch):
    from onnxgrow.runtime import pick_provider

    return lambda: pick_provider("tpu")


# --- recipes ------------------------------------------------------------------------------------------------------------

RECIPES = {
    "no key … in a recipe": "hiden: 144",
    "cannot be read as YAML": "sizes: {",
    "is no recipe: …": "- hidden",
    "names rules": "rules: [evil.py]",
    "… is …, not …": "seed: 1.5",
    "the size of … is …, not a whole number above zero": "sizes: {hidden: 0}",
    "recipe: …": "method: best",
}


def recipe(text: str) -> str:
    Path("grow.yaml").write_text(text)
    assert "{" in text or yaml.safe_load(text) is not None
    return "expand model.onnx --recipe grow.yaml" + " --hidden 144" * ("sizes: {h" not in text)


for saying, text in RECIPES.items():
    usage(saying)(lambda folder, patch, text=text: recipe(text))


# --- inputs -------------------------------------------------------------------------------------------------------------


def feeding(command: str = FFN, **arrays) -> str:
    np.savez("feeds.npz", **arrays)
    return f"{command} --inputs feeds.npz"


INPUTS = {
    "there is no array for the input …": {"pixels": np.zeros(3)},
    "the model has no input …": {"input_ids": np.zeros((1, 3), np.int64), "pixels": np.zeros(3)},
    "has the shape …, the input …": {"input_ids": np.zeros(3, np.int64)},
    "is of type …, the input of type …": {"input_ids": np.zeros((1, 3), np.float32)},
    "the source model does not run on the given inputs: …": {"input_ids": np.full((1, 3), 9999)},
}
for saying, arrays in INPUTS.items():
    usage(saying)(lambda folder, patch, arrays=arrays: feeding(**arrays))


@usage("… is not a .npz file")
def no_archive(folder, patch):
    Path("bad.npz").write_text("hello")
    return f"{FFN} --inputs bad.npz"


@usage("… is …, but the graph needs …")
def uneven(folder, patch):
    path = zoo_export("llama-past", "torchscript")
    past = {v.name: np.ones((2, 2, 4, 8), np.float32) for v in onnx.load(path).graph.input if v.name.startswith("past")}
    return feeding(f"expand {path} --ffn 80 -o grown.onnx", input_ids=np.ones((2, 3), np.int64), attention_mask=np.ones((2, 6), np.int64), **past)


# --- reports ------------------------------------------------------------------------------------------------------------


def grown() -> str:
    assert run("expand", "model.onnx", "--ffn", 256, "--no-validate", "-o", "grown.onnx")[0] == 0
    return "report model.onnx grown.onnx"


@usage("names no weight that grows")
def no_weight(folder, patch):
    return grown() + " --weight nothing"


def without(module: str, patch) -> None:
    """As if a package were not installed."""
    real = builtins.__import__

    def missing(name, *rest):
        if name == module:
            raise ImportError(f"No module named {module!r}", name=module)
        return real(name, *rest)
    patch.setattr(builtins, "__import__", missing)


@usage("trains the model in PyTorch, which is not installed")
def no_torch(folder, patch):
    from onnxgrow.pages.gradients import measure

    without("torch", patch)
    return lambda: measure(None)


@usage("counts new entries, and the grown file does not record which these are")
def no_record(folder, patch):
    from onnxgrow import load
    from onnxgrow.pages.gradients import measure

    return lambda: measure(load(Path("gpt.onnx")))


# --- rules --------------------------------------------------------------------------------------------------------------

TWO = 'from onnxgrow.rulebook import Rule, rule\n@rule("cases::{0}")\ndef one(op):\n    return Rule("... -> ...")\n'
RULES = {
    "two rules for …": TWO.format("Double") + TWO.format("Double").replace("one", "two"),
    "a rule uses the treatment …": TWO.format("Odd").replace('"... -> ..."', '"... -> ...", other="sideways"') + 'from onnxgrow.operators import example\nEXAMPLES = [example("cases::Odd", (4, 6), reference=lambda x: x)]\n',
    "two unfoldings for …": 'from onnxgrow.rulebook import unfolds\n@unfolds("cases::Two")\ndef one(b):\n    b.gives(b.x(0))\n'
                            '@unfolds("cases::Two")\ndef two(b):\n    b.gives(b.x(0))\n',
    "… has no rules": "x = 1",
    "brings no examples to try its rules on": HEAD.replace("acme::Double", "cases::Bare"),
    "EXAMPLES of … holds …": HEAD.replace("acme::Double", "cases::Text") + 'EXAMPLES = ["Double"]',
    "ONNX Runtime cannot run …": HEAD.replace("acme::Double", "cases::Lone") + 'EXAMPLES = [example("cases::Lone", (4, 6))]',
    "the reference of … fails on its own example": HEAD.replace("acme::Double", "cases::Short") + 'EXAMPLES = [example("cases::Short", (4, 6), reference=lambda: 1)]',
}


def ruled(name: str, text: str) -> str:
    Path(f"{name}.py").write_text(text)  # a file that was loaded is not loaded again
    return f"check-rules {name}.py"


for saying, text in RULES.items():
    usage(saying)(lambda folder, patch, name="".join(filter(str.isalpha, saying)), text=text: ruled(name, text))


@usage("no example of the operator …")
def no_example(folder, patch):
    from onnxgrow.rulecheck import check_rule

    return lambda: check_rule("Nonesuch")


# --- what is not on this machine ------------------------------------------------------------------------------------------

bare = Family("OnnxgrowError")


@bare("no CUDA device can be used: …")
def no_cuda(folder, patch):
    patch.setattr("onnxgrow.runtime._cuda_problem", lambda: "this onnxruntime is built without CUDA")
    return f"{FFN} --provider cuda"


@bare("--format hf needs …")
def no_transformers(folder, patch):
    from onnxgrow.pytorch.hugging.write import _require

    without("transformers", patch)
    return _require
