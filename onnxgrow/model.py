"""The public face: load a model, look at it, plan a growth, write it.

    import onnxgrow
    model = onnxgrow.load("model.onnx")
    plan = model.plan(hidden=1024)
    print(plan.certificate)
    plan.write("grown.onnx")
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from .architecture import Architecture, count_parameters, read_architecture
from .blocks import Stack, find_stacks
from .deepen import Deepened, deepen
from .dequantize import dequantize as in_float
from .errors import SizeError
from .fed import refuse_fed_weights
from .folders import graphs_of, model_file
from .graph import build
from .inline import inline
from .notebook import shown_as
from .plan import Plan
from .provenance import request_of
from .request import SIZES, Depth, Request, once
from .roles import Roles, find_roles
from .rulebook import Registry, load_builtin, load_file
from .source import Source, open_source
from .structure import tie
from .subgraphs import spread
from .understood import understood
from .unfold import unfold


class Model:
    """A transformer in an ONNX file. Opening reads the graph only; weights stay on disk.

    Args:
        path: the .onnx file, or a folder with one in it; external data beside it is found by itself.
        rules: files with rules for operators that onnxgrow does not know (they are Python code and are run).
        dequantize: take the float model that a quantized file stands for; its function is the one that growths keep.
    Raises:
        FileError, GraphError: the file is damaged, or no transformer is found in it.
    """

    def __init__(self, path: str | os.PathLike, rules: tuple[str, ...] = (), dequantize: bool = False):
        self._begin(rules)
        self.path = model_file(Path(path))
        with understood():
            opened = open_source(self.path)
            self._read(in_float(opened) if dequantize else opened)

    @classmethod
    def of(cls, opened: Source, like: Model) -> Model:
        """A model of which the graph is read already, with the rules of another one."""
        self = cls.__new__(cls)
        self.registry, self.rules, self.path = like.registry, like.rules, opened.path
        with understood():
            self._read(opened)
        return self

    def _begin(self, rules: tuple[str, ...]) -> None:
        self.registry: Registry = load_builtin()
        for file in rules:
            load_file(str(file))
        self.rules = tuple(map(str, rules))

    def _read(self, opened: Source) -> None:
        self.opened: Source = opened
        self.source: Source = spread(inline(self.opened, self.registry), self.registry)
        graph = build(self.source)
        refuse_fed_weights(graph)
        self.plain: Source = unfold(self.source, self.registry)
        self.roles: Roles = find_roles(tie(graph if self.plain is self.source else build(self.plain), self.registry))

    _repr_html_ = shown_as("model")
    members: tuple = ()  # graphs of a model in several
    files: list = []  # that hold them (`joint`)

    @property
    def dequantized(self) -> bool:
        """Is this the float form of a quantized file?"""
        return self.source.temporary is not None

    @cached_property
    def stacks(self) -> list[Stack]:
        """The repeated layers."""
        with understood():
            return find_stacks(self.roles)

    @cached_property
    def parameters(self) -> int:
        """Float weights; asks for no more than that, as every plan does."""
        with understood():
            return count_parameters(self.roles)

    @cached_property
    def architecture(self) -> Architecture:
        """Sizes, norms, and every dim that can be asked for by name."""
        with understood():
            return read_architecture(self.roles, self.stacks)

    def plan(self, *, hidden: int | None = None, heads: int | None = None, kv_heads: int | None = None, head_dim: int | None = None,
             ffn: int | None = None, vocab: int | None = None, positions: int | None = None, experts: int | None = None,
             layers: int | None = None, encoder_layers: int | None = None, decoder_layers: int | None = None,
             only_hidden: bool = False, set: Mapping[str, int] | None = None, method: str = "auto",
             depth_method: str = "identity", placement: str = "interleave", block_init: str = "copy",
             vocab_init: str = "mean", pad_vocab_to: int | None = None,
             init_std: float | None = None, seed: int = 0, wake: float | None = None) -> Plan:
        """Decide a growth; nothing is written and no large weight is read.

        Args:
            hidden: the new width of the residual stream; alone it takes heads and ffn along as the family does.
            heads, kv_heads, head_dim: the new size, of this alone.
            ffn: the new width of the feed-forward part.
            vocab: the new number of words.
            positions: the new length of the position table, or of what else bounds the length.
            experts: the new number of experts.
            layers: the new number of layers, of every stack.
            encoder_layers, decoder_layers: of this one.
            only_hidden: `hidden` grows nothing else.
            set: new sizes of any dims that `architecture.dims` lists, by name.
            method: what new entries hold: auto | pad | copy | naive (not preserved).
            depth_method: how new blocks are silent: identity | gate | stack (not preserved).
            placement: where they go: interleave | end | start | stack | after:3,7 (layers counted from 0).
            block_init: what they start from: copy | random.
            vocab_init: what rows of new words hold: mean | zero | random.
            pad_vocab_to: round the number of words up to a multiple.
            init_std: standard deviation of new parts that nobody reads yet; None takes that of each old tensor.
            seed: of all random numbers; the same plan writes the same bytes.
            wake: noise for new parts that could otherwise never learn (near instead of exact).
        Raises:
            SizeError, MethodError, GraphError: the growth is refused, with node, axis and next step.
        """
        named = {"hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "ffn": ffn, "vocab": vocab,
                 "positions": positions, "experts": experts}
        sizes = once({name: size for name, size in named.items() if size is not None}, set or {})
        if pad_vocab_to:
            sizes |= {"vocab": -(-(sizes.get("vocab") or self.roles.size("vocab") or 1) // pad_vocab_to) * pad_vocab_to}
        stacks = {"layers": layers, "encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
        stacks = {name: count for name, count in stacks.items() if count is not None}
        stacks |= {name: sizes.pop(name) for name in list(sizes) if name.endswith("layers") and name not in self.roles.roles}
        depth = Depth(stacks, depth_method, placement, block_init) if stacks else None
        return self.planned(Request(sizes, only_hidden, method, init_std, seed, wake, depth, vocab_init, pad_vocab_to))

    def one_graph(self, command: str) -> None:
        """FileError where this model has several graphs, and a command takes one."""

    def planned(self, request: Request) -> Plan:
        """The plan of a request."""
        return Plan(self, request)

    def deepen(self, depth: Depth) -> Deepened:
        """The graph with more layers, as a source of its own."""
        return deepen(self.roles, self.stacks, depth)

    def plan_like(self, grown: Model) -> Plan:
        """The plan that leads from this model to a grown one: from the record in its file, else from its sizes.

        Raises:
            SizeError: a size is smaller in `grown`, so that it cannot have grown out of this model.
        """
        mine, theirs = self.roles.roles, grown.roles.roles
        for n in SIZES:
            if n in mine and n in theirs and theirs[n].size < mine[n].size:  # whatever the record says
                raise SizeError(f"GROWN is not grown from MODEL: its {n} is {theirs[n].size}, MODEL's is {mine[n].size}",
                                hint="give the source first and what grew out of it second: onnxgrow validate MODEL GROWN")
        request = request_of(grown.source.proto)
        if request:
            plan = self.planned(request)
            if all(theirs[n].size == new for n, (_, new) in plan.sizes.items() if n in theirs) and all(
                    theirs[n].size == mine[n].size for n in SIZES if n in mine and n in theirs and n not in plan.sizes):
                return plan  # else the file was grown more than once, and the record tells the last time
        sizes = {n: theirs[n].size for n in mine if n in theirs and theirs[n].size != mine[n].size}
        return self.planned(Request(sizes, only_hidden=True))

    def surgeon(self):
        """The graph as an onnx-graphsurgeon Graph, for surgery by hand (embedded weights above 1 KB are left out)."""
        import onnx_graphsurgeon as gs

        return gs.import_onnx(self.source.proto)


def load(path: str | os.PathLike, rules: tuple[str, ...] = (), dequantize: bool = False) -> Model:
    """Open a model: reads the graph, and leaves weights on disk.

    Args:
        path: the .onnx file, or a folder with one in it, or with an encoder and its decoders; external data beside it is found by itself.
        rules: files with rules for operators that onnxgrow does not know (they are Python code and are run).
        dequantize: take the float model that a quantized file stands for; its function is the one that growths keep.
    Returns:
        The `Model`.
    Raises:
        FileError: the file is missing, damaged, or not ONNX.
        GraphError: no transformer is found in it, or it needs a rule that is not there.
    """
    from .joint import JointModel

    return JointModel(path, rules, dequantize) if graphs_of(Path(path)) else Model(path, rules, dequantize)
