"""Refusals of `export --format hf`: how each message is provoked. These need transformers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np

from onnxgrow.model import Model
from onnxgrow.pytorch import parameters_of
from onnxgrow.pytorch.hugging import write_hf
from tests import zoo
from tests.error_cases import Act, Family, changed, raising
from tests.growing import Case, usual
from tests.zoo_models import SPECS

graph, size, equal, file = (Family(error) for error in ("GraphError", "SizeError", "NotEqualError", "FileError"))


def export(path: Path | str, like: Path | None = None, without: str = "") -> Act:
    """Write the folder, of all parameters but one."""
    def act():
        model = Model(Path(path))
        parameters = {name: make for name, make in parameters_of(model).items() if not without or not name.endswith(without)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_hf(model, parameters, "hf", like)
    return act


def grown(name: str, **sizes) -> Act:
    Model(usual(name).path).plan(**sizes).write("grown.onnx", validate=False)
    return export("grown.onnx")


def config(kind: str, **more) -> Path:
    """The folder `like` with a config of a model of the zoo."""
    held = SPECS[kind].build().model.config.to_dict() | more
    Path("like").mkdir()
    Path("like", "config.json").write_text(json.dumps(held))
    return Path("like")


# --- architectures --------------------------------------------------------------------------------------------------------

graph("no architecture of transformers that can be written has parameters named like these: …")(lambda f, p: export(Case("torch-encoder-prenorm").path))
graph("does not fit the graph: …")(lambda f, p: export(usual("vit").path, without="layers.1.mlp.fc2.weight"))


@graph("… is of the type …, which cannot be written")
def other_type(folder, patch):
    Path("like").mkdir()
    Path("like", "config.json").write_text('{"model_type": "gpt_neox"}')
    return export(usual("gpt2").path, Path("like"))


@graph("the first output fits no class of …")
def no_class(folder, patch):
    patch.setattr("onnxgrow.pytorch.hugging.choice._speaks", lambda f, name: False)
    return export(usual("gpt2").path)


@graph("the graph has a window of … positions, and Qwen2 may have it in some layers only")
def window(folder, patch):
    from onnxgrow.pytorch.hugging.facts import Facts

    patch.setattr(Facts, "window", 64)
    return export(usual("qwen2").path)


@graph("did not take these parameters as they are: …")
def lost(folder, patch):
    from onnxgrow.pytorch.hugging import write

    real = write.state_of

    def fewer(choice, f):
        state = real(choice, f)
        state.arrays.pop(next(key for key in state.arrays if key.endswith("c_fc.bias")))
        return state
    patch.setattr(write, "state_of", fewer)
    return export(usual("gpt2").path)


@graph("the input … is no argument of …")
def no_argument(folder, patch):
    def change(g):
        for names in [[v for v in g.input if v.name == "attention_mask"], g.node]:
            for held in names:
                if hasattr(held, "input"):
                    held.input[:] = ["real_tokens" if i == "attention_mask" else i for i in held.input]
                else:
                    held.name = "real_tokens"
    return export(changed(str(usual("bert-mlm").path), change))


@graph("the graph runs on none of the inputs that onnxgrow makes")
def no_inputs(folder, patch):
    patch.setattr("onnxgrow.pytorch.hugging.verify.cases", lambda *_: [])
    return export(usual("gpt2").path)


# --- sizes ----------------------------------------------------------------------------------------------------------------

size("… has no head size: hidden must be heads · head_dim, and … is not … · …")(lambda f, p: grown("gpt2", heads=5))
size("the rotary frequencies are no powers of one base, which is all that a plain config says: …")(lambda f, p: grown("llama", head_dim=16, method="copy"))


@size("the config has one epsilon for all norms, and the graph has several: …")
def epsilons(folder, patch):
    def change(g):
        norm = [n for n in g.node if n.op_type == "LayerNormalization"][1]
        next(a for a in norm.attribute if a.name == "epsilon").f = 1e-3
    return export(changed(str(usual("gpt2").path), change))


@size("layers differ in a size that a config states once: …")
def uneven(folder, patch):
    from onnxgrow.pytorch.hugging.names import Names

    layers = {f"h.{i}.mlp.c_fc.bias": lambda n=n: np.zeros(n) for i, n in enumerate((72, 80))}
    return lambda: Names(layers).size("mlp.c_fc.bias")


@size("the rotary frequencies of the config are not those of the graph")
def scaled_rope(folder, patch):
    rope = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
    return export(usual("llama").path, config("llama", rope_parameters=rope))


@size("… refuses these sizes: …")
def refused(folder, patch):
    patch.setattr("transformers.GPT2Config.__init__", raising(ValueError("n_embd must be a multiple of n_head")))
    return export(usual("gpt2").path)


@size("does not fit the graph: …")
def misfit(folder, patch):
    Model(zoo.export("bert-mlm", "dynamo")).plan(set={"val_187[1]": 64}).write("grown.onnx", validate=False)
    return export("grown.onnx")


@size("layers scale their scores differently, and … says … for all")
def scales(folder, patch):
    from onnxgrow.pytorch.hugging.facts import Facts

    patch.setattr(Facts, "scales", [0.5, 0.25])
    return export(usual("t5").path)


@size("norms have an epsilon of …, and … has … written down in its code")
def written_epsilon(folder, patch):
    def change(g):
        for norm in [n for n in g.node if n.op_type == "LayerNormalization"]:
            next(a for a in norm.attribute if a.name == "epsilon").f = 1e-3
    return export(changed(str(usual("distilbert").path), change))


@size("… rows of … are no whole number of heads of …")
def rows(folder, patch):
    from onnxgrow.pytorch.hugging.facts import Facts

    patch.setattr(Facts, "head_dim", 7)
    return export(usual("llama").path)


@size("… has … rows of queries, in heads of …")
def towers(folder, patch):
    """What the text tower of a CLIP is asked: here of a model whose heads are not found."""
    from onnxgrow.pytorch.hugging.facts import Facts
    from onnxgrow.pytorch.hugging.names import named

    model = Model(usual("clip-text").path)
    patch.setattr("onnxgrow.pytorch.hugging.readings.head_sizes", lambda roles: [])
    facts = Facts(model.roles, model.architecture, named(parameters_of(model)))
    return lambda: facts.of("text_model", "token_embedding.weight", "q_proj.weight")


# --- files and outputs ------------------------------------------------------------------------------------------------------


@file("cannot read …: there is no such file")
def no_config(folder, patch):
    Path("empty").mkdir()
    return export(usual("gpt2").path, Path("empty"))


@equal("… differs from … of the graph by …")
def differs(folder, patch):
    patch.setattr("onnxgrow.pytorch.hugging.readings.epsilons", lambda roles, width: [("norm", 1e-2)])
    return export(usual("gpt2").path)


@equal("no output of … has the shape of …")
def no_output(folder, patch):
    patch.setattr("onnxgrow.pytorch.hugging.verify._compare", lambda model, native, answers, real=False: __import__(
        "onnxgrow.pytorch.hugging.verify", fromlist=["Verified"]).Verified({"logits": ("logits", np.inf)}, ("a case",)))
    return export(usual("gpt2").path)


@equal("… does not run on inputs that the graph runs on (…): …")
def does_not_run(folder, patch):
    import functools

    from transformers import GPT2LMHeadModel

    fails = functools.wraps(GPT2LMHeadModel.forward)(raising(IndexError("index out of range in self")))
    patch.setattr(GPT2LMHeadModel, "forward", fails)
    return export(usual("gpt2").path)

