"""What somebody who mistyped may have meant, and what somebody who has begun to type may want."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from ..errors import OnnxgrowError

ALIKE = 0.6  # difflib's own threshold


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean 'ffn'?`, or None where nothing known looks like the word."""
    names = list(dict.fromkeys(known))
    plain = {name.lower().replace("-", "_"): name for name in reversed(names)}
    asked = word.lower().replace("-", "_")
    found = [asked] if asked in plain else get_close_matches(asked, plain, n=2, cutoff=ALIKE)
    return f"did you mean {' or '.join(repr(plain[f]) for f in found)}?" if found else None


def complete_dim(context, param, begun: str) -> list:
    """For the shell: `NAME=` of each size that can grow in the model on the line, with what it is today; nothing where no model can be read.

    Args:
        context: click's, of the line so far; `param` is its option, `begun` the word that is being typed.
    """
    from click.shell_completion import CompletionItem

    from ..model import load

    words = [context.params.get("model"), *context.args]  # click leaves words unassigned where an option still wants its value
    model = next((path for path in (Path(word).expanduser() for word in words if word) if path.exists()), None)
    try:
        a = load(model).architecture if model else None
    except (OnnxgrowError, OSError):  # a shell is no place to say so
        a = None
    if a is None:
        return []
    sizes = {s.name: s.layers for s in a.stacks} | {d.name: "/".join(map(str, d.sizes)) for d in a.dims if not d.refused}
    return [CompletionItem(f"{name}=", help=f"{size} today") for name, size in sizes.items() if f"{name}=".startswith(begun)]
