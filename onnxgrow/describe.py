"""Plans and architectures as text and as JSON documents."""

from __future__ import annotations

from .architecture import Architecture, WidthInfo
from .axismap import AxisMap, Fill
from .modules import modules_of, with_module
from .recipe import Recipe

NAMES = {Fill.FREE: "free", Fill.DRAWN: "drawn", Fill.MEAN: "mean", Fill.ZERO: "zero"}

LEGEND = ["  free: nobody reads it yet, so random or as in [...]; mean, copy: of old entries;",
          "  shares: copies that sum to the old one; drawn: mean and noise; repair: a factor"]


def axis_fill(axis: AxisMap) -> str:
    """What the new entries of one axis hold, in words: `zero`, `free+zero` where parts differ, `-` where nothing grows."""
    if axis.is_identity:
        return "-"
    found = [NAMES[Fill(int(code))] for code in sorted(set(axis.fill.tolist()) - {Fill.OLD})]
    copies = (axis.fill == Fill.OLD).sum() > axis.old
    return "+".join(found + (["shares" if axis.share else "copy"] if copies else [])) or "kept"


def recipe_line(recipe: Recipe) -> dict:
    fills = [axis_fill(a) for a in recipe.axes]
    repair = f"· {recipe.scale:.9g}" + (f" + {recipe.shift:.6g}" if recipe.shift else "") if recipe.scale != 1 or recipe.shift else None
    return {"name": recipe.name, "old_shape": list(recipe.old_shape), "new_shape": list(recipe.new_shape), "fill": fills,
            "free": recipe.free if "free" in "".join(fills) else None, "repair": repair}


def changes(plan) -> dict:
    """Attributes, constants, computed tables, inputs and outputs that change."""
    d, s = plan.decisions, plan.roles.structure
    nodes = s.graph.by_index
    attributes = [{"node": nodes[i].label, "attribute": name, "new": value if isinstance(value, (int, float)) else list(value)}
                  for i, changed in sorted(d.edits.attributes.items()) for name, value in changed.items()]
    constants = [{"node": nodes[i].label, "input": slot, "new": value.ravel().tolist()} for (i, slot), value in sorted(d.edits.constants.items())]
    tables = [{"name": s.graph.weights[t], "old_shape": list(s.graph.weight_shape(t)), "new_shape": list(table.value.shape), "rule": table.rule}
              for t, table in d.edits.tables.items()]
    grown = {kind: [{"name": n, "old_shape": [a.old for a in maps], "new_shape": [a.new for a in maps], "fill": [axis_fill(a) for a in maps]}
                    for n, maps in found.items() if not all(a.is_identity for a in maps)]
             for kind, found in (("inputs", d.inputs), ("outputs", d.outputs))}
    return {"attributes": attributes, "constants": constants, "tables": tables, **grown}


def plan_json(plan) -> dict:
    d = plan.decisions
    return {
        "sizes": {n: {"old": old, "new": new} for n, (old, new) in plan.sizes.items()},
        "method": plan.request.method, "seed": plan.request.seed,
        "certificate": {"kind": plan.certificate.kind, "reasons": list(plan.certificate.reasons), "bound": plan.certificate.bound,
                        "rounding": plan.certificate.rounding},
        "parameters": {"old": plan.model.parameters, "new": plan.new_parameters, "dead": plan.dead_parameters,
                       "asleep": plan.asleep_parameters},
        "dead": [{"name": plan.roles.structure.graph.weights[t], "entries": n} for t, n in d.dead.items()],
        "layers": layers(plan), "filled": plan.source.constant, "notes": d.target.notes, "repairs": d.edits.reasons,
        "initializers": [recipe_line(r) for r in d.applied.recipes.values()],
        **changes(plan),
    }


def layers(plan) -> list[dict]:
    """Stacks that grow: each block of the result, and the block of the source that it is or starts from."""
    if plan.deeper is None:
        return []
    return [{"stack": name, "old": old, "new": new, "method": plan.request.depth.method, "placement": plan.request.depth.placement,
             "blocks": [{"from": p.block, "new": p.new} for p in plan.deeper.places[name]]}
            for name, (old, new) in plan.deeper.layers.items() if old != new]


def order(blocks: list[dict]) -> str:
    """`0 1 +1 2 +2`: old blocks by number, new ones with a plus and the block they start from."""
    return " ".join(f"{'+' * b['new']}{b['from']}" for b in blocks)


def plan_lines(plan) -> list[str]:
    doc, modules = plan_json(plan), modules_of(plan.decisions.proto.graph)
    out = ["sizes", *(f"  {n:<12} {v['old']} -> {v['new']}" for n, v in doc["sizes"].items())]
    out += [f"  note: {n}" for n in doc["notes"]]
    for x in doc["layers"]:
        out += [f"{x['stack']} ({x['method']}; + is new and starts from the block of that number)", f"  {order(x['blocks'])}"]
    out += ["one number everywhere, so that new blocks change nothing"] * bool(doc["filled"])
    out += [f"  {with_module(name, modules)} = {value:g}" for name, value in doc["filled"].items()]
    out += ["initializers (fill per axis: what the new entries hold)", *LEGEND]
    for r in doc["initializers"]:
        free = f"  [{r['free']}]" if r["free"] not in (None, "random") else ""
        repair = f"  repair {r['repair']}" if r["repair"] else ""
        out.append(f"  {with_module(r['name'], modules)}: {shape(r['old_shape'])} -> {shape(r['new_shape'])}  fill {', '.join(r['fill'])}{free}{repair}")
    out += ["tables that go on"] * bool(doc["tables"])
    out += [f"  {with_module(t['name'], modules)}: {shape(t['old_shape'])} -> {shape(t['new_shape'])}  {t['rule']}" for t in doc["tables"]]
    for title, key in (("inputs", "inputs"), ("outputs", "outputs")):
        out += [title] * bool(doc[key])
        out += [f"  {v['name']}: {shape(v['old_shape'])} -> {shape(v['new_shape'])}  fill {', '.join(v['fill'])}" for v in doc[key]]
    out += ["attributes"] * bool(doc["attributes"]) + [f"  {a['node']}: {a['attribute']} = {a['new']}" for a in doc["attributes"]]
    out += ["constants"] * bool(doc["constants"]) + [f"  {c['node']} input {c['input']} = {c['new']}" for c in doc["constants"]]
    out += ["repairs"] * bool(doc["repairs"]) + [f"  {r}" for r in doc["repairs"]]
    return out + summary_lines(plan)


