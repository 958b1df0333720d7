"""A folder that `AutoModel*.from_pretrained` loads: decide, build the real class, save, compare with the graph, and only then give it its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...atomic import check_free, check_room, new_folder
from ...errors import GraphError, NotEqualError, OnnxgrowError, SizeError
from ...model import Model
from ...write import check_source
from . import readings
from .choice import Choice, choose
from .facts import PLAIN, Facts
from .like import Like, carry_over, open_like
from .names import Parameters, named
from .recipes import State, state_of
from .verify import Verified, verify

AUTO = ("CausalLM", "MaskedLM", "Seq2SeqLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "ImageClassification",
        "TextEncoding")


@dataclass(frozen=True)
class HfReport:
    """What was written.

    Attributes:
        family, cls: the architecture, and its class in transformers.
        auto: the Auto class that loads the folder as this class; the class itself where there is none.
        verified: the comparison with the graph.
        notes: folded numbers, and what the graph did not say.
        carried: files from the folder given with --like.
    """

    folder: Path
    family: str
    cls: str
    auto: str
    verified: Verified
    notes: tuple[str, ...]
    carried: tuple[str, ...]

    @property
    def max_rel(self) -> float:
        """Largest difference from the graph, relative to the largest value of an output."""
        return self.verified.max_rel

    def lines(self) -> list[str]:
        """For people."""
        runs = f"{len(self.verified.cases)} inputs, largest relative difference {self.max_rel:.1e}"
        return [f"wrote {self.folder} ({self.cls})", f"load it with transformers.{self.auto}.from_pretrained({str(self.folder)!r})",
                f"same outputs as the graph: {runs}", *[f"carried over: {', '.join(self.carried)}"] * bool(self.carried),
                *(f"note: {note}" for note in self.notes)]

    def to_json(self) -> dict:
        """The report as a document."""
        outputs = {name: {"field": field, "max_rel": error} for name, (field, error) in self.verified.outputs.items()}
        return {"folder": str(self.folder), "family": self.family, "class": self.cls, "auto_class": self.auto, "max_rel": self.max_rel,
                "outputs": outputs, "cases": list(self.verified.cases), "notes": list(self.notes), "carried": list(self.carried)}


def write_hf(model: Model, parameters: Parameters, folder: str | os.PathLike, like: str | os.PathLike | None = None) -> HfReport:
    """Write a model as a folder of transformers.

    Args:
        parameters: name of the framework -> its array when called; linear weights as [out, in], a tied weight under one of its names.
        folder: must not exist; it gets its name when the model in it has given the same outputs as the graph.
        like: a folder of the source model: its config is the base, and its tokenizer and other files are carried over.
    Raises:
        FileError: the folder exists or cannot be written, or `like` has no config.
        GraphError: no known architecture, or parameters are missing.
        SizeError: the config of the architecture cannot say these sizes.
        NotEqualError: the class computes something else.
    """
    _require()
    target, base = Path(folder), open_like(Path(like)) if like is not None else None
    check_free(target, False, lambda _: False, "choose another name, or remove it first")
    check_room(target.absolute().parent, model.parameters * 2)  # at least: the type of the weights is the config's
    facts = Facts(model.roles, model.architecture, named(parameters), given=base is not None, scaled_rope=base is not None and base.rope_type != "default")
    with quiet():
        try:
            return _write(model, facts, target, base)
        except NotEqualError:
            if not facts.retie or choose(facts, base).config == choose(untied := replace(facts, retie=False), base).config:
                raise
            return _write(model, untied, target, base)


def _require() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise OnnxgrowError(f"--format hf needs {error.name}", hint="pip install torch transformers safetensors") from error


def _write(model: Model, f: Facts, target: Path, base: Like | None) -> HfReport:
    with new_folder(target, like=model.path) as stage:
        choice = choose(f, base)
        state = state_of(choice, f)
        _save(_load(choice, state), f, stage)
        carried = carry_over(base, stage) if base else []
        loader = auto_class(choice)
        verified = verify(model, loader, stage)
        check_source(model.source)
    notes = *state.notes, *verified.notes, *_notes(f, choice, base)
    return HfReport(target, choice.family.name, choice.cls.__name__, loader.__name__, verified, notes, tuple(carried))


def _load(choice: Choice, state: State):
    """The real class with these weights; its own loader makes buffers and ties as it always does."""
    arrays = {key: to_torch(make()) for key, make in state.arrays.items()}
    native, info = choice.cls.from_pretrained(None, config=choice.config, state_dict=arrays, output_loading_info=True)
    lost = {*info["missing_keys"]} - {*choice.match.fresh} | {*info["unexpected_keys"]} | {str(key) for key in info["mismatched_keys"]}
    if lost:
        raise GraphError(f"{choice.cls.__name__} did not take these parameters as they are: {', '.join(sorted(lost)[:4])}",
                         hint="please report this model, and export it without --format hf")
    return native.eval()


def to_torch(array: np.ndarray):
    """A tensor of its own; numpy has bfloat16 only by way of another package."""
    import torch

    whole = np.array(array, order="C")
    return torch.from_numpy(whole.view(np.uint16)).view(torch.bfloat16) if whole.dtype.name == "bfloat16" else torch.from_numpy(whole)


def _save(native, f: Facts, stage: Path) -> None:
    """Write the model, unless the frequencies that it computed from its config are not the graph's: no output of a short text would show it."""
    have = next((buffer for name, buffer in native.named_buffers() if name.endswith("rotary_emb.inv_freq")), None)
    want = readings.frequencies(f.roles) if have is not None else None
    if want is not None and not (len(want) == len(have) and np.allclose(have.float().numpy(), want, rtol=10 * readings.rounding(f.roles), atol=0)):
        raise SizeError("the rotary frequencies of the config are not those of the graph",
                        hint=f"a config that scales them does not fit another head_dim: grow the other sizes, or leave out --like, {PLAIN}")
    native.save_pretrained(stage)


def auto_class(choice: Choice) -> type:
    """The Auto class that loads a config as this class; the class itself where the library has none."""
    import transformers

    for name in ("AutoModel", *(f"AutoModelFor{task}" for task in AUTO)):
        auto = getattr(transformers, name, None)
        found = auto._model_mapping.get(type(choice.config), None) if auto is not None else None
        if choice.cls in (found if isinstance(found, tuple) else (found,)):
            return auto
    return choice.cls


def _notes(f: Facts, choice: Choice, like: Like | None) -> Iterator[str]:
    """What a user should know of the config."""
    if choice.family.name == "Mistral" and f.window is None and f.hidden % choice.config.num_attention_heads:
        yield "Mistral without a window is the network of Llama; LlamaConfig takes no hidden size that heads do not divide"
    if like is None:
        context = ", the longest context" * f.architecture.rotary
        yield (f"dropout, ids of special tokens{context} and the tokenizer are not in the graph: {choice.family.config} has its defaults "
               "(--like DIR takes those of a folder)")
        return
    if hasattr(choice.config, "sliding_window") and (stated := choice.config.sliding_window) != f.window:
        yield f"the config has a window of {stated} positions, the graph of {f.window}: that is beyond the lengths that were compared"
    if (old := like.config.get("vocab_size")) and old != (new := choice.config.vocab_size):
        yield f"vocab_size {old} -> {new}: the tokenizer that was carried over does not know the new words"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of the library; what it would warn of is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
