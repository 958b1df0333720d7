"""`onnxgrow completion SHELL`: the script that lets a shell complete commands, options and their values."""

from __future__ import annotations

import re
import sys

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from ..commands import main

VARIABLE = "_ONNXGROW_COMPLETE"
SHELLS = {
    "bash": (BashComplete, "~/.bashrc", 'eval "$(onnxgrow completion bash)"', "~/.local/share/bash-completion/completions/onnxgrow"),
    "zsh": (ZshComplete, "~/.zshrc, behind compinit", 'eval "$(onnxgrow completion zsh)"', "a file _onnxgrow in a folder of $fpath"),
    "fish": (FishComplete, "~/.config/fish/config.fish", "onnxgrow completion fish | source", "~/.config/fish/completions/onnxgrow.fish"),
}

CHANGED = {  # (what click's script has, what stands for it): no space follows what ends in =, which fish knows; there, help has commas
    "bash": [("COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace")],
    "zsh": [("    local -a response\n", "    local -a response\n    local -a end\n"),
            ("                completions_with_descriptions+=", '                [[ "$key" == *= ]] && end=(-S "")\n                completions_with_descriptions+='),
            ("_describe -V unsorted completions_with_descriptions -U", '_describe -V unsorted completions_with_descriptions -U "${end[@]}"')],
    "fish": [('string split "," $completion', 'string split -m 1 "," $completion')],
}


def script(shell: str) -> str:
    """The script for one shell, with a comment that says where to put it."""
    kind, file, line, alone = SHELLS[shell]
    made = kind(main, {}, "onnxgrow", VARIABLE)
    text = made.source_template % made.source_vars()  # not made.source(): it runs the shell to ask for its version
    for line_, more in CHANGED[shell]:
        text = text.replace(line_, more)
    where = f"# Completion of onnxgrow for {shell}. Put this line into {file}:\n#     {line}\n# or, for a quicker start, this text into {alone}."
    head, body = (text.split("\n", 1) if text.startswith("#compdef") else ("", text))  # zsh looks for that in the first line
    return re.sub(r"\n{3,}", "\n\n", "\n".join([head, where, body.strip()]).strip()) + "\n"


@main.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print a script that completes commands in SHELL.

    Its first lines say where to put it. For bash this is a line in ~/.bashrc:

    \b
    eval "$(onnxgrow completion bash)"

    Example: onnxgrow completion bash
    """
    click.echo(script(shell), nl=False)
    if sys.stdout.isatty():
        _, file, line, _ = SHELLS[shell]
        click.echo(f"\nto switch it on, put this line into {file}:\n\n    {line}", err=True)
