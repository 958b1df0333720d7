"""What the documentation says is true: commands and code run, links lead somewhere, messages and keys are those of the program."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest

from onnxgrow.commands import main
from onnxgrow.rulebook import TREATMENTS
from tests.pages import DOCS, FENCE, GUIDES, README, ROOT, all_blocks, blocks, links, perform, shell
from tests.several_models import export
from tests.test_cli import TWIST, contents, document, run

PAGES = [README, *sorted(DOCS.rglob("*.md"))]


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A folder with a model.onnx, where the printed commands and code can be run."""
    shutil.copy(ROOT / "onnxgrow" / "models" / "tiny-gpt.onnx", tmp_path / "model.onnx")
    return tmp_path


def execute(command: list[str], folder: Path) -> str:
    """What a command says that has to succeed."""
    done = perform(command, folder)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_commands_of_the_readme_run(workplace):
    lines = [re.sub(r"^pip install \S+( \S+)? && ", "", line) for line in shell(README)]
    ours = [line for line in lines if "pytest" not in line]
    assert len(ours) >= 5 and all(line.startswith(("onnxgrow ", "python grown_pt/train.py ")) for line in ours)
    ours = [line.replace("--steps 200", "--steps 2") for line in ours]
    (workplace / "onnxgrow").mkdir()
    (workplace / "onnxgrow" / "models").symlink_to(ROOT / "onnxgrow" / "models")
    out = execute(["bash", "-euc", "\n".join(ours)], workplace)
    assert "equal to the trained module" in out and "wrote model-h144.onnx" in out
    assert {"grown.onnx", "model-h144.onnx", "wide.onnx"} <= contents(workplace).keys()


def test_the_code_of_the_readme_runs(workplace):
    (example,) = blocks(README, "python")
    (workplace / "example.py").write_text(example[1])
    for _ in range(2):  # and again, as in a notebook
        lines = execute([sys.executable, "example.py"], workplace).splitlines()
        assert lines[0] == "96 6" and lines[1] == "exact" and "0 of them dead" in lines[2] and float(lines[3]) < 1e-5


def test_ci_runs_the_two_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    for line in shell(README)[:2]:
        first, second = (part.strip() for part in re.split(r"&&", line)[:2])
        wanted = f"{first} && {second}".replace("pip install ", "pip install -q ")
        assert wanted in script, wanted


PYTHON = [(page, number) for page in ("python", "pytorch") for number in range(len(blocks(ROOT / "docs" / f"{page}.md", "python")))]


@pytest.mark.parametrize("page, number", PYTHON)
def test_the_code_of_the_python_pages_runs(workplace, page, number):
    (workplace / "example.py").write_text(blocks(ROOT / "docs" / f"{page}.md", "python")[number][1])
    execute([sys.executable, "example.py"], workplace)


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "docs" / "rules.md", "python"))))
def test_the_code_of_the_rules_page_runs(workplace, number):
    (workplace / "example.py").write_text(blocks(ROOT / "docs" / "rules.md", "python")[number][1])
    out = execute([sys.executable, "example.py"], workplace)
    assert "true" in out or "check_rule" not in blocks(ROOT / "docs" / "rules.md", "python")[number][1]


def test_the_rule_of_the_rules_page_works(workplace):
    from tests.test_cli import with_twist

    example = blocks(ROOT / "docs" / "rules.md", "python")[0][1]
    assert "acme::Swish2" in example and TWIST.split("shape=")[1].splitlines()[0] in example
    (workplace / "acme.py").write_text(example.replace("acme::Swish2", "acme::Twist"))
    with_twist(workplace / "twisted.onnx")
    out = execute(["onnxgrow", "expand", "twisted.onnx", "--hidden", "144", "--rules", "acme.py", "--no-validate"], workplace)
    assert "certificate: exact" in out


