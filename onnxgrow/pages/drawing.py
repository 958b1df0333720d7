"""The architecture before and after as a picture: each layer a bar of the residual width, with its attention and feed-forward widths in it, to scale."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..plan import Plan
from ..roles import Roles
from ..widths import Width

WIDE, LEFT, CAPTION = 280.0, 8.0, 34.0  # of the widest bar; margin; of the two lines above a stack
TALLEST, DEEPEST = 20.0, 400.0  # of a layer; of all layers of a stack together


@dataclass(frozen=True)
class Tower:
    """A stack of layers: for each width its (old, new) size, and for each layer of the grown model whether it is inserted."""

    name: str
    sizes: dict[str, tuple[int, int]]
    layers: tuple[bool, ...]

    @property
    def count(self) -> tuple[int, int]:
        """Layers before and after."""
        return len(self.layers) - sum(self.layers), len(self.layers)


@dataclass
class Drawing:
    """Bars (kind, x, y, width, height) and lines of text (x, y, words) in a box of this size, and the same in words."""

    width: float = WIDE + 2 * LEFT
    height: float = 0.0
    bars: list[tuple[str, float, float, float, float]] = field(default_factory=list)
    texts: list[tuple[float, float, str]] = field(default_factory=list)
    label: str = ""


def towers(plan: Plan) -> list[Tower]:
    """The stacks of a model and what becomes of them; one without repeated layers has a single nameless one."""
    model = plan.model
    if not model.stacks:
        return [Tower("the model", _sizes(plan, model.roles.widths[0]) if model.roles.widths else {}, (False,))]
    out = []
    for stack in model.stacks:
        order = plan.deeper.places[stack.name] if plan.deeper else []
        flags = [p.new for p in order] or [False] * len(stack.blocks)
        layers = [False] * stack.before + [new for new in flags for _ in range(stack.period)] + [False] * stack.after
        out.append(Tower(stack.name, _sizes(plan, _width_of(model.roles, stack.blocks[0].enters)), tuple(layers)))
    return out


def _width_of(roles: Roles, state: str) -> Width:
    """The hidden size that a state of the residual stream has."""
    s = roles.structure
    leaves = {leaf for d in s.dims[state] for leaf in s.leaves(d)}
    return next((w for w in roles.widths if leaves & set(s.leaves(w.hidden))), roles.widths[0])


def _sizes(plan: Plan, width: Width) -> dict[str, tuple[int, int]]:
    """(old, new) of hidden, heads, head_dim and ffn, where the model has them."""
    roles, target = plan.model.roles, plan.decisions.target.roles
    named = {base: width.role(base) for base in ("hidden", "heads", "head_dim", "ffn")}
    return {base: (roles.size(name), target.get(name, roles.size(name))) for base, name in named.items() if roles.size(name)}


def draw(found: list[Tower], after: bool, scale: float) -> Drawing:
    """One side of the picture; `scale` is the size that the widest bar stands for."""
    d, y, said = Drawing(), 6.0, []
    for tower in found:
        sizes = {base: pair[after] for base, pair in tower.sizes.items()}
        words = f"{tower.name}: {tower.count[after]}"
        detail = ", ".join(_words(sizes))
        d.texts += [(LEFT, y + 12, words), (LEFT, y + 27, detail)]
        said.append(f"{words}; {detail}" if detail else words)
        y = _layers(d, tower, after, y + CAPTION, scale) + 12
    d.height, d.label = y, ". ".join(said)
    return d


def widest(found: list[Tower]) -> float:
    """The largest width of any tower, in entries."""
    return max((max(_bars({b: pair[1] for b, pair in t.sizes.items()}).values(), default=1) for t in found), default=1)


def _words(sizes: dict[str, int]) -> list[str]:
    heads = [f"heads {sizes['heads']}" + (f" of {sizes['head_dim']}" if "head_dim" in sizes else "")] if "heads" in sizes else []
    return [f"hidden {sizes['hidden']}"] * ("hidden" in sizes) + heads + [f"ffn {sizes.get('ffn')}"] * ("ffn" in sizes)


def _bars(sizes: dict[str, int]) -> dict[str, int]:
    """How wide each bar of a layer is, in entries."""
    found = {"hidden": sizes.get("hidden", 1)}
    found |= {"attention": sizes["heads"] * sizes["head_dim"]} if {"heads", "head_dim"} <= sizes.keys() else {}
    return found | ({"ffn": sizes["ffn"]} if "ffn" in sizes else {})


def _layers(d: Drawing, tower: Tower, after: bool, y: float, scale: float) -> float:
    flags = tower.layers if after else [new for new in tower.layers if not new]
    each = min(TALLEST, DEEPEST / max(1, len(flags)))
    old, new = (_bars({b: pair[k] for b, pair in tower.sizes.items()}) for k in (0, 1))
    for inserted in flags:
        part = each * 0.85 / len(new)
        for k, (name, size) in enumerate(new.items()):
            kept, whole = (0 if inserted else old.get(name, size)), size if after else old.get(name, size)
            for kind, first, last in (("old", 0, kept), ("new", kept, whole)):
                if last > first:
                    d.bars.append((f"{kind} {name}", round(LEFT + first * WIDE / scale, 2), round(y + k * part, 2),
                                   round((last - first) * WIDE / scale, 2), round(part * 0.9, 2)))
        y += each
    return y
