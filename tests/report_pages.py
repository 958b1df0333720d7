"""What the tests of the report and of notebooks share: growths with their pages, made once in a process, and a reader of such pages."""

from __future__ import annotations

import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
from onnx import numpy_helper

import onnxgrow
from onnxgrow.pages.facts import Facts, gather
from onnxgrow.pages.render import page
from tests import zoo
from tests.test_cli import MODELS

VOID = {"meta", "link", "br", "img"}
GROWTHS = {
    "depth": ("llama", {"hidden": 48, "layers": 4}),
    "bert": ("bert-mlm", {"hidden": 64}),
    "near": ("bert-mlm", {"hidden": 48, "layers": 4}),
    "means": ("gpt2", {"hidden": 48}),
    "experts": ("moe-batched", {"experts": 6, "hidden": 48}),
    "cache": ("gpt2-past", {"hidden": 48, "layers": 4, "vocab": 120}),
    "pair": ("t5", {"hidden": 48, "decoder_layers": 5}),
    "naive": ("tiny-llama", {"hidden": 144, "method": "naive"}),
}


class Page(HTMLParser):
    """Tables by caption (rows of texts), pictures, headings, and every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.tags, self.open, self.tables, self.headings, self.words = text, [], [], {}, [], []
        self.cell = self.caption = None
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "table":
            self.rows = []
        if tag in ("td", "th", "caption", "h1", "h2", "h3"):
            self.cell = ""

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())
        if tag in ("td", "th"):
            self.rows[-1].append(" ".join(self.cell.split()))
        elif tag == "caption":
            self.tables[" ".join(self.cell.split())] = self.rows
        elif tag in ("h1", "h2", "h3"):
            self.headings.append((int(tag[1]), self.cell.strip()))
        if tag in ("td", "th", "caption", "h1", "h2", "h3"):
            self.cell = None

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if self.cell is not None:
            self.cell += data

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())

    def table(self, start: str) -> list[list[str]]:
        """The rows below the head of the table whose caption starts so."""
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))[1:]

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@cache
def home() -> Path:
    return Path(mkdtemp(prefix="onnxgrow-report-"))


@cache
def grown(label: str) -> tuple[Path, Path]:
    """Source and grown file of a growth."""
    name, asked = GROWTHS[label]
    path = MODELS / "tiny-llama.onnx" if name == "tiny-llama" else zoo.export(name)
    folder = home() / label
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "model.onnx")
    onnxgrow.load(folder / "model.onnx").plan(**asked).write(folder / "grown.onnx", validate=False)
    return folder / "model.onnx", folder / "grown.onnx"


@cache
def facts(label: str) -> Facts:
    model, result = map(onnxgrow.load, grown(label))
    return gather(model, result, model.plan_like(result))


@cache
def shown(label: str) -> Page:
    return Page(page(facts(label)))


def numbers(path: Path) -> dict[str, np.ndarray]:
    """The float initializers of a file."""
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return {name: x for name, x in found.items() if x.dtype.kind == "f"}


def whole(text: str) -> int:
    return int(text.replace(",", ""))


HOSTILE = ['"><script>alert(1)</script>', "' onload=alert(1) x='", "</style><img src=x onerror=alert(1)>", "{{ 7 * 7 }}{% raw %}", "\x1b[31mred\u202egnp.exe",
           "javascript:alert(1)", "--><!-- ]]>", "</table></main></body>&lt;b&gt;", "`;x=1//", "a" * 300]  # fmt: skip


def renamed(path: Path, target: Path) -> None:
    """A model whose every node, tensor and weight has a hostile name."""
    proto = onnx.load(path)
    names: dict[str, str] = {"": ""}

    def new(old: str) -> str:
        at = len(names) + len(names) // len(HOSTILE)  # shifted, so that no pattern of a graph misses one
        return names.setdefault(old, f"{HOSTILE[at % len(HOSTILE)]}{len(names)}")

    for node in proto.graph.node:
        node.name = new("node " + node.name)
        node.input[:] = map(new, node.input)
        node.output[:] = map(new, node.output)
    for part in (proto.graph.initializer, proto.graph.input, proto.graph.output, proto.graph.value_info):
        for entry in part:
            entry.name = new(entry.name)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = new("dim " + dim.dim_param)
    proto.producer_name = HOSTILE[0]
    onnx.save(proto, target)
