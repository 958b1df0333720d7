"""From what was asked for to a new size for every atomic dim: the family's coupling, and the refusals.

`--hidden N` alone follows the family: where hidden = heads·head_dim in the source, heads grow at constant head_dim (kv heads keep
their ratio), dims of hidden's size that a linear map writes from hidden grow alike, and ffn keeps its ratio to hidden. In a model with
several hidden sizes all this holds for each of them, and a plain name means all of them where they have one size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd

from .dequantize import advice
from .errors import SizeError
from .expertsizes import no_experts, set_experts
from .positions import check_reach
from .request import Request
from .roles import Roles
from .structure import hint_for
from .terminal.guess import did_you_mean
from .ties import Dim, describe, factors, find, summands
from .vocabulary import check_vocabulary
from .widths import OWN, Width


@dataclass
class Target:
    """New sizes of atomic dims.

    Attributes:
        sizes: atomic dim -> new size, only those that change.
        regroup: kv dim -> (factor, its group dim): kv heads repeat `factor` times while each group of queries is cut into as many.
        roles: role name -> new size, for the report.
        notes: decisions that the user did not ask for by name.
    """

    sizes: dict[Dim, int] = field(default_factory=dict)
    regroup: dict[Dim, tuple[int, Dim]] = field(default_factory=dict)
    roles: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    coupled: dict[str, int] = field(default_factory=dict)  # dims that follow hidden but need not

    def size(self, d: Dim) -> int:
        """The new size of any dim."""
        d = find(d)
        if d in self.sizes:
            return self.sizes[d]
        if d.form is None:
            return d.size
        kind, parts = d.form
        out = 1 if kind == "*" else 0
        for p in parts:
            out = out * self.size(p) if kind == "*" else out + self.size(p)
        return out


def resolve(roles: Roles, request: Request, keep: frozenset[str] = frozenset()) -> Target:
    """New sizes for a request; `keep` names dims that stay although they would follow hidden.

    Raises:
        SizeError: the size shrinks, does not divide, names nothing, or belongs to a dim that cannot grow.
    """
    wanted = _checked(roles, request)
    target = Target()
    for width in roles.widths:
        _couple(roles, width, wanted, request, target, keep)
    experts = wanted.pop("experts", None)
    heads = {w.name: (wanted.pop(w.role("heads"), None), wanted.pop(w.role("kv_heads"), None)) for w in roles.widths}
    for name, value in ((w.role("head_dim"), w.role("v_head_dim")) for w in roles.widths):
        if name in wanted and value not in wanted and roles.size(value) == roles.size(name):
            wanted[value] = wanted[name]
    for name, size in wanted.items():
        for d in roles.roles[name].instances:
            _set(target, d, _new_size(roles, name, d, size), name)
        target.roles[name] = size
    for width in roles.widths:
        if heads[width.name] != (None, None):
            _set_heads(roles, width, target, *heads[width.name])
    if experts is not None:
        set_experts(roles, target, experts)
    target.sizes = {d: n for d, n in target.sizes.items() if n != d.size}
    _refuse_frozen(roles, target)
    return target


def _checked(roles: Roles, request: Request) -> dict[str, int]:
    wanted = {}
    if request.sizes.get("positions", 0) > (roles.size("positions") or 0):
        check_reach(roles)
    for name, size in _each(roles, request.sizes).items():
        check_vocabulary(roles, name)
        if name not in roles.roles:
            base = name.removesuffix("kv_heads")
            if base != name and f"{base}heads" in roles.roles:
                raise _no_kv_heads(roles, f"{base}heads")
            raise no_experts(roles.structure) if name == "experts" else _unknown_dim(roles, name)
        old = roles.size(name)
        if size < old:
            raise SizeError(f"{name} is {old} and cannot shrink to {size}", hint=f"ask for {old} or more")
        wanted[name] = size
    return wanted


def _no_kv_heads(roles: Roles, heads: str) -> SizeError:
    """Why kv heads are no size of their own beside these heads."""
    from .architecture import kv_heads_of

    width = next(w for w in roles.widths if w.role("heads") == heads)
    if any(find(d).form and find(d).form[0] == "+" for d in roles.roles[heads].instances):
        what = "this model takes its key or value heads apart one by one, so that none can be repeated beside another"
    elif kv_heads_of(roles, width) == 1:
        what = "this model has one kv head for all its query heads, and an axis of one entry cannot be told from none"
    else:
        what = "this model has no kv heads of their own: each query head has its key and value"
    return SizeError(what, hint=f"use {option(heads)}")


def _each(roles: Roles, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes by role: a plain name stands for those of all widths where they are equal; what is named in full comes first."""
    out = {}
    for name, size in sizes.items():
        found = roles.each(name) if name not in roles.roles else []
        if len({frozenset(roles.roles[n].sizes) for n in found}) > 1:
            told = ", ".join(f"{n} ({'/'.join(map(str, sorted(roles.roles[n].sizes)))})" for n in found)
            raise SizeError(f"this model has several sizes named {name}: {told}", hint=f"say which: {' or '.join(f'--set {n}=SIZE' for n in found)}")
        out |= {n: size for n in found or [name] if n not in sizes or n == name}
    return out