def test_the_rules_page_lists_every_treatment():
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([^`]+)` \| (.+) \|$", page, re.M)[-len(TREATMENTS):] == list(TREATMENTS.items())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads], target


def test_every_page_can_be_reached_from_the_readme():
    found, new = set(), {README}
    while new:
        found |= new
        new = {(page.parent / target.partition("#")[0]).resolve() for page in new for target in links(page) if ".md" in target} - found
    assert {page for page in PAGES if page.name != "index.md"} <= found  # the index is the tree of the site
    assert set(GUIDES) <= {(ROOT / target).resolve() for target in links(README)}, "guides stand in the README itself"


# --- commands: those of guides are run in test_guides.py, those of other pages here or beside what they are about -----


def printed(page: Path) -> list[tuple[str, bool]]:
    """Every command of onnxgrow that a page prints: in a block or indented (True), or in a sentence, where it may be the name alone."""
    text = page.read_text(encoding="utf-8")
    lines = [line.strip() for language, _, code in all_blocks(page) if language in ("", "sh") for line in code.splitlines()]
    lines += re.findall(r"^ {4}(onnxgrow .*)$", FENCE.sub("", text), re.M)
    inline = re.findall(r"`(onnxgrow [a-z][^`]*)`", FENCE.sub("", text))
    found = [(line, True) for line in lines if line.startswith("onnxgrow ")] + [(line, False) for line in inline]
    return [(line, whole) for line, whole in dict.fromkeys(found) if not set(line) & set("[…|")]


def parse(line: str) -> None:
    """Read the first command of a line without running it; click refuses unknown commands, options and values."""
    words = shlex.split(line, comments=True)
    words = words[1:min([k for k, word in enumerate(words) if word in ("&&", ">")], default=len(words))]
    name, command, rest = main.resolve_command(click.Context(main), words)
    with suppress(click.exceptions.Exit):  # --help
        command.make_context(name, list(rest))


@pytest.mark.parametrize("page", [page for page in PAGES if printed(page)], ids=lambda p: p.stem)
def test_printed_commands_have_such_options(page):
    for line, whole in printed(page):
        try:
            parse(line)
        except click.MissingParameter:
            assert not whole, line
        except click.ClickException as error:
            raise AssertionError(f"{line}: {error.message}") from error


def test_an_option_that_does_not_exist_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Type `onnxgrow expand` or\n\n    onnxgrow expand model.onnx --hiden 144\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="hiden"):
        test_printed_commands_have_such_options(page)


RUN = {"README", "python", "pytorch", "rules", "depth", "vocab", "fused",  # here
       "pipelines", "report", "huggingface"}  # test_pipelines.py, test_notebook.py and test_report.py, test_hugging.py


def test_every_page_with_code_is_run_somewhere():
    with_code = {page.stem for page in PAGES if page not in GUIDES and {language for language, _, _ in all_blocks(page)} & {"sh", "python", "yaml"}}
    assert with_code == RUN, "run the blocks of a new page, then add it"


@pytest.mark.parametrize("page, number", [(page, k) for page in ("depth", "vocab") for k in range(len(shell(DOCS / f"{page}.md")))])
def test_the_commands_of_the_depth_and_vocabulary_pages_run(workplace, monkeypatch, page, number):
    monkeypatch.chdir(workplace)
    before, line = set(contents(workplace)), shell(DOCS / f"{page}.md")[number]
    code, out, err = run(*shlex.split(line, comments=True)[1:], "--no-validate")
    assert code == 0 and len(set(contents(workplace)) - before) == 1, out + err


def test_the_commands_of_the_pytorch_page_run(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for line in shell(DOCS / "pytorch.md"):
        command = shlex.split(line, comments=True)
        execute([sys.executable, *command[1:-1], "2"], workplace) if command[0] == "python" else executed(command[1:])
    assert {"model_pt", "trained.onnx", "grown_pt", "model-h144.onnx"} <= set(os.listdir())
    code = next(code for _, code in blocks(DOCS / "pytorch.md", "py") if "parameter_groups" in code)  # typed in such a folder
    Path("grown_pt", "example.py").write_text(code + "print([g['name'] for g in optimizer.param_groups])")
    assert "mixed" in execute([sys.executable, "example.py"], workplace / "grown_pt")


def executed(arguments: list[str]) -> None:
    """A command that has to succeed, in this process."""
    code, out, err = run(*arguments)
    assert code == 0, out + err


def test_the_unfolding_of_the_fused_page_is_the_one_of_the_program():
    (example,) = blocks(DOCS / "fused.md", "python")
    shown = [line for line in example[1].splitlines() if line]
    source = [line for line in (ROOT / "rules" / "fused.py").read_text(encoding="utf-8").splitlines() if '"""' not in line]
    assert "\n".join(shown) in "\n".join(source)


def test_the_picture_is_the_one_that_the_script_draws():
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks import figures
    finally:
        sys.path.remove(str(ROOT))
    assert figures.TARGET.read_text(encoding="utf-8") == figures.draw()


# --- json.md: the keys are those of the documents ---------------------------------------------------------------------

FREE = {"skipped", "ignored", "fixed", "losses", "configs", "data"}  # their keys are names from the model or its files, and steps


def same_keys(shown, real, path: str = "") -> None:
    if shown == "…":
        return
    if isinstance(shown, dict):
        assert isinstance(real, dict), path
        if path.rpartition(".")[2] in FREE:
            return
        if path.endswith("sizes"):  # by name of a dim
            shown, real = {"*": next(iter(shown.values()))}, {"*": next(iter(real.values()))}
        assert list(shown) == list(real), path
        for key in shown:
            same_keys(shown[key], real[key], f"{path}.{key}")
    elif isinstance(shown, list) and shown and real:
        same_keys(shown[0], real[0], f"{path}[]")
    elif shown is not None and real is not None and not isinstance(shown, list):
        number = isinstance(shown, (int, float)) and not isinstance(shown, bool)
        assert isinstance(real, (int, float) if number else type(shown)), f"{path}: {shown!r}, {real!r}"


@pytest.mark.parametrize("label", [label for label, _ in blocks(ROOT / "docs" / "json.md", "json")])
def test_documents_have_the_keys_of_the_json_page(label, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    shown = {name: json.loads(code) for name, code in blocks(ROOT / "docs" / "json.md", "json")}[label]
    if label in ("inspect", "architecture"):
        real = document("inspect", "model.onnx")
        same_keys(shown, real if label == "inspect" else real["architecture"])
    elif label == "growth":
        run("expand", "model.onnx", "--hidden", 144, "--no-validate")
        same_keys(shown, document("inspect", "model-h144.onnx")["growth"])
    elif label == "folder":
        Path("src").mkdir()
        shutil.copy("model.onnx", "src")
        Path("src", "config.json").write_text('{"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 384}')
        same_keys(shown, document("expand", "src", "--hidden", 144, "--no-validate")["folder"])
    elif label in ("expand", "plan", "validation"):
        real = document("expand", "model.onnx", "--hidden", 144)
        same_keys(shown, real if label == "expand" else real[label])
    elif label == "new_words":
        same_keys(shown, document("expand", "model.onnx", "--vocab", 300)["validation"]["new_words"])
    elif label == "validate":
        run("expand", "model.onnx", "--hidden", 144, "--no-validate")
        same_keys(shown, document("validate", "model.onnx", "model-h144.onnx"))
    elif label == "suggest":
        same_keys(shown, document("suggest", "model.onnx", "--params", "3M"))
    elif label == "diff":
        run("expand", "model.onnx", "--hidden", 144, "--no-validate")
        same_keys(shown, json.loads(run("diff", "model.onnx", "model-h144.onnx", "--json")[1]))
    elif label == "widths":
        same_keys(shown, document("inspect", export("clip", "torchscript"))["architecture"]["widths"])
    elif label == "check-rules":
        rules = (ROOT / "examples" / "custom_rule" / "acme_rules.py").read_text(encoding="utf-8")
        Path("lies.py").write_text(rules.replace("acme::", "liar::").replace('other="f(0)=0"', 'other="keep"'), encoding="utf-8")
        found = json.loads(run("check-rules", "lies.py", "--json")[1])
        same_keys(shown, found | {"rules": [rule for rule in found["rules"] if rule["problems"]]})
    elif label == "demo":
        same_keys(shown, document("demo", "--steps", 1))
    elif label in ("export", "import-weights"):
        exported = document("export", "model.onnx", "-o", "model_pt")
        back = ("import-weights", "model.onnx", "model_pt/model.safetensors", "-o", "trained.onnx")
        same_keys(shown, exported if label == "export" else document(*back))
    else:
        same_keys(shown, json.loads(run("expand", "model.onnx", "--hidden", 100, "--json")[1]))


def test_a_wrong_key_is_seen():
    with pytest.raises(AssertionError):
        same_keys({"a": {"b": 1}}, {"a": {"c": 1}})
    with pytest.raises(AssertionError):
        same_keys({"a": [{"b": 1}]}, {"a": [{"b": "one"}]})


# --- errors.md: every message is one that the program can say ---------------------------------------------------------


def test_the_errors_page_has_every_class():
    from onnxgrow import errors

    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.OnnxgrowError) and value is not errors.OnnxgrowError:
            assert re.search(rf"^## {name}: ", page, re.M), name


def test_every_option_has_help():
    for command in main.commands.values():
        for option in command.params:
            assert option.param_type_name == "argument" or option.help, (command.name, option.name)
