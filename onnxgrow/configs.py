"""The config.json beside a model, grown with it: each size under the name that its type has for it.

Configs of transformers call the same size by different names (`hidden_size`, `n_embd`, `d_model`), as their `attribute_map` declares. Here
a name is found in the config itself: it must stand there and hold the size that the graph has today. A size that the config cannot say is
refused, since a folder whose config is not its model's would fail later and elsewhere. Where transformers is installed it is asked for names
that are not in the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .errors import FileError, SizeError
from .regular import read_json

NAMES = {  # role -> (its name in transformers, its other names)
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "emb_dim", "word_embed_proj_dim", "embedding_size", "hidden_dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads", "attention_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_dim": ("head_dim", "d_kv", "kv_channels", "attention_head_dim"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "moe_intermediate_size", "d_inner",
            "hidden_dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth"),
    "encoder_layers": ("encoder_layers", "num_encoder_layers", "num_hidden_layers", "num_layers"),
    "decoder_layers": ("decoder_layers", "num_decoder_layers"),
    "vocab": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length", "max_target_positions"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
}
AMBIGUOUS = ("hidden_dim",)  # of the stream for some types, of the feed-forward part for others: counts where nothing else does
COMPUTED = ("head_dim", "kv_heads")  # a class that has these computes them from other sizes where they are not given
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
FILE = "name the model file itself instead of the folder, or take the config out of it, to grow it without its config"


@dataclass
class Sizes:
    """Old and new size of every role, by its name in NAMES; None where the model has no such thing.

    Args:
        origins: the old layer behind each new one.
        tower: whose sizes these are, where there are several.
    """

    old: dict[str, int | None]
    new: dict[str, int | None]
    origins: dict[str, list[int]] = field(default_factory=dict)
    tower: str = ""

    def alone(self) -> Sizes:
        """The same where a tower has a config of its own: that has nothing but `layers`."""
        old, new, origins = ({"layers" if name.endswith("_layers") else name: x for name, x in found.items()} for found in (self.old, self.new, self.origins))
        return Sizes(old, new, origins, self.tower)

    def changed(self) -> Iterator[str]:
        return (n for n in NAMES if self.old.get(n) is not None and self.old[n] != self.new[n])


@dataclass
class Grown:
    """A config for the grown model, what changed in it by its key (old, new), and what is to be told."""

    config: dict
    changes: dict[str, tuple]
    notes: list[str]


def sizes_of(plan) -> dict[str, Sizes]:
    """The sizes before and after, by the name of the tower; the only one is called ""."""
    a = plan.model.architecture
    deeper = plan.deeper.layers if plan.deeper else {}
    shared = {"vocab": a.vocab, "positions": a.positions, "experts": plan.roles.size("experts")}
    shared = {name: size for name, size in shared.items() if size is not None}
    out = {}
    for tower in a.widths or [a]:
        name = getattr(tower, "name", "")
        old = {base: getattr(tower, base) for base in ("hidden", "heads", "kv_heads", "head_dim", "ffn")} | shared
        new = {base: plan.sizes.get(f"{name}.{base}" if name and base not in shared else base, (size, size))[1] for base, size in old.items()}
        if old["kv_heads"] == old["heads"] and f"{name}.kv_heads".lstrip(".") not in plan.roles.roles:
            new["kv_heads"] = new["heads"]
        stacks = {s.name: s.layers for s in plan.model.stacks if not a.widths or s.name.startswith(name)}
        roles = {s: s if s in NAMES and len(plan.model.stacks) > 1 else "layers" for s in stacks}
        old |= {roles[s]: count for s, count in stacks.items()}
        new |= {roles[s]: deeper.get(s, (count, count))[1] for s, count in stacks.items()}
        out[name] = Sizes(old, new, {roles[s]: _origins(plan, s) for s in stacks if s in deeper}, name)
    return out


def _origins(plan, stack: str) -> list[int]:
    """For each layer of the grown stack the layer of the source that it is or was copied from."""
    found = next(s for s in plan.model.stacks if s.name == stack)
    period, start = found.period, found.before
    middle = [start + place.block * period + k for place in plan.deeper.places[stack] for k in range(period)]
    return [*range(start), *middle, *range(found.layers - found.after, found.layers)]


def read_config(file: Path) -> dict:
    """A JSON file that holds an object; FileError otherwise."""
    found = read_json(file, "config")
    if not isinstance(found, dict):
        raise FileError(f"{file} holds no config", hint=f"mend it, or {FILE}")
    return found


def write_config(file: Path, config: dict) -> None:
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def grow_config(config: dict, plan) -> Grown:
    """The config of the grown model.

    Raises:
        SizeError: a size that changes has no place in the config, or the config is not that of the model.
    """
    grown, claims = Grown(json.loads(json.dumps(config)), {}, []), {}
    for tower, sizes in sizes_of(plan).items():
        one = Grown(json.loads(json.dumps(config)), {}, [])
        part, where = _part(one.config, tower, sizes)
        sizes = sizes.alone() if where and tower else sizes
        _claim(part, where, sizes, claims)
        _grow(part, where, sizes, one, config.get("model_type"))
        held = grown.config[where.removesuffix(".")] if where else grown.config
        held.update({key.removeprefix(where): new for key, (_, new) in one.changes.items()})
        grown.changes |= one.changes
        grown.notes += one.notes
    named = {name.rpartition(".")[2] for name in plan.sizes}
    grown.notes += [f"{name} {old} -> {new} is no entry of config.json" for name, (old, new) in plan.sizes.items()
                    if name.rpartition(".")[2] not in NAMES and not name.endswith("layers") and name.rpartition(".")[2] not in ("v_head_dim", "group")]
    if "vocab" in named:
        grown.notes.append("the tokenizer does not know the new words")
    return grown


def _claim(part: dict, where: str, sizes: Sizes, claims: dict[str, tuple]) -> None:
    """SizeError where one entry would have to say different sizes of two towers."""
    for role in (role for role in NAMES if sizes.old.get(role)):
        for key in _keys(part, role, sizes):
            tower, size = claims.setdefault(where + key, (sizes.tower, sizes.new[role]))
            if size != sizes.new[role]:
                raise SizeError(f"config.json has one entry {where + key}, which would have to be {size} for the {tower} and {sizes.new[role]} for the {sizes.tower}",
                                hint=f"grow both alike, or {FILE}")


def _part(config: dict, tower: str, sizes: Sizes) -> tuple[dict, str]:
    """The config, or the part of it for one tower, and what its keys begin with in reports."""
    inner = {key: value for key, value in config.items() if isinstance(value, dict) and _keys(value, "hidden", sizes)}
    named = f"{tower}_config"
    if tower and named in inner:
        return inner[named], f"{named}."
    if not any(name in config for name in NAMES["hidden"]):
        fits = [key for key, value in inner.items() if all(_keys(value, role, sizes) for role in ("heads", "ffn") if sizes.old[role])]
        if len(fits) == 1:
            return inner[fits[0]], f"{fits[0]}."
    return config, ""


def _keys(config: dict, role: str, sizes: Sizes, model_type: str | None = None) -> list[str]:
    """The keys under which a config holds the size of a role; none where it has none, or only other sizes."""
    old, other = sizes.old, {"encoder": "decoder_", "decoder": "encoder_"}.get(sizes.tower, " ")
    names = [name for name in NAMES[role] if isinstance(config.get(name), int) and not name.startswith(other)]
    found = [name for name in names if config[name] == old[role]]
    declared = _declared(model_type).get(NAMES[role][0]) if not names and model_type else None
    return [name for name in found if name not in AMBIGUOUS] or found or [declared] * bool(declared and config.get(declared) == old[role])


def _declared(model_type: str) -> dict[str, str]:
    """What transformers declares for a type of model: its own name -> the name in the config; nothing where it is not installed."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        return dict(getattr(CONFIG_MAPPING[model_type], "attribute_map", None) or {})
    except (ImportError, KeyError):
        return {}