def option(role: str) -> str:
    """How a role is asked for on the command line."""
    return f"--{role.replace('_', '-')}" if role in OWN else f"--set {role}="


def _unknown_dim(roles: Roles, name: str) -> SizeError:
    """A wrong name, or a dim that hides behind a node that is not understood."""
    blocked = roles.structure.blocked
    if name in OWN and blocked:
        _, reason, node = blocked[0]
        return SizeError(f"no {name} found in the part of the graph that is understood: {reason}", node=node.label,
                         hint=hint_for(reason, node, "grow a dim that `onnxgrow inspect` lists"))
    known = [n for n in roles.roles if "[" not in n]
    why, node = _why_none(roles, name)
    meant = did_you_mean(name, [*roles.roles, *(w.layers for w in roles.widths)])
    listed = f"one of: {', '.join(known)}, or another that `onnxgrow inspect` lists"
    return SizeError(f"the model has no dim named {name!r}{why}", node=node,
                     hint=advice(roles.structure.graph.source, f"{meant} {listed}" if meant else listed))


def _why_none(roles: Roles, name: str) -> tuple[str, str | None]:
    """Why attention does not show a size, and the node that should."""
    if name not in ("heads", "kv_heads", "head_dim", "v_head_dim"):
        return "", None
    if not roles.attention:
        return ": no Softmax stands between two products of activations", None
    label = roles.attention[0].softmax.label
    if name == "kv_heads" and "heads" in roles.roles:
        return ": keys and values have as many heads as queries", label
    if name in ("heads", "kv_heads") and "head_dim" in roles.roles:
        return ": there is one head, and an axis of one entry cannot be told from none", label
    return ": the products around the Softmax do not sum over one axis each", label


def _couple(roles: Roles, width: Width, wanted: dict[str, int], request: Request, target: Target, keep: frozenset[str]) -> None:
    """Sizes that follow from a hidden size."""
    at, heads_at, kv_at, dim_at, ffn_at = (width.role(n) for n in ("hidden", "heads", "kv_heads", "head_dim", "ffn"))
    hidden, n = wanted.get(at), roles.size(at)
    if hidden is None or hidden == n or request.only_hidden:
        return
    heads, head_dim = roles.size(heads_at), roles.size(dim_at)
    if heads and head_dim and heads * head_dim == n and not {heads_at, kv_at, dim_at} & wanted.keys():
        if hidden % head_dim:
            low = hidden // head_dim * head_dim
            near = ", ".join(str(v) for v in (low, low + head_dim) if v > n)
            raise SizeError(f"{at} {hidden} is not a whole number of heads of {head_dim}",
                            hint=f"ask for {near}, or give --only-hidden, or a size for {option(heads_at)} or {option(dim_at)} as well")
        wanted[heads_at] = hidden // head_dim
        target.notes.append(f"{heads_at} follow hidden at head_dim {head_dim}: {heads} -> {wanted[heads_at]}")
    if ffn_at in roles.roles and ffn_at not in wanted:
        ffn = roles.size(ffn_at)
        wanted[ffn_at] = _scaled(ffn, hidden, n)
        target.notes.append(f"{ffn_at} keeps its ratio to hidden{'' if ffn * hidden % n == 0 else ', rounded'}: {ffn} -> {wanted[ffn_at]}")
    written = {w for lin in roles.linears if lin.reads in roles.roles[at].instances for w in lin.writes}
    for name, role in roles.roles.items():
        if "[" not in name or role.size != n or not set(role.instances) & written:
            continue
        if name in keep:
            target.notes.append(f"{name} stays at {n}: it could not follow hidden and keep the function")
        elif name not in wanted:
            wanted[name] = target.coupled[name] = hidden
            target.notes.append(f"{name} has hidden's size and is written from it: {n} -> {hidden}")


def _new_size(roles: Roles, name: str, d: Dim, size: int) -> int:
    """Where places differ in size, tables of positions get equally many more rows, other dims grow by one factor."""
    if name == "positions":
        return d.size + size - roles.size(name)
    return size if len(roles.roles[name].sizes) == 1 else _scaled(d.size, size, roles.size(name))


def _scaled(size: int, new: int, old: int) -> int:
    return max(size, round(size * new / old))


def _set(target: Target, d: Dim, size: int, name: str) -> None:
    """Give a dim, atomic or not, a new size: parts of a sum keep their shares, a product grows in its major factor."""
    d = find(d)
    if target.sizes.get(d, size) != size:
        raise SizeError(f"{name} would have to be {target.sizes[d]} and {size}", hint="give only one of the sizes that share this dim")
    if d.form is None:
        target.sizes[d] = size
    elif d.form[0] == "*":
        _set_product(target, d, size, name)
    else:
        _set_sum(target, d, size, name)


