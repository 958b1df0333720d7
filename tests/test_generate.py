"""A grown decoder writes on as its source does: 200 tokens, greedy and cached, for a batch of prompts of different lengths.

Prompts are padded on the left, and the mask covers cache and new tokens. Positions are not fed: the exported model counts them from the
length of the cache, and rotary positions matter by their distance only, so padding shifts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest

from tests import growing
from tests.growing import Case
from tests.zoo_models import VOCAB

STEPS, LENGTHS = 200, (3, 7, 12, 1)
WEIGHTS = 7  # the seed of weights whose text does not run into a short loop
DISTINCT, LATER = 20, 12  # ids in each text, and in its second half
GROWTHS = {"deeper": dict(layers=3), "deeper and wider": dict(layers=3, hidden=48, ffn=101), "gate": dict(layers=3, depth_method="gate"),
           "in front": dict(layers=4, placement="start", block_init="random")}


@dataclass
class Text:
    """What a model wrote: ids [batch, steps], logits [batch, steps, vocabulary], and the caches that it ended with."""

    ids: np.ndarray
    logits: np.ndarray
    caches: growing.Feeds


def prompts() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(4, VOCAB, length) for length in LENGTHS]


def generate(path, given: list[np.ndarray], steps: int = STEPS) -> Text:
    """Greedy, one token at a time, from empty caches."""
    runner = growing.session(path)
    names = [o.name for o in runner.get_outputs()]
    length = max(map(len, given))
    ids = np.stack([np.pad(p, (length - len(p), 0)) for p in given])
    mask = np.stack([np.arange(length) >= length - len(p) for p in given]).astype(np.int64)
    caches = {i.name: np.zeros((len(given), i.shape[1], 0, i.shape[3]), np.float32) for i in runner.get_inputs() if i.name.startswith("past")}
    written, logits = [], []
    for _ in range(steps):
        made = dict(zip(names, runner.run(names, {"input_ids": ids, "attention_mask": mask} | caches), strict=True))
        caches = {name.replace("present", "past"): x for name, x in made.items() if name.startswith("present")}
        logits.append(made["logits"][:, -1])
        ids = logits[-1].argmax(-1)[:, None]
        written.append(ids)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    return Text(np.concatenate(written, 1), np.stack(logits, 1), caches)


@lru_cache
def by_the_source(exporter: str) -> Text:
    return generate(Case("llama-past", exporter, seed=WEIGHTS).path, prompts())


@pytest.mark.parametrize("label", GROWTHS)
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_it_writes_the_same_text(exporter, label, tmp_path):
    case, want = Case("llama-past", exporter, seed=WEIGHTS), by_the_source(exporter)
    plan = growing.opened(case.path).plan(**GROWTHS[label])
    assert plan.certificate.kind == "exact"
    got = generate(growing.written(plan, tmp_path), prompts())
    assert np.array_equal(got.ids, want.ids)
    error = np.abs(got.logits - want.logits).max((0, 2)) / np.abs(want.logits).max((0, 2))  # at each step
    assert error.max() <= growing.TOLERANCE
    names = {f"past_{kind}_{layer}" for layer in range(GROWTHS[label]["layers"]) for kind in ("key", "value")}
    filled = max(LENGTHS) + STEPS - 1
    assert got.caches.keys() == names and all(x.shape[2] == filled and x.any() for x in got.caches.values())


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_the_text_is_no_loop(exporter):
    """Else the test above would compare next to nothing."""
    text = by_the_source(exporter).ids
    assert all(len(set(row)) >= DISTINCT and len(set(row[STEPS // 2 :])) >= LATER for row in text.tolist())
    assert len({tuple(row) for row in text.tolist()}) == len(LENGTHS)


def test_padding_changes_nothing():
    """A prompt alone, without padding, is gone on with in the same way: mask and caches of the batch are right."""
    case = Case("llama-past", "torchscript", seed=WEIGHTS)
    for prompt, row in zip(prompts(), by_the_source("torchscript").ids, strict=True):
        assert np.array_equal(generate(case.path, [prompt]).ids[0], row)
