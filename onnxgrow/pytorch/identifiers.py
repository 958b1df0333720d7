"""Names of a model in generated Python. They come from strangers: only what is a plain identifier stays as it is, and text goes into quotes or comments.

No name of a model reaches the written code but through these functions.
"""

from __future__ import annotations

import builtins
import keyword
import re

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
NUMBER = re.compile(r"(0|[1-9][0-9]{0,4})")  # of an element in a list of modules
WORD = re.compile(r"[A-Za-z0-9_.,>\- ]*")  # of a text attribute: a mode, an equation
USED = {"self", "cls", "torch", "nn", "F", "Tensor", "labels", "config", "math", "super", "max", "min", "float", "int", "bool", "range", "len", "slice", "tuple", "dict", "list", "str"}
CLASSES = {"Config", "Tensor", "Path", "F", "FOLDER", "nn", "torch", "json", "re", "annotations", "dataclass", "safe_open", "load", "with_loss", "save_once", "plain_name", "grown_masks",
           "parameter_groups", "slow_down_old", "config", "layer", "self", *dir(builtins)}  # what model.py itself uses
MODULE = frozenset(  # what a torch.nn.Module has already
    "T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval extra_repr float forward get_buffer "
    "get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia named_buffers named_children named_modules named_parameters parameters "
    "register_backward_hook register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook "
    "register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook "
    "requires_grad_ set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad".split())


def is_attribute(word: str) -> bool:
    """Can a module have an attribute of this name, or a list an element of this number?"""
    if NUMBER.fullmatch(word):
        return True
    return bool(PLAIN.fullmatch(word)) and not keyword.iskeyword(word) and not word.startswith("__") and word not in MODULE and not word.startswith(OWN)


OWN = ("_parameters", "_buffers", "_modules", "_forward", "_backward", "_state_dict", "_load_", "_apply", "_call", "_get_", "_is_", "_maybe", "_named", "_non_", "_register",
       "_replicate", "_save", "_slow", "_version", "_wrapped", "_compiled")  # how private names of a module begin


def identifier(text: str) -> str:
    """A variable, argument or field that says what a text says: `a.b/0` is a_b_0. Different texts may give one identifier."""
    word = re.sub(r"[^A-Za-z0-9_]+", "_", text)[:60]
    word = word.lstrip("_") or "x"
    word = f"x{word}" if word[0].isdigit() else word
    return f"{word}_" if keyword.iskeyword(word) or word in USED else word


def class_name(text: str) -> str:
    """The name of a class, or "" where the text is none."""
    if not PLAIN.fullmatch(text) or keyword.iskeyword(text) or text.startswith("_"):
        return ""
    return f"{text}Module" if text in CLASSES else text


def quoted(text: str) -> str:
    """A Python string literal of any text."""
    plain = text.isascii() and text.isprintable() and not set(text) & {'"', "\\"}
    return f'"{text}"' if plain else repr(text)


def remark(text: str) -> str:
    """Text in a comment or docstring: in one line, without what could end it."""
    return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)