def _grow(part: dict, where: str, sizes: Sizes, grown: Grown, model_type: str | None) -> None:
    old, new = sizes.old, sizes.new
    stated = {role: _keys(part, role, sizes, model_type) for role in sizes.changed()}
    for role, keys in stated.items():
        for key in keys:
            _set(part, where, key, new[role], grown)
        if not keys and role == "positions":
            _shift_positions(part, where, sizes, grown)
        elif not keys:
            _implied(part, where, role, sizes, grown)
    for role in ("ffn", "head_dim"):  # where nothing is stated, the class computes them from sizes that may have changed
        if new.get(role) and old[role] == new[role] and not _keys(part, role, sizes):
            _implied(part, where, role, sizes, grown)
    for role, origins in sizes.origins.items():
        _regrow_lists(part, where, old[role], origins, grown)


def _set(part: dict, where: str, key: str, value, grown: Grown) -> None:
    if part.get(key) != value:
        grown.changes[where + key] = (part.get(key), value)
        part[key] = value


def _implied(part: dict, where: str, role: str, sizes: Sizes, grown: Grown) -> None:
    """A size that is not stated: fine where the usual proportion gives it, written where the config has an empty place for it, else refused."""
    held = {name: part[name] for name in NAMES[role] if isinstance(part.get(name), int)}
    old, new = sizes.old, sizes.new
    if held and old[role] != new[role]:
        told = ", ".join(f"{name} {size}" for name, size in held.items())
        raise SizeError(f"config.json does not belong to this model: it has {told}, and the graph has {role} {old[role]}", hint=f"correct it, or {FILE}")
    usual = {"head_dim": lambda s: s["heads"] and s["hidden"] / s["heads"], "ffn": lambda s: 4 * s["hidden"], "kv_heads": lambda s: s["heads"]}.get(role)
    if held or (usual and usual(old) == old[role] and usual(new) == new[role]):
        return
    if usual and usual(old) != old[role]:
        if old[role] == new[role] and old["hidden"] == new["hidden"] and old["heads"] == new["heads"]:
            return  # neither it nor what it is computed from changes
    empty = next((name for name in NAMES[role] if name in part), None) or (_room(part, role) if role in COMPUTED else None)
    if empty is None:
        change = f"{role} {old[role]} -> {new[role]}" if old[role] != new[role] else f"{role} {new[role]} at hidden {new['hidden']} and {new['heads']} heads"
        raise SizeError(f"config.json has no entry that could say {change}", hint=f"choose sizes in the model's own proportions, or {FILE}")
    _set(part, where, empty, new[role], grown)


