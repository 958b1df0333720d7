"""Recipe files: a growth written down as YAML, for `onnxgrow expand --recipe`, and written from flags by `--save-recipe`.

A recipe is data. It is read with PyYAML's safe loader, names no code (rules are Python files that are run, so they stay on the command
line), and a key or value that is not understood is refused rather than passed over. Paths are relative to the recipe's folder.
"""

from __future__ import annotations

import functools
import os
from difflib import get_close_matches
from pathlib import Path

import click
from click.core import ParameterSource

from . import atomic
from .errors import FileError, UsageError
from .regular import read_small
from .request import SIZES, in_order

PATHS = {"model": "model", "inputs": "inputs", "output": "output", "torch": "torch_folder"}  # key -> parameter of the command
WORDS = ("method", "depth_method", "placement", "block_init", "vocab_init", "provider")
NUMBERS = ("pad_vocab_to", "init_std", "wake", "seed", "max_output_bytes")
SWITCHES = ("only_hidden", "dequantize", "validate")
KEYS = ("model", "sizes", *SWITCHES[:1], *WORDS[:-1], *NUMBERS, "dequantize", "validate", "inputs", "provider", "output", "torch")
MOST_BYTES = 1 << 16  # PyYAML reads some ten kilobytes in a second
INSTEAD = "choose another name for the recipe"
CODE = "rules are Python code and are run, and a recipe is data: name them on the command line, with --rules"


def with_recipe(command):
    """Give `expand` the options --recipe and --save-recipe: what it is called with comes from the file where no flag says otherwise."""
    @functools.wraps(command)
    def run(*, recipe: Path | None, save_recipe: Path | None, **options):
        context = click.get_current_context()
        if recipe is not None:
            options, said = merged(context, options, read_recipe(recipe), recipe.parent)
            for line in said:
                click.echo(f"{recipe}: {line}", err=True)
        if options["model"] is None:
            raise click.MissingParameter(ctx=context, param_hint="'MODEL'", param_type="argument")
        if save_recipe is not None:
            check_target(save_recipe, options["force"])
        code = command(**options)
        if save_recipe is not None and not code:
            save(save_recipe, written(context, options, save_recipe.parent), options["force"])
            again = "" if options["only_plan"] else " --force"  # the target is there by now
            click.echo(f"wrote {save_recipe}; the same growth again: onnxgrow expand --recipe {save_recipe}{again}", err=True)
        return code

    run = click.option("--save-recipe", type=click.Path(path_type=Path), metavar="FILE.yaml", help="Write this growth down as a recipe, too.")(run)
    return click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE.yaml",
                        help="Take model, sizes and all else from a recipe (docs/pipelines.md); flags beside it win.")(run)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_recipe(path: Path) -> dict:
    """The entries of a recipe file, their types checked.

    Raises:
        FileError: there is no such file.
        UsageError: it is no YAML mapping, or a key or value is not understood.
    """
    import yaml

    try:
        text = read_small(path, "recipe", MOST_BYTES)
    except FileError as error:
        raise FileError(f"cannot read the recipe {path}: {error.what}", hint="write one from flags with: onnxgrow expand ... --save-recipe FILE.yaml") from None
    try:
        found = yaml.load(text, Loader=_loader())  # noqa: S506 (a safe loader that refuses a key given twice)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as problem:
        raise UsageError(f"{path} cannot be read as YAML: {' '.join(str(problem).split())}", hint="keys and values as in docs/pipelines.md") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no recipe: it holds no keys", hint=f"for example: sizes: {{hidden: 1024}}; keys: {', '.join(KEYS)}")
    _check_keys(path, found)
    for key, value in found.items():
        _check(path, key, value)
    return {key: value for key, value in found.items() if value is not None}


