"""Protobuf wire format: where the weights of an ONNX file lie, and the few bytes around them when writing.

A message is a flat list of fields, each `tag, body`; a tag is `number << 3 | wire type`, a varint. Only three levels
matter here: ModelProto.graph (7) -> GraphProto.initializer (5) -> TensorProto.raw_data (9). Everything else is copied
as it stands, so fields that this version of ONNX does not know survive. Source:
https://protobuf.dev/programming-guides/encoding and onnx/onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


MOST_FIELDS = 500_000  # in one message: nodes, weights and values of a graph


class WireError(ValueError):
    """The bytes are not a complete protobuf message; the text says what is wrong at which byte."""


class Field(NamedTuple):
    """One field: `tag` is the byte where its tag starts, `body` where its content starts, `end` the byte after it."""

    number: int
    kind: int
    tag: int
    body: int
    end: int


class Span(NamedTuple):
    """Bytes `offset .. offset + length` of a file."""

    offset: int
    length: int


def read_varint(data, at: int, end: int) -> tuple[int, int]:
    """The varint at byte `at` and the byte after it; WireError when it runs past `end` or over 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise WireError(f"ends at byte {end}, in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise WireError(f"has a number longer than 64 bits at byte {at - 10}")


def fields(data, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in `data[start:end]`, without their content. Each step moves forward, so this ends."""
    at, count = start, 0
    while at < end:
        tag, count = at, count + 1
        if count > MOST_FIELDS:
            raise WireError(f"has more than {MOST_FIELDS} fields in one message: so many nodes or weights has no model")
        key, at = read_varint(data, at, end)
        number, kind = key >> 3, key & 7
        if kind == BYTES:
            length, body = read_varint(data, at, end)
            at = body + length
        elif kind == VARINT:
            body = at
            _, at = read_varint(data, at, end)
        elif kind in (FIXED32, FIXED64):
            body, at = at, at + (4 if kind == FIXED32 else 8)
        else:
            raise WireError(f"has wire type {kind} at byte {tag}, which ONNX does not use")
        if not 0 < number < 1 << 29:
            raise WireError(f"has field number {number} at byte {tag}")
        if at > end:
            raise WireError(f"ends at byte {end}, inside a field that should end at byte {at}")
        yield Field(number, kind, tag, body, at)


def detach(data, inline_bytes: int) -> tuple[bytes, list[Span | None]]:
    """A model without its big weights, and where those are.

    Args:
        data: the whole file, bytes or an mmap; only the pages with tags on them are touched.
        inline_bytes: raw_data of at most this many bytes stays in the header.
    Returns:
        header: a ModelProto without the big raw_data of the top-level initializers;
        one entry for each initializer in file order: the Span of its raw_data, or None where it stayed in the header.
    """
    spans: list[Span | None] = []
    header = bytearray()
    for field in fields(data, 0, len(data)):
        if field.number == GRAPH and field.kind == BYTES:
            header += message(GRAPH, _detach_graph(data, field, inline_bytes, spans))
        else:
            header += data[field.tag : field.end]
    return bytes(header), spans


def _detach_graph(data, graph: Field, inline_bytes: int, spans: list[Span | None]) -> bytes:
    """The body of one GraphProto without big raw_data; appends to `spans` for each initializer."""
    kept, copied = bytearray(), graph.body  # data[:copied] is dealt with
    for field in fields(data, graph.body, graph.end):
        if field.number != INITIALIZER or field.kind != BYTES:
            continue
        parts = list(fields(data, field.body, field.end))
        raw = [part for part in parts if part.number == RAW_DATA and part.kind == BYTES]
        span = Span(raw[-1].body, raw[-1].end - raw[-1].body) if raw else None  # protobuf: the last one counts
        if span is None or span.length <= inline_bytes:
            spans.append(None)
            continue
        spans.append(span)
        kept += data[copied : field.tag]
        kept += message(INITIALIZER, b"".join(data[part.tag : part.end] for part in parts if part not in raw))
        copied = field.end
    return bytes(kept + data[copied : graph.end])


def varint(value: int) -> bytes:
    """`value` (0 or more) as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def head(number: int, length: int) -> bytes:
    """The bytes before a length-prefixed field body of `length` bytes."""
    return varint(number << 3 | BYTES) + varint(length)


def message(number: int, body: bytes) -> bytes:
    """A whole length-prefixed field."""
    return head(number, len(body)) + body
