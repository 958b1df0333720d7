"""Tables and the generated parts of docs/evidence.md, from what `benchmarks/evidence.py` measured."""

from __future__ import annotations

import re
from math import inf
from pathlib import Path
from statistics import median

from benchmarks.evidence_figures import NAMES, figure

LEVELS = (0.02, 0.05, 0.08)  # nats below the loss of the source
ORDER = {"exact": "**exact**, the default", "exact, random blocks": "exact, random blocks", "copy": "exact, copies", "stack": "stack (not preserved)",
         "naive": "naive padding (not preserved)", "trained on": "small model trained on", "scratch": "large model from scratch"}
FIGURES = {"evidence.svg": False, "evidence-with-source.svg": True}

# --- what the runs say ---


class Results:
    """The file, with questions."""

    def __init__(self, found: dict):
        self.found, self.scale, self.tokens = found, found["scale"], found["scale"]["tokens"]
        self.families = list(found["parameters"])
        self.targets = list(dict.fromkeys(run["target"] for run in found["runs"] if run["target"] != "none"))
        self.seeds = sorted({run["seed"] for run in found["runs"]})

    def runs(self, family: str, target: str, method: str, rate: float | None = None) -> list[dict]:
        """Of one method; the small model has no target. Grown models are those at the usual learning rate unless it is given."""
        small = method == "trained on"
        if method not in ("scratch", "trained on") and rate is None:
            rate = self.found["grown_rate"]
        wanted = family, "none" if small else target, method
        return [run for run in self.found["runs"] if (run["family"], run["target"], run["method"]) == wanted and rate in (None, run["rate"])]

    @staticmethod
    def best_rate(runs: list[dict]) -> list[dict]:
        """Of runs at several learning rates, those at the one with the lowest median in the end."""
        rates = [[run for run in runs if run["rate"] == rate] for rate in sorted({run["rate"] for run in runs})]
        return min(rates, key=lambda some: median(last(run) for run in some))

    def flops(self, run: dict, step: float) -> float:
        """6 times the block parameters times the tokens."""
        return 6 * self.found["parameters"][run["family"]][run["target"]] * self.tokens * step

    def source_flops(self, family: str) -> float:
        return 6 * self.found["parameters"][family]["none"] * self.tokens * self.scale["source_steps"]

    def source_loss(self, family: str, seed: int) -> float:
        return next(s["loss"] for s in self.found["sources"] if (s["family"], s["seed"]) == (family, seed))

    def reach(self, runs: list[dict], family: str, drop: float) -> list[tuple[float, float]]:
        """(FLOPs, steps) to a loss so far below the source's, for each seed, by the best of its runs; inf where none gets there."""
        out = []
        for seed in self.seeds:
            goal = self.source_loss(family, seed) - drop
            steps = [(run, crossing(run["curve"], goal)) for run in runs if run["seed"] == seed]
            out.append(min(((self.flops(run, step), step) for run, step in steps if step < inf), default=(inf, inf)))
        return out


def last(run: dict) -> float:
    return run["curve"][-1][1]


def rise(run: dict) -> float:
    """How far the loss goes above that of the start."""
    return max(loss for _, loss in run["curve"]) - run["curve"][0][1]


def crossing(curve: list, goal: float) -> float:
    """The first step with that loss, on straight lines between what was measured."""
    before = None
    for step, loss in curve:
        if loss <= goal:
            return step if before is None else before[0] + (before[1] - goal) / (before[1] - loss) * (step - before[0])
        before = step, loss
    return inf


def spread(values: list[float], form: str = "{:.3f}") -> str:
    """Median, and from least to most."""
    middle, least, most = (form.format(v) if v < inf else "never" for v in (median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least} to {most})"


# --- tables ---


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" if row else "|---" * len(head) + "|" for row in [head, [], *rows])


def sections(r: Results) -> list[tuple[str, str, str, str]]:
    """(model and growth, family, target, method) of every row."""
    return [(f"{NAMES[family]}, {NAMES[target].split(',')[0]}", family, target, method)
            for family in r.families for target in r.targets for method in ORDER if r.runs(family, target, method)]  # fmt: skip