def _loader():
    import yaml

    class Once(yaml.SafeLoader):
        """PyYAML's safe loader takes the last of two entries of one key."""

        def compose_node(self, parent, index):
            if self.check_event(yaml.events.AliasEvent):  # a few of them stand for more text than there is memory
                raise yaml.composer.ComposerError(None, None, "a recipe has no aliases", self.peek_event().start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Once


def _check_keys(path: Path, found: dict) -> None:
    for key in found:
        if key == "rules":
            raise UsageError(f"{path} names rules", hint=CODE)
        if key not in KEYS:
            near = get_close_matches(str(key), (*KEYS, *SIZES), 1)
            size = bool(near) and near[0] in SIZES
            meant = f"did you mean {near[0]}{', below sizes' if size else ''}?" if near else f"keys: {', '.join(KEYS)}"
            raise UsageError(f"{path}: no key {repr(key)[:80]} in a recipe", hint=meant)


def _check(path: Path, key: str, value) -> None:
    """UsageError for a value of the wrong type; whether it is one of the known words is for the option of that name to say."""
    whole = key in ("pad_vocab_to", "seed", "max_output_bytes")
    kinds = {**dict.fromkeys(PATHS, str), **dict.fromkeys(WORDS, str), **dict.fromkeys(SWITCHES, bool), "sizes": dict}
    kind = kinds.get(key, int if whole else (int, float))
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        wanted = {str: "text", bool: "true or false", dict: "a list of NAME: SIZE", int: "a whole number"}.get(kind, "a number")
        raise UsageError(f"{path}: {key} is {repr(value)[:80]}, not {wanted}", hint=f"write it as in docs/pipelines.md, or leave {key} out")
    for name, size in value.items() if key == "sizes" and value else ():
        if not isinstance(name, str) or not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UsageError(f"{path}: the size of {str(name)[:80]} is {repr(size)[:80]}, not a whole number above zero", hint="for example: hidden: 1024")


# --- flags and recipe together ---------------------------------------------------------------------------------------


def merged(context: click.Context, options: dict, recipe: dict, folder: Path) -> tuple[dict, list[str]]:
    """What `expand` is called with, and one line for each flag that wins over another value of the recipe."""
    options, said = dict(options), []
    set_ = {item.rpartition("=")[0]: item for item in options["set_"]}
    for name, size in recipe.get("sizes", {}).items():
        flag = options.get(name) if name in SIZES else None
        other = flag if flag is not None else set_[name].rpartition("=")[2] if name in set_ else None
        if other is not None:
            said += [_told(f"sizes: {name}", size, other)] * (str(other) != str(size))
        elif name in SIZES:
            options[name] = size
        else:
            set_[name] = f"{name}={size}"
    options["set_"] = tuple(set_.values())
    for key, value in recipe.items():
        if key == "sizes":
            continue
        name = "no_validate" if key == "validate" else PATHS.get(key, key)
        value = not value if key == "validate" else folder / value if key in PATHS else _converted(context, name, value)
        if _given(context, name):
            said += [_told(key, recipe[key], options[name])] * (key != "validate" and options[name] != value)
        elif key in ("inputs", "provider") and _given(context, "no_validate"):
            said.append(f"{key} {recipe[key]} is not used: --no-validate")
        elif not (key == "torch" and options["only_plan"]):
            options[name] = value
    return options, said


def _given(context: click.Context, name: str) -> bool:
    """Was an option given, on the command line or by the environment?"""
    return context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def _told(key: str, old, new) -> str:
    return f"{key} is {old} here, and the flag's {new} is taken"


def _converted(context: click.Context, name: str, value):
    """A value as the option of that name takes it; UsageError where it would not."""
    option = next(p for p in context.command.params if p.name == name)
    try:
        return option.type.convert(value, option, context) if not isinstance(value, bool) else value
    except click.UsageError as problem:
        raise UsageError(f"recipe: {name}: {problem.format_message()}", hint=f"the same values as --{name.replace('_', '-')} takes") from None


# --- writing ---------------------------------------------------------------------------------------------------------


def written(context: click.Context, options: dict, folder: Path) -> dict:
    """The entries of a recipe that says what these options say; usual values are left out, the seed stays."""
    usual = {p.name: p.default for p in context.command.params}
    sizes = {name: options[name] for name in SIZES if options[name] is not None}
    sizes |= {name: int(size) for name, _, size in (item.rpartition("=") for item in options["set_"])}
    out = {"sizes": in_order(sizes)} if sizes else {}
    for key in KEYS:
        name = PATHS.get(key, key)
        if key in PATHS and options[name] is not None:
            out[key] = Path(os.path.relpath(options[name], folder)).as_posix()
        elif key == "validate" and options["no_validate"]:
            out[key] = False
        elif key in (*WORDS, *NUMBERS, *SWITCHES) and key != "validate" and (key == "seed" or options[key] not in (usual[key], None, False)):
            out[key] = options[key]
    return {key: out[key] for key in KEYS if key in out}


def check_target(path: Path, force: bool) -> None:
    """FileError where a recipe cannot be written."""
    atomic.check_free(path, force, instead=INSTEAD)


def save(path: Path, entries: dict, force: bool) -> None:
    """Write a recipe; it is there whole or not at all."""
    import yaml

    text = "# onnxgrow expand --recipe FILE; paths are relative to this file (docs/pipelines.md)\n" + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    atomic.save(path, text.encode(), force, INSTEAD)
