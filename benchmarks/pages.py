"""Write docs/commands.md and a page for each command, from the program itself: what its help says, as a manual page says it.

    python -m benchmarks.pages                   writes docs/commands.md and docs/commands/*.md
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

from benchmarks import screens
from onnxgrow.commands import main

DOCS = Path(__file__).parents[1] / "docs"
SEE = {  # further pages on what a command does
    "inspect": ("how-it-works", "support"), "expand": ("how-it-works", "depth", "vocab", "positions", "experts", "near", "types", "errors"),
    "validate": ("exactness", "near"), "export": ("pytorch", "huggingface", "training-speed"), "import-weights": ("pytorch",),
    "check-rules": ("rules", "operators"), "demo": ("evidence",), "suggest": ("suggest",), "diff": ("diff",), "report": ("report",), "completion": (),
}
CODES = {"validate": "0 equal, 1 not equal or refused, 2 wrong usage", "check-rules": "0 every claim holds, 1 not all do, 2 wrong usage",
         "demo": "0 source and result agree, 1 they do not, 2 wrong usage",
         "diff": "0 the same, 1 they differ, 2 wrong usage, or a file that cannot be read",
         "report": "0 written, 1 refused, or written and not equal though the certificate is exact, 2 wrong usage"}
USUAL = "0 done, 1 refused, 2 wrong usage"
INTRO = """# Commands

Made by `python -m benchmarks.pages` from the program's own help; do not edit.

{table}

`onnxgrow --help` lists them, `onnxgrow COMMAND --help` says what each takes. A mistyped command, option or dim is answered with what was probably meant.

- **On a terminal** models are drawn and long work shows how far it is, how fast, and how long it will take. **In a pipe**, or where `TERM=dumb`, the same is said in plain lines without any escape sequence.
- `NO_COLOR=1` keeps the pictures and drops colours, moving bars and every escape sequence.
- `-q` prints errors and what a script needs: the path that was written (`FILE=$(onnxgrow expand -q model.onnx --hidden 1024)`), the first line of `inspect`, the commands of `suggest`. `-v` says more: notes, repairs, each set of inputs, times, and where an error was raised.
- `--json` prints [one document](json.md) and nothing else on stdout, whatever else is given.
- Exit codes: 0 done, 1 refused or not equal, 2 wrong usage.
- `onnxgrow completion bash` (or `zsh`, `fish`) prints a script that completes commands, options and their values, the dims of the model behind `--set` included; its first lines say where to put it.
"""


def examples(command: click.Command) -> list[str]:
    """The examples of a command, from the one place where they are kept: its docstring."""
    return re.findall(r"^\s*Example: (.+)$", inspect.cleandoc(command.help or ""), re.M)


def metavar(param: click.Parameter) -> str:
    """What stands for a value, independent of click's version."""
    kind = param.type
    if isinstance(param, click.Option) and param.is_flag:
        return ""
    if param.metavar:
        return param.metavar
    if isinstance(kind, click.Choice):
        return "|".join(kind.choices)
    if isinstance(param, click.Argument):
        return (param.name or "").upper()
    return "PATH" if isinstance(kind, click.Path) else "N" if "int" in kind.name else "X" if "float" in kind.name else "TEXT"


def option_line(option: click.Option) -> str:
    """One option as a row of a table."""
    names = ", ".join(f"`{name}`" for name in sorted(option.opts + option.secondary_opts, key=len))
    value = metavar(option)
    shown = f" (default: {option.default})" if option.show_default and option.default is not None else ""
    text = (option.help or "").replace("|", r"\|") + shown
    return f"| {names}{f' `{value}`'.replace('|', chr(92) + '|') if value else ''} | {text} |"


def page(name: str, command: click.Command) -> str:
    """The manual page of one command, as Markdown."""
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    first, _, rest = re.sub(r"^\s*Example: .+$", "", text, flags=re.M).strip().partition("\n")
    arguments = [metavar(p) for p in command.params if isinstance(p, click.Argument)]
    options = [option_line(p) for p in command.params if isinstance(p, click.Option)]
    see = [f"[{topic}](../{topic}.md)" for topic in SEE.get(name, ())]
    parts = [f"# onnxgrow {name}", "Made by `python -m benchmarks.pages` from the program's own help; do not edit.", first,
             "## Synopsis", f"    onnxgrow {' '.join([name, *arguments])}{' [OPTIONS]' * bool(options)}", rest.strip(),
             *(["## Options", "\n".join(["| option | meaning |", "|---|---|", *options, "| `-h`, `--help` | Say all this on the terminal. |"])] if options else []),
             "## Examples", "\n".join(f"    {line}" for line in examples(command)),
             *(["## On a terminal", "\n\n".join(f"![{name} at {width} columns](../screens/{name}-{width}.svg)" for width in screens.WIDTHS)] * (name in screens.SCREENS)),
             "## Exit codes", CODES.get(name, USUAL) + ".",
             "## See also", ", ".join([*see, "[all commands](../commands.md)"]) + "."]
    return "\n\n".join(p for p in parts if p) + "\n"


def pages() -> dict[Path, str]:
    """File -> its text."""
    rows = [f"| [{name}](commands/{name}.md) | {inspect.cleandoc(command.help or '').splitlines()[0]} | `{examples(command)[0]}` |"
            for name, command in sorted(main.commands.items())]
    table = "\n".join(["| command | what it does | for example |", "|---|---|---|", *rows])
    return {DOCS / "commands.md": INTRO.format(table=table), **{DOCS / "commands" / f"{n}.md": page(n, c) for n, c in main.commands.items()}}


def write() -> None:
    """All pages; those of commands that are gone are removed."""
    made = pages()
    for old in (DOCS / "commands").glob("*.md"):
        if old not in made:
            old.unlink()
    for file, text in made.items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
