"""One model in several graphs, as optimum lays out encoders and decoders: which files of a folder they are, and what one hands to another.

    encoder_model.onnx              input_ids -> last_hidden_state
    decoder_model.onnx              encoder_hidden_states, the first words -> logits, present.*
    decoder_with_past_model.onnx    past_key_values.*, one more word -> logits, present.*
    decoder_model_merged.onnx       both decoders, one of which an input chooses (`merged`)

The caller hands on by name what these files leave open: each `present.X` is the next `past_key_values.X`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from .errors import FileError
from .source import Source

MERGED = "merged"
FILES = {"encoder": "encoder_model.onnx", "decoder": "decoder_model.onnx", "decoder_with_past": "decoder_with_past_model.onnx", MERGED: "decoder_model_merged.onnx"}
PAST, PRESENT = "past_key_values.", "present."
STATES, STATES_GIVEN = "encoder_hidden_states", "last_hidden_state"
MASK, MASK_GIVEN = "encoder_attention_mask", "attention_mask"
AGAIN = "export the model again, all of its graphs at once"


@dataclass(frozen=True)
class Member:
    """One graph of the model.

    Args:
        name: encoder | decoder | decoder_with_past; what its tensors are called after in the joined graph.
        source: the graph.
    """

    name: str
    source: Source

    @property
    def kin(self) -> str:
        """Whose weights it has: both decoders are one."""
        return self.name.partition("_")[0]

    @property
    def graph(self) -> onnx.GraphProto:
        return self.source.proto.graph

    @property
    def fed(self) -> list[onnx.ValueInfoProto]:
        """Inputs that are no weights."""
        held = {t.name for t in self.graph.initializer}
        return [v for v in self.graph.input if v.name not in held]


def files_in(place: Path) -> dict[str, Path]:
    """The graphs of one model in a folder, by name; none where it holds no such model."""
    found = {name: place / file for name, file in FILES.items() if (place / file).is_file()}
    return found if len(found) > 1 and {"decoder", MERGED} & found.keys() else {}


def links(members: list[Member]) -> dict[tuple[str, str], tuple[str, str]]:
    """(member, input) -> (member, output or input) whose values it takes.

    Raises:
        FileError: what a graph takes is not what the other one gives.
    """
    by, out = {m.name: m for m in members}, {}
    for member in members:
        for value in member.fed:
            found = _giver(member, value.name, by)
            if found:
                giver = _value(by, *found, to=f"{FILES[member.name]} takes {value.name!r}")
                if _fits(value, giver):
                    out[member.name, value.name] = found
                elif value.name != MASK:  # of another type it is fed by itself
                    raise FileError(f"{FILES[member.name]} takes {value.name!r} as {_told(value)}, and {FILES[found[0]]} gives {found[1]!r} as {_told(giver)}", hint=AGAIN)
    return out


def next_links(member: Member) -> dict[str, str]:
    """Input of a decoder with a past -> its own output that takes its place in the next step."""
    given = {v.name for v in member.graph.output}
    pairs = ((v.name, PRESENT + v.name.removeprefix(PAST)) for v in member.fed if v.name.startswith(PAST))
    return {taken: name for taken, name in pairs if name in given}


def _giver(member: Member, name: str, by: dict[str, Member]) -> tuple[str, str] | None:
    """Who gives an input its values; None where the caller does."""
    if name == STATES and "encoder" in by:
        return "encoder", STATES_GIVEN
    if name == MASK and "encoder" in by and MASK_GIVEN in {v.name for v in by["encoder"].fed}:
        return "encoder", MASK_GIVEN
    if member.name == "decoder_with_past" and name.startswith(PAST):
        return "decoder", PRESENT + name.removeprefix(PAST)
    return None


def _value(by: dict[str, Member], name: str, tensor: str, to: str) -> onnx.ValueInfoProto:
    for value in (*by[name].graph.output, *by[name].fed):
        if value.name == tensor:
            return value
    raise FileError(f"{to}, and {FILES[name]} gives no {tensor!r}", hint=AGAIN)


def _fits(a: onnx.ValueInfoProto, b: onnx.ValueInfoProto) -> bool:
    """Are two values of one type, and of one size wherever both write it down?"""
    x, y = a.type.tensor_type, b.type.tensor_type
    sizes = ((m.dim_value, n.dim_value) for m, n in zip(x.shape.dim, y.shape.dim) if m.HasField("dim_value") and n.HasField("dim_value"))
    return x.elem_type == y.elem_type and len(x.shape.dim) == len(y.shape.dim) and all(m == n for m, n in sizes)


def _told(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    sizes = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)
    return f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()} [{sizes}]"
