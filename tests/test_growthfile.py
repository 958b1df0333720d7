"""Recipe files: the same growth again, to the byte; what is not understood is refused; a flag beside a recipe wins and is said."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from onnxgrow.commands import main
from onnxgrow.growthfile import KEYS, SIZES
from tests.test_cli import contents, document, folder, run  # noqa: F401 (folder is a fixture)


def recipe(**entries) -> Path:
    Path("grow.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))
    return Path("grow.yaml")


EVERYTHING = ["--hidden", 144, "--set", "ffn=301", "--layers", 5, "--placement", "after:1", "--block-init", "random", "--vocab", 300, "--pad-vocab-to", 64,
              "--vocab-init", "random", "--init-std", 0.01, "--wake", 1e-3, "--seed", 7, "--provider", "cpu"]


@pytest.mark.parametrize("flags", [["--hidden", 144], ["--hidden", 120, "--only-hidden"], EVERYTHING, ["--ffn", 480, "--method", "copy"],
                                   ["--layers", 6, "--depth-method", "gate"]], ids=["hidden", "only", "everything", "copy", "gate"])
def test_the_same_bytes_again(folder, flags):  # noqa: F811
    """Flags -> file and recipe -> another folder -> the same file; the recipe that a recipe saves is the same, too."""
    flags = [*flags, *["--no-validate"] * ("--provider" not in flags)]
    assert run("expand", "model.onnx", *flags, "-o", "one.onnx", "--save-recipe", "grow.yaml")[0] == 0
    made, text = Path("one.onnx").read_bytes(), Path("grow.yaml").read_text()
    os.remove("one.onnx")
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")
    code, _, err = run("expand", "--recipe", "../grow.yaml", "--save-recipe", "../again.yaml")
    assert code == 0 and "and the flag's" not in err, err
    assert (folder / "one.onnx").read_bytes() == made and (folder / "again.yaml").read_text() == text
    assert not contents(folder / "elsewhere")


def test_a_seed_of_the_recipe_counts(folder):  # noqa: F811
    recipe(model="model.onnx", sizes={"hidden": 144}, seed=7, validate=False, output="one.onnx")
    assert run("expand", "--recipe", "grow.yaml")[0] == 0
    for seed in (7, 0):
        assert run("expand", "model.onnx", "--hidden", 144, "--seed", seed, "--no-validate", "-o", f"{seed}.onnx")[0] == 0
    assert Path("one.onnx").read_bytes() == Path("7.onnx").read_bytes() != Path("0.onnx").read_bytes()


def test_paths_are_relative_to_the_recipe(folder):  # noqa: F811
    (ids,) = (v.name for v in onnx.load("model.onnx").graph.input)
    feeds = {ids: np.arange(24, dtype=np.int64).reshape(2, 12) % 256}
    (folder / "recipes").mkdir()
    np.savez("recipes/feeds.npz", **feeds)
    flags = ["--ffn", 300, "--inputs", "recipes/feeds.npz", "-o", "wide.onnx", "--torch", "wide_pt", "--save-recipe", "recipes/grow.yaml"]
    assert run("expand", "model.onnx", *flags)[0] == 0
    saved = yaml.safe_load(Path("recipes/grow.yaml").read_text())
    assert saved == {"model": "../model.onnx", "sizes": {"ffn": 300}, "seed": 0, "inputs": "feeds.npz", "output": "../wide.onnx", "torch": "../wide_pt"}
    assert list(saved) == [key for key in KEYS if key in saved]
    doc = document("expand", "--recipe", "recipes/grow.yaml", "--force")
    assert [case["label"] for case in doc["validation"]["cases"]] == ["your inputs"] or len(doc["validation"]["cases"]) == 1
    assert doc["torch"]["output"] == "recipes/../wide_pt"


def test_flags_win_and_it_is_said(folder):  # noqa: F811
    recipe(model="gpt.onnx", sizes={"hidden": 192, "ffn": 601}, seed=7, provider="cpu", output="one.onnx", torch="one_pt")
    code, out, err = run("expand", "model.onnx", "--recipe", "grow.yaml", "--hidden", 144, "--set", "ffn=400", "--seed", 7, "--no-validate", "--plan")
    assert code == 0 and "hidden       96 -> 144" in out and "ffn          240 -> 400" in out
    for line in ("model is gpt.onnx here, and the flag's model.onnx is taken", "sizes: hidden is 192 here, and the flag's 144 is taken",
                 "sizes: ffn is 601 here, and the flag's 400 is taken", "provider cpu is not used: --no-validate"):
        assert f"grow.yaml: {line}\n" in err, (line, err)
    assert "seed" not in err and sorted(contents(folder)) == ["gpt.onnx", "grow.yaml", "model.onnx"]
    assert run("expand", "--recipe", "grow.yaml", "--plan")[2] == ""


@pytest.mark.parametrize(("text", "words", "meant"), [
    ("hiden: 144", "no key 'hiden' in a recipe", "did you mean hidden, below sizes?"),
    ("metod: pad", "no key 'metod' in a recipe", "did you mean method?"),
    ("zzz: 1", "no key 'zzz' in a recipe", "keys: model, sizes"),
    ("3: 1", "no key 3 in a recipe", "keys: model"),
    ("rules: [evil.py]", "names rules", "with --rules"),
    ("force: true", "no key 'force'", ""),
    ("sizes: {hidden: 144}\nsizes: {hidden: 192}", "the key 'sizes' is given twice", ""),
    ("sizes: {hidden: 144, hidden: 192}", "the key 'hidden' is given twice", ""),
    ("sizes: 144", "sizes is 144, not a list of NAME: SIZE", ""),
    ("sizes: {hidden: yes}", "the size of hidden is True", "hidden: 1024"),
    ("sizes: {hidden: 144.5}", "the size of hidden is 144.5", ""),
    ("sizes: {hidden: 0}", "the size of hidden is 0", ""),
    ("sizes: {hidden: '144'}", "the size of hidden is '144'", ""),
    ("sizes: {hiden: 144}", "the model has no dim named 'hiden'", ""),
    ("seed: 1.5", "seed is 1.5, not a whole number", ""),
    ("validate: 1", "validate is 1, not true or false", ""),
    ("method: no", "method is False, not text", ""),
    ("method: best", "'best' is not one of", "--method"),
    ("provider: tpu", "'tpu' is not one of", "--provider"),
    ("init_std: -1", "is not in the range", "--init-std"),
    ("wake: true", "wake is True, not a number", ""),
    ("- hidden", "holds no keys", "sizes: {hidden: 1024}"),
    ("", "holds no keys", ""),
    ("sizes: {", "cannot be read as YAML", ""),
    ("model: !!python/object/apply:os.system ['touch pwned']", "cannot be read as YAML", ""),
    ("? [a]\n: 1", "cannot be read as YAML", ""),
    ("sizes: {hidden: 144}\nplacement: middle\n", "--placement says how layers are added", ""),
])
def test_what_is_not_understood_is_refused(folder, text, words, meant):  # noqa: F811
    Path("grow.yaml").write_text(text)
    before = contents(folder)
    flags = [] if "sizes" in text and text.startswith("sizes: {hi") else ["--hidden", 144]
    code, _, err = run("expand", "model.onnx", "--recipe", "grow.yaml", *flags if "144" not in text and "192" not in text else [])
    assert code == (1 if "no dim named" in words else 2) and words in err and meant in err and "Traceback" not in err, err
    assert contents(folder) == before


def test_files_that_cannot_be(folder):  # noqa: F811
    assert run("expand", "--recipe", "grow.yaml")[0] == 1 and "cannot read the recipe grow.yaml" in run("expand", "--recipe", "grow.yaml")[2]
    code, _, err = run("expand", "--hidden", 144)
    assert code == 2 and "Missing argument 'MODEL'" in err
    recipe(sizes={"hidden": 144})
    assert run("expand", "--recipe", "grow.yaml")[0] == 2
    code, _, err = run("expand", "model.onnx", "--hidden", 144, "--save-recipe", "grow.yaml")
    assert code == 1 and "grow.yaml exists" in err and not Path("model-h144.onnx").exists()
    code, _, err = run("expand", "model.onnx", "--hidden", 100, "--save-recipe", "bad.yaml")
    assert code == 1 and not Path("bad.yaml").exists()
    code, _, err = run("expand", "model.onnx", "--hidden", 144, "--save-recipe", "nowhere/grow.yaml")
    assert code == 1 and "there is no folder" in err and not Path("model-h144.onnx").exists()
    Path("grow.yaml").write_bytes(b"#" * (1 << 21))
    code, _, err = run("expand", "--recipe", "grow.yaml")
    assert code == 1 and "are the most that are read" in err


def test_a_plan_can_be_saved_and_dry_run_is_one(folder):  # noqa: F811
    code, out, _ = run("expand", "model.onnx", "--hidden", 144, "--dry-run", "--save-recipe", "grow.yaml")
    assert code == 0 and out == run("expand", "model.onnx", "--hidden", 144, "--plan")[1]
    assert sorted(contents(folder)) == ["gpt.onnx", "grow.yaml", "model.onnx"]
    assert document("expand", "--recipe", "grow.yaml", "--dry-run") == document("expand", "model.onnx", "--hidden", 144, "--plan")


def test_every_option_has_its_key():
    """An option that a recipe could not say would be lost on the way."""
    names = {p.name for p in main.commands["expand"].params}
    elsewhere = {"only_plan", "force", "rules", "as_json", "recipe", "save_recipe", "quiet", "verbose", "set_", "no_validate", "torch_folder", *SIZES}
    assert names - elsewhere == set(KEYS) - {"sizes", "validate", "torch"}


def test_the_suggested_command_runs_again(folder):  # noqa: F811
    """Its target is there by then; without --force that is said before anything is planned, and it names the model, not its data file."""
    code, _, err = run("expand", "model.onnx", "--ffn", 500, "-o", "wide.onnx", "--save-recipe", "grow.yaml", "--no-validate")
    command = err.rpartition("the same growth again: onnxgrow ")[2].split()
    assert code == 0 and command[-1] == "--force" and run(*command)[0] == 0
    code, out, err = run(*command[:-1])
    assert code == 1 and out == "" and re.search(r"wide\.onnx exists\n  next: choose another name with -o, or give --force", err), out + err
    err = run("expand", "model.onnx", "--ffn", 500, "--plan", "--save-recipe", "other.yaml")[2]
    assert "--recipe other.yaml" in err and "--force" not in err  # nothing was written
    Path("model-f501.onnx").touch()
    code, out, err = run("expand", "model.onnx", "--ffn", 501)
    assert code == 1 and out == "" and "model-f501.onnx exists" in err