def _set_product(target: Target, d: Dim, size: int, name: str) -> None:
    major, *inner = factors(d)
    step = d.size // major.size
    if size % step:
        low = size // step * step
        raise SizeError(f"{name} is {describe(d)}: {size} is no multiple of {step}", hint=f"ask for {max(low, d.size)} or {low + step}")
    _set(target, major, size // step, name)


def _set_sum(target: Target, d: Dim, size: int, name: str) -> None:
    parts = summands(d)
    if all(p.size == 1 for p in parts):
        raise SizeError(f"{name} is {describe(d)}: an axis of one entry cannot be told from one that is spread over others",
                        hint="grow another dim")
    kinds = list(dict.fromkeys(find(p) for p in parts))
    counts = {k: sum(find(p) is k for p in parts) for k in kinds}
    steps = {k: _step(k) * counts[k] for k in kinds}
    new = {k: k.size + max(0, k.size * size // d.size - k.size) // _step(k) * _step(k) if k.size > 1 else 1 for k in kinds}
    rest = size - sum(new[k] * counts[k] for k in kinds)
    for k in sorted((k for k in kinds if k.size > 1), key=lambda k: counts[k]):  # what is left goes to a part that occurs once, if there is one
        if rest and rest % steps[k] == 0:
            new[k] += rest // counts[k]
            rest = 0
    if rest:
        step = gcd(*steps.values())
        low = d.size + (size - d.size) // step * step
        raise SizeError(f"{name} is {describe(d)} and grows by multiples of {step}", hint=f"ask for {low} or {low + step}")
    for k in kinds:
        _set(target, k, new[k], name)


def _step(d: Dim) -> int:
    """What a dim grows by at least: a product by its inner factors."""
    major = factors(d)[0]
    return d.size // major.size * (gcd(*(_step(p) for p in summands(major))) if len(summands(major)) > 1 else 1)


def _set_heads(roles: Roles, width: Width, target: Target, heads: int | None, kv: int | None) -> None:
    """Query heads and kv heads: whole groups are appended, groups get longer, or (kv alone) keys and values are repeated."""
    at, kv_at = width.role("heads"), width.role("kv_heads")
    old, old_kv = roles.size(at), roles.size(kv_at)
    if old_kv is None:
        for d in roles.roles[at].instances:
            _set(target, d, _new_size(roles, at, d, heads), at)
        target.roles[at] = heads
        return
    group = old // old_kv
    if kv is None and heads % group:
        low = heads // group * group
        raise SizeError(f"{heads} heads are no whole number of groups: {group} query heads share a kv head",
                        hint=f"ask for {max(low, old)} or {low + group}, or give {option(kv_at)} as well")
    kv = heads // group if kv is None else kv
    repeat = heads is None
    heads = old if heads is None else heads
    if heads % kv:
        good = [k for k in range(old_kv, heads + 1) if heads % k == 0 and (k % old_kv == 0)]
        raise SizeError(f"{heads} query heads cannot share {kv} kv heads evenly", hint=f"ask for kv_heads {' or '.join(map(str, good))}, or give {option(at)} too")
    target.roles |= {at: heads, kv_at: kv}
    new_group, factor = heads // kv, kv // old_kv if kv % old_kv == 0 else 0
    if new_group < group and not (factor and group % factor == 0 and new_group >= group // factor):
        raise SizeError(f"{kv} kv heads for {heads} query heads would cut groups of {group} unevenly",
                        hint=f"ask for kv_heads {old_kv * group} with {old_kv * group} heads, or whole groups: {option(at)} {kv * group}")
    for k in width.kv:
        target.sizes[k] = kv
    for g in width.group:
        target.sizes[g] = new_group
    if new_group < group:
        target.regroup |= {k: (factor, g) for k, g in zip(width.kv, width.group)}
        target.notes.append(f"each kv head serves fewer queries: keys and values are repeated {factor} times" if repeat else "keys and values are repeated")


def _refuse_frozen(roles: Roles, target: Target) -> None:
    frozen = roles.structure.frozen
    for d in target.sizes:
        if d in frozen:
            reason, node = frozen[d]
            name = next((n for n, r in roles.roles.items() if d in roles.leaves_of(n)), f"dim of size {d.size}")
            raise SizeError(f"{name} cannot grow: {reason}", node=node.label, axis=_axis_of(roles, node, d),
                            hint=hint_for(reason, node, "grow another dim"))


def _axis_of(roles: Roles, node, d: Dim) -> int | None:
    s = roles.structure
    return next((i for t in [*node.inputs, *node.outputs] for i, x in enumerate(s.dims.get(t, ())) if d in s.leaves(x)), None)