def summary_lines(plan) -> list[str]:
    """Before, after, certificate: what `expand` prints."""
    old, new, dead = plan.model.parameters, plan.new_parameters, plan.dead_parameters
    out = [f"parameters: {old:,} -> {old + new:,} ({new:,} new, {dead:,} of them dead)", f"certificate: {plan.certificate}"]
    out += [f"  {r}" for r in plan.certificate.reasons]
    if dead:
        graph, modules = plan.roles.structure.graph, modules_of(plan.source.proto.graph)
        out += [f"  dead: {n:,} entries of {with_module(graph.weights[t], modules)}: zero on both sides, no gradient reaches them" for t, n in plan.decisions.dead.items()]
        out += ["  to let them learn: --wake 1e-3 adds noise there (near instead of exact)"]
    if plan.asleep_parameters:
        out += [f"  asleep: {plan.asleep_parameters:,} entries of new experts, until their scores are raised (docs/experts.md)"]
    return out


def shape(dims) -> str:
    return "[" + ", ".join(map(str, dims)) + "]"


def stack_lines(a: Architecture) -> list[str]:
    """The blocks of each stack with the nodes they run from and to; a long stack is cut in the middle."""
    if not a.stacks:
        return ["no repeated layers found: depth cannot grow"]
    out = []
    for stack in a.stacks:
        period = f", alike every {stack.period}" if stack.period > 1 else ""
        out.append(f"{stack.name}: {stack.layers}{period}")
        lines = [f"  {'-'.join(str(n) for n in dict.fromkeys((b.layers[0], b.layers[-1])))}: {b.nodes} nodes, {b.first} .. {b.last}" for b in stack.blocks]
        out += lines if len(lines) <= 6 else [*lines[:3], f"  ... {len(lines) - 4} more", lines[-1]]
    return out


def _sizes(a: Architecture | WidthInfo) -> list[tuple[str, object]]:
    """(name, value) of what belongs to one hidden size."""
    feed = f"{a.ffn}" + (f" ({'gated ' if a.gated else ''}{a.activation})" if a.activation else "")
    return [("hidden", a.hidden), ("heads", a.heads), ("kv_heads", a.kv_heads), ("head_dim", a.head_dim), ("ffn", feed),
            ("norm", f"{a.norm}, {a.norm_place} the branch" if a.norm else "-")]


def sizes_only(fixed: dict[str, list[int]]) -> str:
    """`batch 2, length 16`, of what `inputs.fixed_sizes` found."""
    return ", ".join(f"{kind} {' and '.join(map(str, sizes))}" for kind, sizes in fixed.items())


def fixed_lines(fixed: dict[str, list[int]]) -> list[str]:
    """That a graph runs at these sizes only, and what to do; nothing for one with dynamic axes."""
    return [f"runs only at {sizes_only(fixed)}: exported with fixed axes (export with dynamic axes to run and validate at other sizes)"] if fixed else []


def architecture_lines(a: Architecture) -> list[str]:
    def row(name: str, value) -> str:
        return f"  {name:<12} {value}"

    shared = [row("vocab", a.vocab or "-"), row("positions", ", ".join(["rotary"] * a.rotary + [str(a.positions)] * bool(a.positions)) or "-")]
    lines = [f"transformer with {a.layers} layers, {a.parameters:,} parameters (opset {a.opset}, {a.producer or 'unknown exporter'})"]
    if a.widths:
        for w in a.widths:
            lines += [f"{w.name}: hidden {w.hidden}", *(row(name, value) for name, value in _sizes(w)[1:])]
        lines += ["together", *shared]
    else:
        *sizes, norm = _sizes(a)
        lines += [*(row(*s) for s in sizes), *shared, row(*norm)]
    lines += [*stack_lines(a), "dims (--set NAME=SIZE)"]
    width = max(len(d.name) for d in a.dims)
    for d in a.dims:
        sizes = "/".join(map(str, d.sizes))
        made_of = f" = {d.extent}" if d.extent != str(d.size) else ""
        places = f"  in {d.places} places" if d.places > 1 else ""
        refused = f"  cannot grow: {d.refused}" if d.refused else ""
        module = f"  in {d.module}" if d.module else ""
        lines.append(f"  {d.name:<{width}}  {sizes}{made_of}{places}{module}{refused}")
    return lines + ["  (=: what a size consists of; places: how often the model has it, grown together)"] * any(d.places > 1 or d.extent != str(d.size) for d in a.dims)


