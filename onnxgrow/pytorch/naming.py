"""Names for sizes in the written code: roles of the model become fields of its configuration."""

from __future__ import annotations

from collections import Counter

from ..roles import Roles
from ..ties import Dim, find, summands
from .identifiers import identifier
from .sizes import is_constant
from .steps import Layer, Scope, Size


class SizeNames:
    """Which configuration field stands for a size.

    A field holds one number, or a list with one for each layer where layers differ. Fields are entered while the code is written; after the
    first pass it is known which of them differ (`settle`), and the second pass writes those as lists.
    """

    def __init__(self, roles: Roles):
        self.roles = roles
        self.leaves: dict[Dim, str] = {}
        for name, role in roles.roles.items():
            for d in role.instances:
                self.leaves.setdefault(find(d), self._field(name))
        for width in roles.widths:
            names = width.role("head_dim"), width.role("v_head_dim")
            head, value = (roles.roles.get(n) for n in names)
            if head and value and head.sizes == value.sizes and len(head.sizes) == 1:  # one number for both, until somebody grows one of them alone
                one, other = (self._field(n) for n in names)
                self.leaves |= {d: one for d, name in self.leaves.items() if name == other}
        self.seen: dict[str, dict[tuple[Scope, int | None], int]] = {}
        self.lists: set[str] = set()
        self.split: set[str] = set()

    def learn(self, layers: dict[Scope, Layer]) -> None:
        """Sizes that are nobody's role are called after the first layer that has them."""
        sizes: dict[str, int] = {}
        for path, layer in layers.items():
            words = {"Linear": ("in", "out"), "Embedding": ("rows", "width")}.get(layer.kind, ("out", "in", "height", "width"))
            for size, word in zip(layer.sizes, words):
                d = find(size.dim) if size.dim is not None else None
                if d is None or self.leaves.get(d) or d.form or d.size == 1:
                    continue
                parts = [p for p in path if not p.isdigit()]
                field = next((f for k in range(1, len(parts) + 1) if sizes.get(f := identifier("_".join([*parts[-k:], word]).lower()), d.size) == d.size), "")
                self.leaves[d] = field
                sizes.setdefault(field, d.size)

    def _field(self, role: str) -> str:
        """hidden, ffn ... as they are; `vision_hidden`; `bert.embeddings.token_type_embeddings.weight[0]` by the layer and the axis."""
        if "[" not in role:
            return identifier(role)
        path, _, axis = role[:-1].rpartition("[")
        parts = [p for p in path.split(".") if not p.isdigit()]
        if len(parts) < 2:
            return ""
        leaf = parts[-2] if parts[-1] in ("weight", "bias") else parts[-1]
        word = {"0": "rows" if "embed" in leaf.lower() and parts[-1] == "weight" else "out", "1": "in", "2": "height", "3": "width"}.get(axis, f"axis_{axis}")
        return identifier(f"{leaf}_{word}".lower())

    def text(self, size: Size, path: Scope) -> str | None:
        """Python text in terms of `config`, e.g. `3 * config.heads * config.head_dim`; None where the size is nobody's."""
        if not is_constant(size.numbers) or size.dim is None:
            return None
        text = self._of(find(size.dim), path)
        return text if text and "config." in text else None

    def _of(self, d: Dim, path: Scope) -> str | None:
        d = find(d)
        if self.leaves.get(d):
            return self._enter(self.leaves[d], path, d.size)
        if d.form is None:
            return self._half(d, path) or str(d.size)
        parts = [self._of(p, path) for p in (summands(d) if d.form[0] == "+" else d.form[1])]
        if any(p is None for p in parts):
            return None
        if d.form[0] == "+":
            counts = Counter(parts)
            if len(counts) == 1:
                return f"{len(parts)} * {_tight(parts[0])}" if len(parts) > 1 else parts[0]
            return " + ".join(p if n == 1 else f"{n} * {_tight(p)}" for p, n in counts.items())
        return " * ".join(_tight(p) for p in parts)

    def _half(self, d: Dim, path: Scope) -> str | None:
        """One of the parts of a size that consists of like parts (rotary halves), or what repeats key and value heads."""
        for whole, name in self.leaves.items():
            if name and whole.form and whole.form[0] == "+" and all(find(p) is d for p in whole.form[1]):
                return f"{self._enter(name, path, whole.size)} // {len(whole.form[1])}"
        for width in self.roles.widths:
            names = width.role("heads"), width.role("kv_heads")
            heads, kv = (self.roles.size(n) for n in names)
            if d in map(find, width.group) and heads and kv and heads == kv * d.size:
                return f"{self._enter(self._field(names[0]), path, heads)} // {self._enter(self._field(names[1]), path, kv)}"
        return None

    def _enter(self, field: str, path: Scope, value: int) -> str:
        place = next(((path[:i], int(p)) for i, p in enumerate(path) if p.isdigit()), ((), None))
        if field in self.split and place[1] is not None:
            field = f"{_stack_word(place[0])}_{field}"
        self.seen.setdefault(field, {})[place] = value
        if field in self.lists and place[1] is not None:
            return f"config.{field}[layer]"
        return f"config.{field}"

    def settle(self) -> bool:
        """After a pass: which fields must be lists? True where anything changed, and the code must be written again."""
        changed = False
        for field, places in list(self.seen.items()):
            if len(set(places.values())) == 1 or field in self.lists:
                continue
            changed = True
            stacks = {p for p, index in places if index is not None}
            if len(stacks) > 1 and field not in self.split:
                self.split.add(field)
            else:
                self.lists.add(field)
        if changed:
            self.seen = {}
        return changed

    def values(self) -> dict[str, int | list[int]]:
        """The configuration: every field that the code reads."""
        out: dict[str, int | list[int]] = {}
        for field, places in self.seen.items():
            if field in self.lists:
                numbers = {index: value for (_, index), value in places.items() if index is not None}
                out[field] = [numbers.get(i, 0) for i in range(max(numbers) + 1)]
            else:
                out[field] = next(iter(places.values()))
        return out


def _stack_word(path: Scope) -> str:
    """encoder or decoder, of the path of a list of layers."""
    return next((p for p in path if "coder" in p or "tower" in p or p in ("text", "vision")), path[-1] if path else "stack").lower()


def _tight(text: str) -> str:
    return f"({text})" if " + " in text or " // " in text else text
