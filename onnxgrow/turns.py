"""Source and grown model as a caller runs them: the encoder once, the decoder on the first words, then word by word with what it has kept.

The joined graph proves and runs one step behind the first words. Here the files run by themselves, and each step takes what the one before it
gave. Words are the source's own choice, for both models, so that one difference does not make all that follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from .compare import compare, grown_input, over_all
from .errors import GraphError
from .feeds import Case, cases, given
from .inputs import kind_of
from .join import Joined
from .joint import File
from .members import FILES, MERGED, Member, next_links
from .merged import flag_of
from .report import CaseResult, Report
from .runtime import Session, open_session, pick_provider

if TYPE_CHECKING:
    from .jointplan import JointPlan

STEPS, CASES = 3, 2  # words behind the first ones, and sets of inputs that are tried
WORDS, LOGITS = "input_ids", "logits"
Arrays = dict[str, np.ndarray]
Spoken = list[tuple[np.ndarray, Arrays]]  # the words of each step, and all that was known behind it


@dataclass(frozen=True)
class Voice:
    """A file that runs, and what it wants besides what a member takes: the input that chooses a branch, and something for those of the other."""

    session: Session
    given: list[str]
    beside: Arrays

    def run(self, fed: Arrays) -> Arrays:
        out = self.session.run({**self.beside, **fed})
        return {name: out[name] for name in self.given}


@dataclass
class Speaker:
    """The graphs of one model, run one after the other. Arrays go by their names in the joined graph."""

    joined: Joined
    voices: dict[str, Voice]

    @property
    def last(self) -> Member | None:
        """The decoder that goes on from what was kept; None where there is none, or it does not go from word to word."""
        m, said = self.joined.members[-1], {(m.name, v.name) for m in self.joined.members for v in m.graph.output}
        words = WORDS in {v.name for v in m.fed} and {("decoder", LOGITS), (m.name, LOGITS)} <= said
        return m if words and m.name != m.kin else None

    def begin(self, feeds: Arrays) -> Arrays:
        """What encoder and decoder say to the first words, beside what they were fed."""
        known = dict(feeds)
        for m in self.joined.members:
            if m is not self.last:
                known |= self._run(m, known)
        return known

    def step(self, known: Arrays, words: np.ndarray) -> Arrays:
        """One more word for each row, int64 [batch, 1]; what it keeps goes to the next step."""
        m, names = self.last, self.joined.names[self.last.name]
        out = self._run(m, known | {names[WORDS]: words})
        return known | out | {self.joined.links[names[taken]]: out[names[given]] for taken, given in next_links(m).items()}

    def _run(self, m: Member, known: Arrays) -> Arrays:
        names = self.joined.names[m.name]
        fed = {v.name: known[self.joined.links.get(names[v.name], names[v.name])] for v in m.fed}
        return {names[name]: x for name, x in self.voices[m.name].run(fed).items()}


def speakers(joined: Joined, files: list[File], provider: str | None, replaced: str | None) -> Iterator[tuple[str, Speaker]]:
    """The model as its files can be run, by the file of the decoder: with decoders apart, and merged. One is open at a time."""
    for merged in (False, True):
        chosen = [file for file in files if "encoder" in file.weights or (len(file.weights) > 1) == merged]
        if {name for file in chosen for name in file.weights} == {m.name for m in joined.members}:
            held = {name: file for file in chosen for name in file.weights}
            opened = {file.name: open_session(file.source, pick_provider(provider), replaced=replaced) for file in chosen}
            yield FILES[MERGED if merged else "decoder"], Speaker(joined, {m.name: _voice(m, held[m.name], opened[held[m.name].name]) for m in joined.members})


def _voice(m: Member, file: File, session: Session) -> Voice:
    given = [v.name for v in m.graph.output]
    if len(file.weights) < 2:
        return Voice(session, given, {})
    g = file.source.proto.graph
    beside = {v.name: np.zeros([d.dim_value or 1 for d in v.type.tensor_type.shape.dim], helper.tensor_dtype_to_np_dtype(kind_of(v))) for v in g.input}
    return Voice(session, given, beside | {flag_of(g): np.full_like(beside[flag_of(g)], m.name != m.kin)})


def steps_equal(plan: JointPlan, grown: Joined, files: list[File], report: Report, feeds: Arrays | None, provider: str | None) -> Report:
    """The report with what each step shows.

    Raises:
        GraphError: the grown graphs do not run one after the other.
    """
    s = plan.model.roles.structure
    tried = cases(s, plan.model.roles, plan.request.seed) if feeds is None else [given(s, feeds)]
    ran = {c.label for c in report.cases}
    tried = [c for c in tried if c.label in ran][:CASES]
    spoken, skipped = _source(plan, tried, provider, report.replaced)
    found = list(report.cases)
    for name, speaker in speakers(grown, files, provider, report.replaced):
        found += [_follow(plan, name, case, spoken[name, case.label], speaker) for case in tried if (name, case.label) in spoken]
    together = iter(over_all([d for c in found for d in c.outputs]))
    found = [replace(c, outputs=tuple(next(together) for _ in c.outputs)) for c in found]
    return replace(report, cases=tuple(found), skipped=report.skipped | skipped)


def _source(plan: JointPlan, tried: list[Case], provider: str | None, replaced: str | None) -> tuple[dict[tuple[str, str], Spoken], dict[str, str]]:
    """What the source says, by file of the decoder and set of inputs; why others are left out."""
    spoken, skipped = {}, {}
    for name, speaker in speakers(plan.model.joined, plan.model.files, provider, replaced):
        for case in tried if speaker.last is not None else ():
            try:
                spoken[name, case.label] = _speak(speaker, case.feeds)
            except GraphError as error:  # there may be no room for more words
                skipped[f"{case.label}, then words of {name}"] = error.what
    return spoken, skipped


def _speak(speaker: Speaker, feeds: Arrays) -> Spoken:
    """What a model says word by word, of its own choice."""
    known, out = speaker.begin(feeds), []
    first, later = (speaker.joined.names[name] for name in ("decoder", speaker.last.name))
    logits = known[first[LOGITS]]
    for _ in range(STEPS):
        words = logits[:, -1:].argmax(-1).astype(feeds[later[WORDS]].dtype)
        known = speaker.step(known, words)
        logits = known[later[LOGITS]]
        out.append((words, known))
    return out


def _follow(plan: JointPlan, file: str, case: Case, spoken: Spoken, grown: Speaker) -> CaseResult:
    """What the grown model says to the same words."""
    known = grown.begin({name: grown_input(case.feeds[twin], plan.decisions.inputs.get(name, ())) for name, twin in plan.twins.inputs.items()})
    mine, out = set(grown.joined.names[grown.last.name].values()), []
    for words, wanted in spoken:
        known = grown.step(known, words)
        out += [compare(twin, wanted[twin], known[name], plan.decisions.outputs.get(name, ()), twin.endswith(LOGITS))
                for name, twin in plan.twins.outputs.items() if name in mine]
    return CaseResult(f"{case.label}, then {len(spoken)} words of {file}", case.sizes, tuple(out))
