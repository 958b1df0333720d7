"""The one exception family. Raised bare where a thing goes wrong, completed on the way up, printed at the boundary.

Every message answers three questions: what was looked for, where, and what to do next.
"""

from __future__ import annotations


class OnnxgrowError(Exception):
    """Base of every error that onnxgrow raises on purpose; the command line prints it without a traceback.

    Args:
        what: one sentence that says what is wrong.
        node: name of the node, initializer or file concerned, where there is one.
        axis: index of the tensor axis concerned, where there is one.
        hint: the exact next step for the user.
    """

    exit_code = 1

    def __init__(self, what: str, *, node: str | None = None, axis: int | None = None, hint: str | None = None):
        super().__init__(what)
        self.what, self.node, self.axis, self.hint = what, node, axis, hint

    @property
    def kind(self) -> str:
        """The name of the class of this module that the error belongs to, by which `except` and the documents of --json go."""
        return next(c.__name__ for c in type(self).__mro__ if c.__module__ == __name__)

    def __str__(self) -> str:
        where = [f"node {self.node!r}"] if self.node else []
        where += [f"axis {self.axis}"] if self.axis is not None else []
        text = f"{self.what} ({', '.join(where)})" if where else self.what
        text, hint = (part.replace("\n", "\\n") for part in (text, self.hint or ""))  # a name with lines in it makes none of its own
        return f"{text}\n  next: {hint}" if hint else text


class FileError(OnnxgrowError):
    """The file is missing, truncated, not ONNX, or its external data is not what it says."""


class GraphError(OnnxgrowError):
    """The graph is not understood where it would have to be: unknown operator, untraceable size, no transformer."""


class SizeError(OnnxgrowError):
    """The size asked for cannot be reached: it shrinks, does not divide, or names nothing that can grow."""


class MethodError(OnnxgrowError):
    """The method asked for cannot keep the function at this size."""


class NotEqualError(OnnxgrowError):
    """Source and grown model ran, and differ."""


class UsageError(OnnxgrowError):
    """The command line does not make sense (exit code 2)."""

    exit_code = 2