def _room(part: dict, role: str) -> str | None:
    """A key that the class of the config takes though it is not written there; transformers is asked."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        name = NAMES[role][0]
        declared = {name, *_declared(part.get("model_type", ""))}
        return name if name in declared and hasattr(CONFIG_MAPPING[part["model_type"]](), name) else None
    except (ImportError, KeyError, AttributeError, TypeError):
        return None


def _shift_positions(part: dict, where: str, sizes: Sizes, grown: Grown) -> None:
    """Some tables have a few rows more than there are positions (OPT, BART): the config's number grows by as much as the table."""
    more = sizes.new["positions"] - sizes.old["positions"]
    key = next((n for n in NAMES["positions"] if isinstance(part.get(n), int) and 0 < sizes.old["positions"] - part[n] <= 2), None)
    if key:
        _set(part, where, key, part[key] + more, grown)
    else:
        grown.notes.append(f"positions grow by {more}, and config.json has no number that is that of the graph today")


def _regrow_lists(part: dict, where: str, count: int, origins: list[int], grown: Grown) -> None:
    """Lists with an entry for each layer (`layer_types`): each new layer has the entry of the one it came from."""
    for key, value in part.items():
        if isinstance(value, list) and len(value) == count and "layer" in key:
            part[key] = [value[i] for i in origins]
            grown.changes[where + key] = (value, part[key])


def follow_numbers(grown: Grown, model) -> None:
    """Numbers besides sizes that the graph states after growth: one epsilon of all norms, the base of plain rotary frequencies."""
    from .pytorch.hugging import readings

    config, found = grown.config, {eps for _, eps in readings.epsilons(model.roles)}
    key = next((name for name in EPSILONS if isinstance(config.get(name), (int, float))), None)
    if key and len(found) == 1 and abs(config[key] - (eps := found.pop())) > 1e-5 * eps:
        _set(config, "", key, eps, grown)
    elif key and len(found) > 1 and min(abs(eps - config[key]) for eps in found) < max(found) - min(found):
        grown.notes.append(f"the norms have different epsilons now, and {key} is one number: ONNX Runtime does not read it, for transformers use export --format hf")
    rope = config.get("rope_parameters") if isinstance(config.get("rope_parameters"), dict) else config
    frequencies = readings.frequencies(model.roles) if isinstance(rope.get("rope_theta"), (int, float)) else None
    theta = None if frequencies is None else readings.fit_theta(frequencies, readings.rounding(model.roles))
    if theta is not None and abs(theta - rope["rope_theta"]) > 1e-5 * theta and config.get("rope_scaling") is None:
        _set(rope, "" if rope is config else "rope_parameters.", "rope_theta", theta, grown)