def losses(r: Results) -> str:
    """Loss at step 0, how far it rises, where it ends, and the part of the new entries that gets a gradient."""
    rows = []
    for title, family, target, method in sections(r):
        found = r.runs(family, target, method)
        for steps in sorted({run["steps"] for run in found}):
            runs = r.best_rate([run for run in found if run["steps"] == steps])
            live = [f"{median(run['live'][step] for run in runs):.0%}" if runs[0]["live"] else "" for step in ("1", "3")]
            up = f"{median(rise(run) for run in runs):.3f}" if method != "scratch" else ""
            rows.append([title, ORDER[method], f"{steps:,}", f"{r.flops(runs[0], steps) / 1e12:.2f}",
                         spread([run["curve"][0][1] for run in runs]), up, spread([last(run) for run in runs]), *live])  # fmt: skip
    return table(["model", "method", "steps", "TFLOPs", "loss at step 0", "rises by", "in the end", "gradient at step 1", "at step 3"], rows)


def savings(r: Results) -> str:
    """Steps to fixed losses, and FLOPs as a part of what it takes from scratch."""
    rows = []
    for title, family, target, method in sections(r):
        row = [title, ORDER[method]]
        for drop in LEVELS:
            mine, scratch = (r.reach(r.runs(family, target, name), family, drop) for name in (method, "scratch"))
            row.append(spread([steps for _, steps in mine], "{:,.0f}"))
            row += [part(mine, scratch, extra * (method != "scratch")) for extra in (0, r.source_flops(family))]
        rows.append(row)
    head = ["model", "method"] + [x for drop in LEVELS for x in (f"steps to −{drop:g}", "FLOPs", "with the source's")]
    return table(head, rows)


def part(mine: list[tuple[float, float]], scratch: list[tuple[float, float]], extra: float) -> str:
    """Median FLOPs, over the median of those from scratch."""
    a, b = (median(flops for flops, _ in some) for some in (mine, scratch))
    return "" if a == inf else "scratch never" if b == inf else f"{(a + extra) / b:.0%}"


def settings(r: Results) -> str:
    """What the learning rate and the standard deviation of the new parts do."""
    found = r.found["runs"]
    rates = sorted({run["rate"] for run in found if run["method"] == "exact"})
    varied = {f"learning rate {rate:g} of the peak": ("exact", rate) for rate in rates}
    stds = dict.fromkeys(run["method"] for run in found if "std" in run["method"])
    varied |= {method.replace("exact, std", "standard deviation"): (method, None) for method in stds}
    rows = []
    for family in r.families:
        base = {run["seed"]: last(run) for run in r.runs(family, "hidden", "exact")}
        for name, (method, rate) in varied.items():
            runs = r.runs(family, "hidden", method, rate)
            if runs and len(rates) > 1:
                rows.append([NAMES[family], name, f"{median(rise(run) for run in runs):.3f}", spread([last(run) for run in runs]),
                             spread([last(run) - base[run["seed"]] for run in runs], "{:+.3f}")])  # fmt: skip
    return table(["model", "exact growth, twice as wide", "rises by", "in the end", "against the usual, same seed"], rows)


# --- the page ---


def blocks(found: dict) -> dict[str, str]:
    """What stands between the markers of the page, by name."""
    r = Results(found)
    measured = f"Measured in {found['minutes']} minutes by `{found['command']}` on: {found['machine']}. Text: {found['text']}."
    return {"losses": losses(r), "savings": savings(r), "settings": settings(r), "measured": measured}


def filled(page: str, found: dict) -> str:
    """The page with its generated parts made again."""
    for name, block in blocks(found).items():
        whole = f"<!-- {name} -->\n{block}\n<!-- /{name} -->"
        page = re.sub(f"<!-- {name} -->.*<!-- /{name} -->", whole.replace("\\", r"\\"), page, flags=re.S)
    return page


def write(found: dict, page: Path) -> None:
    """The page's tables, and the figures beside it."""
    text = page.read_text(encoding="utf-8") if page.exists() else "".join(f"<!-- {name} --><!-- /{name} -->\n\n" for name in blocks(found))
    (page.parent / "figures").mkdir(parents=True, exist_ok=True)
    page.write_text(filled(text, found), encoding="utf-8")
    for name, with_source in FIGURES.items():
        (page.parent / "figures" / name).write_text(figure(Results(found), with_source), encoding="utf-8")
