"""Which tensors of the grown model correspond to which of the source: more layers move the numbers in names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Twins:
    """Names that belong together.

    Args:
        inputs: input of the grown model -> the source's input whose values it takes; a new layer's cache takes those of its original.
        outputs: output of the grown model -> the source's output that it must equal; those of new layers are left out.
        tensors: tensor of the source -> its name in the grown model, where it is another one.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    tensors: dict[str, str] = field(default_factory=dict)

    @classmethod
    def same(cls, inputs: Iterable[str], outputs: Iterable[str]) -> Twins:
        """Names that did not change."""
        return cls({name: name for name in inputs}, {name: name for name in outputs})

    def grown(self, tensor: str) -> str:
        return self.tensors.get(tensor, tensor)
