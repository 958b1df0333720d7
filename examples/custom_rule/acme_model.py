"""A small transformer that uses two operators of a library `acme`, and a comparison of two such models.

    python acme_model.py make model.onnx
    python acme_model.py compare model.onnx model-h48.onnx
"""

import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

VOCAB, HIDDEN, HEADS, HEAD, FFN, LAYERS = 61, 24, 3, 8, 40, 2

LAYER = """
  n_{i} = LayerNormalization <axis = -1> (x_{i}, gain_a_{i}, bias_a_{i})
  q0_{i} = MatMul (n_{i}, wq_{i})
  k0_{i} = MatMul (n_{i}, wk_{i})
  v0_{i} = MatMul (n_{i}, wv_{i})
  q_{i} = acme.SplitHeads <num_heads = {heads}> (q0_{i})
  k1_{i} = acme.SplitHeads <num_heads = {heads}> (k0_{i})
  v_{i} = acme.SplitHeads <num_heads = {heads}> (v0_{i})
  k_{i} = Transpose <perm = [0, 1, 3, 2]> (k1_{i})
  s0_{i} = MatMul (q_{i}, k_{i})
  s_{i} = Mul (s0_{i}, scale)
  p_{i} = Softmax <axis = -1> (s_{i})
  c0_{i} = MatMul (p_{i}, v_{i})
  c1_{i} = Transpose <perm = [0, 2, 1, 3]> (c0_{i})
  c_{i} = Reshape (c1_{i}, flat)
  a_{i} = MatMul (c_{i}, wo_{i})
  h_{i} = Add (x_{i}, a_{i})
  m_{i} = LayerNormalization <axis = -1> (h_{i}, gain_f_{i}, bias_f_{i})
  u_{i} = MatMul (m_{i}, up_{i})
  g_{i} = acme.GatedSwish (u_{i})
  f_{i} = MatMul (g_{i}, down_{i})
  x_{next} = Add (h_{i}, f_{i})
"""

MODEL = """
<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
tiny (int64[batch, length] ids) => (float[batch, length, {vocab}] logits) {{
  x_0 = Gather (table, ids)
  {layers}
  z = LayerNormalization <axis = -1> (x_{last}, gain, bias)
  logits = MatMul (z, head)
}}
"""

# What acme's own library does; written as functions here, so that ONNX Runtime can run it
BODIES = """
<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
unused (float[n] x) => (float[n] y) { y = Identity (x) }

<domain: "acme", opset_import: ["" : 17]>
GatedSwish (x) => (y) {
  gate, up = Split <axis = -1> (x)
  open = Sigmoid (gate)
  swish = Mul (gate, open)
  y = Mul (swish, up)
}

<domain: "acme", opset_import: ["" : 17]>
SplitHeads <num_heads> (x) => (y) {
  keep = Constant <value_ints: ints = [0, 0]> ()
  rest = Constant <value_ints: ints = [-1]> ()
  one = Constant <value_ints: ints = [1]> ()
  heads = Constant <value_int: int = @num_heads> ()
  several = Reshape (heads, one)
  shape = Concat <axis = 0> (keep, several, rest)
  apart = Reshape (x, shape)
  y = Transpose <perm = [0, 2, 1, 3]> (apart)
}
"""


def make(path: str) -> None:
    """Write the model as acme's users have it: with acme's operators, and random weights."""
    layers = "".join(LAYER.format(i=i, next=i + 1, heads=HEADS) for i in range(LAYERS))
    model = parser.parse_model(MODEL.format(vocab=VOCAB, layers=layers, last=LAYERS))
    random = np.random.default_rng(0)
    weights = {"table": (VOCAB, HIDDEN), "gain": HIDDEN, "bias": HIDDEN, "head": (HIDDEN, VOCAB)}
    for i in range(LAYERS):
        weights |= {f"{n}_{i}": HIDDEN for n in ("gain_a", "bias_a", "gain_f", "bias_f")}
        weights |= {f"{n}_{i}": (HIDDEN, HEADS * HEAD) for n in ("wq", "wk", "wv")}
        weights |= {f"wo_{i}": (HEADS * HEAD, HIDDEN), f"up_{i}": (HIDDEN, 2 * FFN), f"down_{i}": (FFN, HIDDEN)}
    for name, shape in weights.items():
        held = 0.3 * random.standard_normal(shape) + name.startswith("gain")
        model.graph.initializer.append(numpy_helper.from_array(held.astype(np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, HEADS * HEAD]), "flat"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(HEAD**-0.5), "scale"))
    onnx.save(model, path)


def run(path: str, ids: np.ndarray) -> np.ndarray:
    """The logits [batch, length, vocab] of a model, with acme's operators given as functions."""
    model = onnx.load(path)
    model.functions.extend(parser.parse_model(BODIES).functions)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": ids})[0]


def compare(first: str, second: str) -> float:
    """Largest difference between two models, relative to the largest logit."""
    ids = np.random.default_rng(1).integers(0, VOCAB, (5, 13))
    want, got = run(first, ids), run(second, ids)
    return float(np.abs(got - want).max() / np.abs(want).max())


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    if command == "make":
        make(*paths)
    else:
        print(f"largest relative difference: {compare(*paths):.1e}")
