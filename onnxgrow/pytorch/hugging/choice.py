"""Which class of transformers a graph is, with which config: tried in order of evidence, taken where every parameter has its place."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import GraphError, OnnxgrowError, SizeError
from . import readings
from .facts import PLAIN, Facts
from .families import FAMILIES, Family
from .like import Like
from .names import Match, match, same_shape

SPEAKS = ("LM", "LMHeadModel", "ForConditionalGeneration")  # classes whose output has an entry for each word
RANKS = {"ForSequenceClassification": 2, "ForImageClassification": 2, "ForTokenClassification": 3}
LABELS = "classifier.weight", "classifier.out_proj.weight", "score.weight"
NONE_IS_SAID = {"sliding_window"}  # of all other fields None means that the graph does not say
ROPE = "rope_parameters"
SOFT = {"hidden_act", "activation", "activation_function", "pad_token_id", "feed_forward_proj", "sliding_window",
        "relative_attention_max_distance", "projection_dim"}  # a given config knows better


@dataclass(frozen=True)
class Choice:
    """A class, its config, and where each parameter goes in it."""

    family: Family
    cls: type
    config: object
    match: Match


def choose(f: Facts, like: Like | None = None) -> Choice:
    """The class that all parameters of a graph fit.

    Raises:
        GraphError: no known architecture, or the nearest class lacks some parameters or has too many.
        SizeError: the config of the architecture cannot say these sizes.
    """
    declared = readings.declared_class(f.roles)
    families = [family for family in FAMILIES if (family.config == like.config_class if like else family.fits(f))]
    families.sort(key=lambda family: declared not in family.classes)  # evidence in the graph is as good; the exporter's own word is better
    if not families:
        _unknown(f, like)
    problems: list[OnnxgrowError] = []
    for family in families:
        try:
            return _choose_class(f, family, like, declared)
        except (GraphError, SizeError) as problem:
            problems.append(problem)
    raise problems[0]


def _unknown(f: Facts, like: Like | None) -> None:
    known = ", ".join(sorted(family.name for family in FAMILIES))
    if like:
        kind = like.config.get("model_type")
        raise GraphError(f"{like.folder / 'config.json'} is of the type {kind!r}, which cannot be written", hint=f"one of: {known}; {PLAIN}")
    some = ", ".join(list(f.names.parameters)[:3])
    raise GraphError(f"no architecture of transformers that can be written has parameters named like these: {some} ...",
                     hint=f"known are {known}; a file that has lost its names can be exported without --format hf")


def _choose_class(f: Facts, family: Family, like: Like | None, declared: str | None) -> Choice:
    import transformers

    fields = {name: value for name, value in family.fields(f).items() if value is not None or name in NONE_IS_SAID}
    first = [name for name in (*(like.architectures if like else ()), declared) if name in family.classes]
    tried: list[tuple[Choice, list[str]]] = []
    for name in dict.fromkeys([*first, *family.classes]):
        cls = getattr(transformers, name, None)
        if cls is not None and _speaks(f, name):
            config = _config(family, fields | _labels(f, name, like), like)
            found = match(_meta(cls, config), f.names)
            tried.append((Choice(family, cls, config, found), misshapen(found, f)))
            if not (found.problems or found.guessed or tried[-1][1]):
                break
    if not tried:
        raise GraphError(f"the first output fits no class of {family.name}", hint=f"export the logits or the last hidden state as the first output, {PLAIN}")
    best, misfits = min(tried, key=lambda t: (t[0].match.problems, len(t[1]), len(t[0].match.guessed)))
    if best.match.problems or misfits:
        _refuse(best.cls.__name__, best.match, misfits)
    return best


def _speaks(f: Facts, name: str) -> bool:
    rank, words = f.output
    return name.endswith(SPEAKS) == words and all(rank == r for end, r in RANKS.items() if name.endswith(end))


def _labels(f: Facts, name: str, like: Like | None) -> dict:
    count = f.size(*LABELS) if name.endswith("Classification") else None
    return {} if count is None or (like and len(like.config.get("id2label") or ()) == count) else {"num_labels": count}


def _config(family: Family, fields: dict, like: Like | None):
    """The config, or the given one with the sizes of the graph."""
    import transformers

    cls = getattr(transformers, family.config)
    try:
        return cls(**fields) if like is None else cls.from_dict(like.with_sizes(_firm(fields, like)))
    except ValueError as error:  # the library checks some sizes itself
        raise SizeError(f"{family.config} refuses these sizes: {' '.join(str(error).split())}", hint=f"grow to sizes that it takes, {PLAIN}") from error


def _firm(fields: dict, like: Like) -> dict:
    """Fields in which the graph is right. A base of rotary frequencies that was stretched with head_dim is in the graph; other kinds of rope stay."""
    kept = {name: value for name, value in fields.items() if name not in SOFT or name not in like.config}
    return {name: value for name, value in kept.items() if name != ROPE or like.rope_type == "default"}


def _meta(cls: type, config):
    import torch

    with torch.device("meta"):
        return cls(config)


def filled(found: Match, f: Facts) -> dict[str, str]:
    """Key of the state dict -> parameter, each tied matrix once. Where both are given, and differ, the library does not tie them."""
    return {key: name for key, name in found.keys.items() if not (key in found.twins and f.tied(found.keys[found.twins[key]], name))}


def transposed(found: Match, f: Facts) -> set[str]:
    """Weights that the class keeps as [in, out] (GPT-2's Conv1D) and the graph's parameters as [out, in]."""
    keys = {f"{name}.weight" for name, module in found.meta.named_modules() if type(module).__name__ == "Conv1D"} & found.keys.keys()
    as_is = any(len(set(found.shapes[key])) > 1 and f.names.shape(found.keys[key]) == found.shapes[key] for key in keys)
    return set() if as_is else keys


def misshapen(found: Match, f: Facts) -> list[str]:
    """Parameters that would not fit, in words."""
    turned, out = transposed(found, f), []
    for key, name in filled(found, f).items():
        have, want = f.names.shape(name), found.shapes[key][::-1] if key in turned else found.shapes[key]
        if not same_shape(have, want):
            out.append(f"{key} is {list(have)}, the config says {list(want)}")
    return out


def _refuse(name: str, found: Match, misfits: list[str]) -> None:
    parts = [(f"has no place for {_some(found.unexpected)}", found.unexpected), (f"needs {_some(found.missing)}, which the graph does not have", found.missing),
             (_some(misfits), misfits)]
    what = f"{name} does not fit the graph: {'; '.join(text for text, listed in parts if listed)}"
    if found.problems:
        raise GraphError(what, hint="export the whole model to ONNX (torch.onnx.export keeps the names), or export without --format hf")
    raise SizeError(what, hint=f"grow hidden by a whole multiple, which takes square maps along, or each size that differs (--set NAME=SIZE), {PLAIN}")


def _some(listed: list[str]) -> str:
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
