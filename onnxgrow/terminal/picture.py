"""A model as a picture: what goes in, the residual stream with its layers, what comes out, and the parameters of each part beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from ..architecture import Architecture, StackInfo, WidthInfo, is_parameter
from ..console import one_line
from ..describe import fixed_lines, stack_lines
from ..inputs import fixed_sizes
from ..parts import ATTENTION, BACK, CROSS, FEED, FRONT, HEAD, INPUT, INSIDE, NORMS, OTHER, OUTPUT, POSITIONS, WORDS, Part, find_parts
from .dims import dim_rows
from .mode import verbose
from .numbers import count

if TYPE_CHECKING:
    from ..model import Model

STYLES = {ATTENTION: "magenta", CROSS: "bright_magenta", FEED: "green", NORMS: "blue", WORDS: "yellow", POSITIONS: "yellow", INPUT: "yellow", HEAD: "yellow", OUTPUT: "yellow"}
STREAM, FRAME, FAINT = "bold cyan", "dim", "dim"
WIDE = 110  # columns from which bars are drawn beside the shares
BAR = 24
FEW = 4  # dims of single weights; more are listed with --verbose only
STEP = "step: the smallest growth · grows with it: what follows if this alone is asked"
SHOWN = 6  # inputs or outputs by name; of more only the number is said


@dataclass(frozen=True)
class Row:
    """A line of the picture: pieces of (text, style), and the part whose parameters stand beside it."""

    pieces: tuple[tuple[str, str], ...]
    part: Part | None = None
    layers: int = 1


def model_screen(model: Model, width: int) -> list:
    """What `inspect` draws, as rich renderables for a terminal of so many columns."""
    a = model.architecture
    parts = find_parts(model.roles, model.stacks)
    return [*_title(model, a), _table(list(_rows(model, a, parts, width)), parts, width), _legend(), *_dims(model, a), *_nodes(a)]


def _title(model: Model, a: Architecture) -> list:
    from rich.text import Text

    graph = model.roles.structure.graph
    fed, given = _names(model, [v.name for v in graph.fed]), _names(model, graph.given)
    made = f"{_types(model)} · opset {a.opset} · {a.producer or 'unknown exporter'}"
    return [Text.assemble((one_line(model.path.name), "bold"), f"  {a.layers} layer{'s' * (a.layers != 1)}, {count(a.parameters)} parameters"),
            Text(one_line(made), FAINT), Text(one_line(f"{fed} → {given}"), FAINT), *(Text(line, "yellow") for line in fixed_lines(fixed_sizes(model.roles.structure))), Text("")]


def _names(model: Model, names: list[str]) -> str:
    """Inputs or outputs; caches and what is too long to be read as a number."""
    caches = model.roles.caches(names)
    rest = [n for n in names if n not in caches]
    shown = ", ".join(rest) if len(rest) <= SHOWN else f"{', '.join(rest[:SHOWN - 1])} and {len(rest) - SHOWN + 1} more"
    return shown + (f" (and {len(caches)} of a cache)" if caches else "")


def _types(model: Model) -> str:
    """The type that most matrices are stored in."""
    from onnx import TensorProto

    graph = model.roles.structure.graph
    kinds = Counter(graph.weight_type(t) for t in graph.weights if graph.users.get(t) and is_parameter(graph.weight_type(t), graph.weight_shape(t)))
    name = TensorProto.DataType.Name(kinds.most_common(1)[0][0]).lower() if kinds else "float"
    return {"float": "float32", "double": "float64"}.get(name, name)


def _rows(model: Model, a: Architecture, parts: list[Part], width: int) -> Iterator[Row]:
    """Every stack of layers from top to bottom."""
    stacks = sorted(a.stacks, key=lambda s: next((i for i, p in enumerate(parts) if p.stack == s.name), 0)) if a.stacks else [None]
    for stack in stacks:
        own = _width_of(model, a, stack)
        mine = [p for p in parts if stack is None or p.stack == stack.name]
        yield from _tower(_Tower(model, a, stack, own, mine, _room(width), len(stacks) > 1))


def _room(width: int) -> int:
    """Columns of the drawing itself."""
    return min(width - 33, 60) if width < WIDE else min(width - 33 - BAR - 2, 72)


def _width_of(model: Model, a: Architecture, stack: StackInfo | None) -> Architecture | WidthInfo:
    """The hidden size that a stack runs along, with what belongs to it."""
    if not a.widths or stack is None:
        return a
    from ..ties import find

    s = model.roles.structure
    block = next(x for x in model.stacks if x.name == stack.name).blocks[0]
    hidden = find(s.dims[block.leaves][-1])
    return next((w for w, d in zip(a.widths, model.roles.widths) if find(d.hidden) is hidden), a.widths[0])


@dataclass(frozen=True)
class _Tower:
    """One stack and what stands before and behind it."""

    model: Model
    a: Architecture
    stack: StackInfo | None
    own: Architecture | WidthInfo
    parts: list[Part]
    room: int
    named: bool

    def at(self, place: str, kind: str) -> Part | None:
        return next((p for p in self.parts if (p.place, p.kind) == (place, kind)), None)

    @property
    def layers(self) -> int:
        return self.stack.layers if self.stack else max(self.a.layers, 1)


def _tower(t: _Tower) -> Iterator[Row]:
    hidden = t.own.hidden
    for kind, text in ((WORDS, _rows_of(t.at(FRONT, WORDS), hidden)), (INPUT, f"to {hidden}"),
                       (POSITIONS, _rows_of(t.at(FRONT, POSITIONS), hidden)), (NORMS, t.own.norm or "")):
        if part := t.at(FRONT, kind):
            yield Row((("  ", ""), (f"{kind:<13}", STYLES[kind]), (text, "")), part)
    yield _stream(hidden)
    yield from _box(t)
    yield _stream(hidden)
    for kind, text in ((NORMS, t.own.norm or ""), (WORDS, ""), (POSITIONS, ""), (OUTPUT, f"from {hidden}"), (HEAD, f"{hidden} → {t.a.vocab}")):
        if part := t.at(BACK, kind):
            yield Row((("  ", ""), (f"{kind:<13}", STYLES[kind]), (text, "")), part)
    if any(p.tied for p in t.parts):
        yield Row((("  ", ""), (f"{HEAD:<13}", STYLES[HEAD]), (f"{hidden} → {t.a.vocab}, tied: the words again", "")))
    yield Row(())


def _rows_of(part: Part | None, hidden: int | None) -> str:
    """The shape of a table as wide as the stream."""
    return f"{part.parameters // hidden} × {hidden}" if part and hidden and part.parameters % hidden == 0 else ""


def _stream(hidden: int | None) -> Row:
    return Row((("      ", ""), ("┃", STREAM), (f" {hidden}", FAINT)))


def _box(t: _Tower) -> Iterator[Row]:
    period = f", alike every {t.stack.period}" if t.stack and t.stack.period > 1 else ""
    name = f"{t.stack.name.replace('_layers', '').replace('.layers', '')}: " if t.named and t.stack else ""
    title = f" {name}{t.layers} layer{'s' * (t.layers != 1)}{period} "
    title = title if len(title) <= t.room - 9 else f" {t.layers} layers "
    yield Row((("╭─────", FRAME), ("╂", STREAM), ("─" * (t.room - 9 - len(title)), FRAME), (title, "bold"), ("─╮", FRAME)))
    branches = [(kind, _order(t, kind), _sizes(t, kind)) for kind in (ATTENTION, CROSS, FEED) if t.at(INSIDE, kind)]
    for kind, order, sizes in branches:
        first, *rest = wrap(order if len(order) <= t.room - 11 else order.replace(t.own.norm or "norm", "norm"), t.room - 11)
        yield _inside(t, "┣━ ", first, kind, t.at(INSIDE, kind))
        for line in rest:
            yield _inside(t, "┃  ", line, kind, None)
        for line in wrap(sizes, t.room - 11):
            yield _inside(t, "┃  ", line, "", None)
    for kind, words in ((NORMS, t.own.norm or ""), (WORDS, ""), (POSITIONS, "for all layers"), (HEAD, ""), (OUTPUT, ""), (OTHER, "")):
        if part := t.at(INSIDE, kind):
            yield _inside(t, "┃  ", f"{kind}  {words}", kind, part)
    yield Row((("╰─────", FRAME), ("╂", STREAM), ("─" * (t.room - 8), FRAME), ("╯", FRAME)))


def _inside(t: _Tower, start: str, text: str, kind: str, part: Part | None) -> Row:
    room = t.room - 11
    return Row((("│     ", FRAME), (start, STREAM), (f"{text:<{room}}", STYLES.get(kind, "")), (" │", FRAME)), part, 1 if kind == POSITIONS else t.layers)


def _order(t: _Tower, kind: str) -> str:
    """Where the norms of a branch stand."""
    norm, place = t.own.norm, t.own.norm_place
    before = f"{norm} → " * (norm is not None and place in ("before", "around"))
    return f"{before}{kind} → " + (f"{norm} → +" if place == "around" and norm else f"+ → {norm}" if place == "after" and norm else "+")


def _sizes(t: _Tower, kind: str) -> str:
    own = t.own
    if kind == FEED:
        experts = t.model.roles.size("experts")
        feed = f"{own.hidden} → {own.ffn} → {own.hidden}" if own.ffn else f"{own.hidden}"
        acts = f", {'gated ' * own.gated}{own.activation}" if own.activation else ""
        return (f"{experts} experts of " if experts else "") + feed + acts
    heads = f"{own.heads} heads of {own.head_dim}" if own.heads else f"one head of {own.head_dim}"
    shared = f", {own.kv_heads} kv head{'s' * (own.kv_heads > 1)}" if own.heads and own.kv_heads and own.kv_heads != own.heads else ""
    return heads + shared + (", rotary" if t.a.rotary and kind == ATTENTION else "") + (", keys from elsewhere" if kind == CROSS else "")


def _table(rows: list[Row], parts: list[Part], width: int):
    """The drawing with the parameters of its parts beside it."""
    from rich.table import Table
    from rich.text import Text

    total = sum(p.parameters for p in parts) or 1
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True, width=_room(width))
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column(no_wrap=True)
    table.add_row("", *(Text(x, FAINT) for x in ("a layer", "parameters", "share")))
    for row in rows:
        text = Text.assemble(*((one_line(piece), style) for piece, style in row.pieces))
        p = row.part
        if p is None:
            table.add_row(text)
            continue
        each = count(p.parameters // row.layers) if row.layers > 1 and p.parameters % row.layers == 0 else f"~{count(round(p.parameters / row.layers))}" if row.layers > 1 else ""
        share = p.parameters / total
        bar = [Text(_bar(share), STYLES.get(p.kind, ""))] * (width >= WIDE)
        table.add_row(text, Text(each, FAINT), count(p.parameters), f"{share:.0%}" if share >= 0.005 else "<1%", *bar)
    return table


def _bar(share: float) -> str:
    """A bar in eighths of a column, as long as a share of the widest possible one; something is always seen."""
    eighths = max(round(share * BAR * 8), 1)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _legend():
    from rich.text import Text

    return Text.assemble(("┃", STREAM), (" the residual stream   ", FAINT), ("┣━", STREAM), (" a branch: reads the stream, is added to it at +", FAINT))


def _dims(model: Model, a: Architecture) -> list:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=FAINT)
    for title, how in (("dim", {"overflow": "fold", "min_width": 10, "ratio": None}), ("size", {}), ("where", {"overflow": "fold"}), ("step", {"justify": "right"}),
                       ("grows with it", {"overflow": "fold", "min_width": 16})):
        table.add_column(title, **how)
    rows = dim_rows(model.roles, a)
    single = [r for r in rows if "[" in r.name]
    hidden = single if len(single) > FEW and not verbose() else []
    for r in [r for r in rows if r not in hidden]:
        style = "" if r.step else FAINT
        table.add_row(*(Text(one_line(x), style) for x in (r.name, r.size, r.where, str(r.step or "-"), r.follows)))
    return [Text(""), Text("What can grow: --hidden, --heads, --ffn and the like, or --set NAME=SIZE", "bold"), table, Text(STEP, FAINT),
            *[Text(f"and {len(hidden)} axes of single weights (-v lists them)", FAINT)] * bool(hidden)]


def _nodes(a: Architecture) -> list:
    """With --verbose: which nodes of the file each layer is."""
    from rich.text import Text

    return [Text(""), Text(one_line("Layers, and their nodes from first to last"), "bold"), *(Text(one_line(line)) for line in stack_lines(a))] if verbose() else []

