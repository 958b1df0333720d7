"""The outermost layer around the analysis: what nobody thought of is a refusal, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import GraphError, OnnxgrowError


class Unforeseen(GraphError):
    """A graph made the program stumble. Nothing was decided, so nothing wrong was written; `__cause__` says where it happened."""


@contextmanager
def understood() -> Iterator[None]:
    """Errors of Python, numpy and onnx inside become a GraphError; those of onnxgrow, of the system and of click pass."""
    try:
        yield
    except (OnnxgrowError, OSError):
        raise
    except MemoryError as problem:
        raise GraphError("the graph asks for more memory than there is", hint="check the sizes of its inputs and constants: onnxgrow needs little beside them") from problem
    except Exception as problem:  # a stranger's graph may lead anywhere
        if type(problem).__module__.startswith("click."):
            raise
        text = " ".join(str(problem).split())
        raise Unforeseen(f"the graph is not understood: {type(problem).__name__}{f': {text[:200]}' if text else ''}",
                         hint="check it with onnx.checker; if it is sound, please report it, with what --verbose says") from problem
