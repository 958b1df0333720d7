"""The figures of docs/evidence.md, as SVG: validation loss by training FLOPs, for each model and growth."""

from __future__ import annotations

from statistics import median

NAMES = {"gpt": "GPT-like", "llama": "Llama-like", "layers": "twice as deep, 2x the parameters", "hidden": "twice as wide, 4x the parameters"}
LINES = {"exact": ("exact", "#4184d6"), "copy": ("copy", "#2aa173"), "naive": ("naive", "#b565d0"), "stack": ("stack", "#c14f4f"),
         "trained on": ("small model trained on", "#8b949e"), "scratch": ("large model from scratch", "#dd9326")}
KIND = {method: f"line{k}" for k, method in enumerate(LINES)}
STYLE = """
polyline { fill: none; stroke-width: 1.8 } polygon { stroke: none; opacity: .15 } .grid { stroke: #8b949e; stroke-width: .5; opacity: .4 }
text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a }
.title { font-weight: 600; font-size: 13px }
@media (prefers-color-scheme: dark) { text { fill: #adb5bf } }
""" + "\n".join(f"polyline.{KIND[method]} {{ stroke: {colour} }} polygon.{KIND[method]} {{ fill: {colour} }}" for method, (_, colour) in LINES.items())
WIDE, HIGH, LEFT, TOP, APART = 340, 210, 48, 34, 66

Line = list[tuple[float, float, float, float]]  # (TFLOPs, median, least, most)


def curves(r, family: str, target: str, with_source: bool) -> list[tuple[str, Line]]:
    """(method, line) for each number of steps that was trained; of the small model, the most steps at the better learning rate."""
    out = []
    for method in LINES:
        extra = r.source_flops(family) if with_source and method != "scratch" else 0
        found = r.runs(family, target, method)
        lengths = sorted({run["steps"] for run in found})
        for steps in lengths[-1:] if method == "trained on" else lengths:
            runs = r.best_rate([run for run in found if run["steps"] == steps])
            points = [(at[0][0], [loss for _, loss in at]) for at in zip(*(run["curve"] for run in runs), strict=True)]
            out.append((method, [((r.flops(runs[0], step) + extra) / 1e12, median(v), min(v), max(v)) for step, v in points]))
    return out


def panel(lines: list[tuple[str, Line]], x: float, y: float, title: str) -> list[str]:
    """One diagram: the median as a line, all seeds as a band. The upper end is a little above where growth starts."""
    start = next(line[0][1] for method, line in lines if method == "exact")
    right, low = (end(point[k] for _, line in lines for point in line) for end, k in ((max, 0), (min, 2)))
    high = start + 0.6 * max(start - low, 0.05)
    px = lambda v: x + v / right * WIDE  # noqa: E731
    py = lambda v: y + (high - v) / (high - low) * HIGH  # noqa: E731
    clip = f"clip{x:g}-{y:g}"
    out = [f'<text class="title" x="{x}" y="{y - 10}">{title}</text>',
           f'<clipPath id="{clip}"><rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}"/></clipPath>']  # fmt: skip
    for v in ticks(low, high):
        out.append(f'<path class="grid" d="M{x} {py(v):.1f}h{WIDE}"/><text x="{x - 6}" y="{py(v) + 4:.1f}" text-anchor="end">{v:.2f}</text>')
    for v in ticks(0, right):
        out.append(f'<path class="grid" d="M{px(v):.1f} {y}v{HIGH}"/><text x="{px(v):.1f}" y="{y + HIGH + 16}" text-anchor="middle">{v:g}</text>')
    out.append(f'<g clip-path="url(#{clip})">')
    for method, line in lines:
        band = [(px(p[0]), py(p[2])) for p in line] + [(px(p[0]), py(p[3])) for p in reversed(line)]
        out.append(f'<polygon class="{KIND[method]}" points="{places(band)}"/>')
        out.append(f'<polyline class="{KIND[method]}" points="{places([(px(p[0]), py(p[1])) for p in line])}"/>')
    return [*out, "</g>"]


def places(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def ticks(low: float, high: float) -> list[float]:
    """Up to six round numbers."""
    step = next(s for e in range(-9, 9) for s in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if (high - low) / s <= 5)
    return [round(k * step, 9) for k in range(int(-(-low // step)), int(high // step) + 1)]


def figure(r, with_source: bool) -> str:
    """A panel for each model and growth."""
    parts, width = [], LEFT + len(r.targets) * (WIDE + APART)
    for row, family in enumerate(r.families):
        for column, target in enumerate(r.targets):
            at = LEFT + column * (WIDE + APART), TOP + row * (HIGH + APART)
            parts += panel(curves(r, family, target, with_source), *at, f"{NAMES[family]}, {NAMES[target]}")
    below, x = TOP + len(r.families) * (HIGH + APART) - 14, LEFT
    for method, (words, _) in LINES.items():
        parts.append(f'<polyline class="{KIND[method]}" points="{x},{below} {x + 20},{below}"/><text x="{x + 26}" y="{below + 4}">{words}</text>')
        x += 48 + 7 * len(words)
    title = f"Validation loss in nats per byte, by TFLOPs of training, those of the source {'counted' if with_source else 'not counted'}"
    parts.append(f'<text x="{LEFT}" y="{below + 26}">{title}. Lines: median of {len(r.seeds)} seeds; bands: all of them.</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {below + 40}" role="img" aria-label="{title}">'
    return "\n".join([head, f"<title>{title}</title>", f"<style>{STYLE}</style>", *parts, "</svg>", ""])
