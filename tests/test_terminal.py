"""What people see: pictures on a terminal, plain lines in a pipe, how much is said, and help that helps."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from benchmarks import pages, screens
from onnxgrow.certificate import Certificate
from onnxgrow.commands import main
from onnxgrow.terminal import mode
from onnxgrow.terminal.completion import SHELLS, script
from onnxgrow.terminal.growth import words
from onnxgrow.terminal.guess import did_you_mean
from onnxgrow.terminal.numbers import count, seconds, size
from onnxgrow.terminal.progress import Bars, drawn
from tests.test_cli import MODELS, TWIST, folder, rename, run, with_twist  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[1]
ESCAPE = "\x1b"
CLI = [sys.executable, str(ROOT / "cli.py")]


def on_terminal(arguments: list[str], columns: int = 80, **environment: str) -> str:
    """What a command writes to a pseudo terminal, with line ends as Python's."""
    pty = pytest.importorskip("pty", reason="no pseudo terminals here")
    keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    env = keep | {"TERM": "xterm-256color", "COLUMNS": str(columns), "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | environment
    ours, theirs = pty.openpty()
    with subprocess.Popen([*CLI, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env, close_fds=True):
        os.close(theirs)
        out = b""
        while True:
            try:
                found = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not found:
                break
            out += found
    os.close(ours)
    return out.decode().replace("\r\n", "\n")


def seen(name: str, width: int, *arguments) -> str:
    """The screen of a command, as text."""
    with mode.recording(width) as console:
        try:
            main([name, *map(str, arguments)], standalone_mode=False)
        except SystemExit as end:
            assert not end.code
    return console.export_text()


# --- where it is said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect model.onnx", "expand model.onnx --ffn 300", "inspect none.onnx", "exand"])
def test_a_pipe_gets_plain_lines(folder, command):  # noqa: F811
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*CLI, *command.split()], capture_output=True, text=True, env=env)
    assert (done.stdout + done.stderr) and ESCAPE not in done.stdout + done.stderr
    assert not re.search("[─-╿✔⠀-⣿]", done.stdout + done.stderr)


def test_a_terminal_gets_a_picture_and_bars(folder):  # noqa: F811
    out = on_terminal(["inspect", "model.onnx"])
    assert ESCAPE in out and "┣━" in out and "4 layers" in out and "What can grow" in out
    out = on_terminal(["expand", "model.onnx", "--hidden", "144"])
    assert ESCAPE in out and "writing" in out and "validating" in out and "run 10 of 10" in out
    assert Path("model-h144.onnx").is_file() and "✔" in out and "next:" in out


def test_no_color_has_the_picture_and_no_escapes(folder):  # noqa: F811
    drawn_ = [on_terminal(command, NO_COLOR="1") for command in (["inspect", "model.onnx"], ["expand", "model.onnx", "--ffn", "300"], ["inspect", "none.onnx"])]
    assert ESCAPE not in "".join(drawn_) and "┣━" in drawn_[0] and "✔ exact" in drawn_[1] and drawn_[2].startswith("error: ")
    assert "\x1b[" in on_terminal(["inspect", "none.onnx"])  # the word error is red


@pytest.mark.parametrize("environment, columns", [({"TERM": "dumb"}, 80), ({"PYTHONIOENCODING": "ascii"}, 80), ({}, 60)])
def test_terminals_that_cannot_show_pictures_get_lines(folder, environment, columns):  # noqa: F811
    out = on_terminal(["inspect", "model.onnx"], columns, **environment)
    assert ESCAPE not in out and out == run("inspect", "model.onnx")[1]


@pytest.mark.parametrize("width", [mode.NARROWEST, 80, 140])
def test_no_line_is_wider_than_the_terminal(folder, width):  # noqa: F811
    for command in (["inspect", "gpt.onnx", "-v"], ["expand", "model.onnx", "--hidden", 144, "--layers", 6, "-v", "--force"]):
        out = seen(*command[:1], width, *command[1:])
        assert max(map(len, out.splitlines())) <= width and "…" not in out


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_the_picture_has_every_part_with_its_parameters(folder):  # noqa: F811
    out = seen("inspect", 80, "model.onnx")
    for row in (r"words +256 × 96 +24,576 +6%", r"┣━ rms norm → attention → \+ +│ +27,648 +110,592 +25%", "4 heads of 24, 2 kv heads, rotary",
                r"┣━ rms norm → feed-forward → \+ +│ +69,120 +276,480 +63%", "96 → 240 → 96, gated silu", r"head +96 → 256 +24,576",
                r"hidden +96 +residual stream +48 +ffn, heads, kv_heads", r"head_dim +24 .* +2 +v_head_dim"):
        assert re.search(row, out), row
    assert sum(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) +(?:\d+%|<1%)", out)) == 437100


def test_inspect_explains_its_words(folder):  # noqa: F811
    out = seen("inspect", 80, "model.onnx").splitlines()
    at = next(i for i, line in enumerate(out) if line.startswith("dim  "))
    assert "step" in out[at] and "grows with it" in out[at]
    assert "step: the smallest growth · grows with it: what follows if this alone is asked" in out[at:]
    plain = run("inspect", "model.onnx")[1]
    assert "in 4 places" in plain and "(=: what a size consists of; places: how often the model has it, grown together)" in plain


def test_a_growth_shows_before_after_and_the_next_command(folder):  # noqa: F811
    out = seen("expand", 80, "model.onnx", "--layers", 6, "--hidden", 144)
    for row in (r"layers +4 +→ +6 +× 1.5", r"hidden +96 +→ +144", r"parameters +437,100 +→ +1,381,980", r"weights +1.75 MB +→ +5.53 MB",
                r"layers: 0 1 \+1 2 3 \+3", r"✔ exact: .* same function", r"944,880 new parameters, all of them can learn", r"✔ equal on (CPU|CUDA): ",
                r"✔ wrote model-h144-l6.onnx", r"next: onnxgrow export model-h144-l6.onnx"):
        assert re.search(row, out), row


def test_the_weights_are_as_large_as_it_says(folder):  # noqa: F811
    from onnxgrow import load
    from onnxgrow.terminal.growth import weight_bytes

    plan = load("model.onnx").plan(hidden=144, layers=6)
    result = plan.write("grown.onnx", validate=False)
    proto = onnx.load(result.path)
    assert weight_bytes(plan.decisions.proto) == sum(len(t.raw_data) for t in proto.graph.initializer) == weight_bytes(proto)


def test_what_is_not_exact_is_not_shown_as_exact(folder):  # noqa: F811
    out = seen("expand", 80, "model.onnx", "--hidden", 144, "--method", "naive")
    assert "✘ not preserved: this growth changes the function" in out and "✔ equal" not in out and "✔ exact" not in out
    out = seen("expand", 80, "model.onnx", "--ffn", 300, "--no-validate")
    assert "not validated" in out and "next: onnxgrow validate model.onnx model-f300.onnx" in out


def test_the_next_command_of_a_model_that_needs_rules(folder):  # noqa: F811
    """ONNX Runtime cannot run it and PyTorch has no form for it: what is left is to look, with the rules."""
    Path("acme.py").write_text(TWIST.replace("test.cli", "test.terminal"))  # rules stay: others give one for test.cli
    with_twist(Path("twisted.onnx"), domain="test.terminal")
    out = seen("expand", 140, "twisted.onnx", "--ffn", 300, "--no-validate", "--rules", "acme.py")
    assert "next: onnxgrow inspect twisted-f300.onnx --rules acme.py" in out and "onnxgrow validate" not in out and "onnxgrow export" not in out
    out = seen("expand", 140, "model.onnx", "--ffn", 300, "--no-validate", "--rules", "acme.py")
    assert "next: onnxgrow validate model.onnx model-f300.onnx --rules acme.py" in out


@pytest.mark.parametrize("certificate, said", [
    (Certificate("exact"), "only rounding differs"), (Certificate("exact", rounding="float16"), "only rounding in float16 differs"),
    (Certificate("near", bound=2e-3), "almost the same function; a norm moves statistics by at most 2.0e-03"), (Certificate("near"), "nothing bounds"),
    (Certificate("not preserved"), "changes the function")])
def test_certificates_in_words(certificate, said):
    assert said in words(certificate) and words(certificate).startswith(certificate.kind)


def test_names_from_a_file_cannot_command_the_terminal(folder):  # noqa: F811
    gpt = onnx.load("gpt.onnx")
    rename(gpt, "positions.weight", "positions\x1b[2J")
    gpt.graph.node[0].name, gpt.producer_name = "first\x07", "maker\u202e"
    onnx.save(gpt, "named.onnx")
    for command in (["inspect", "named.onnx", "-v"], ["expand", "named.onnx", "--hidden", 144, "-v"]):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", seen(command[0], 80, *command[1:]))


def test_bars_say_how_much_how_fast_and_how_long():
    with mode.recording(80) as console:
        bars = Bars(drawn(console))
        bars.writing(0, 8_000_000)
        bars.began["writing"] -= 2
        bars.writing(4_000_000, 8_000_000)
        bars.checking(0, 10), bars.checking(5, 10)
        console.print(bars.shown.get_renderable())
    out = console.export_text()
    assert re.search(r"writing .* 4 MB of 8 MB, (2|1\.99) MB/s", out) and "run 6 of 10" in out and re.search(r"\d+:\d\d|--:--", out)
    assert 2 <= bars.took("writing") < 3


def test_validation_tells_of_every_run(folder):  # noqa: F811
    from onnxgrow import load

    told, written = [], []
    load("model.onnx").plan(ffn=300).write("g.onnx", checked=lambda *x: told.append(x), progress=lambda *x: written.append(x))
    assert told == [(i, 10) for i in range(10)]
    assert written[-1][0] == written[-1][1] == Path("g.onnx").stat().st_size


def test_numbers_for_people():
    assert [count(n) for n in (0, 437_100, 9_999_999, 12_345_678, 124_439_808, 7_241_732_096)] == ["0", "437,100", "9,999,999", "12.3 M", "124.4 M", "7.24 B"]
    assert [size(n) for n in (0, 999, 1_748_400, 4_017_000_000)] == ["0 bytes", "999 bytes", "1.75 MB", "4.02 GB"]
    assert [seconds(s) for s in (0.31, 125)] == ["0.3 s", "2 min 5 s"]


# --- how much is said -------------------------------------------------------------------------------------------------


def test_quiet_leaves_the_one_line_that_a_script_needs(folder):  # noqa: F811
    assert run("expand", "model.onnx", "--ffn", 300, "-q") == (0, "model-f300.onnx\n", "")
    assert run("validate", "model.onnx", "model-f300.onnx", "--quiet") == (0, "", "")
    assert run("inspect", "model.onnx", "-q")[1].startswith("transformer with 4 layers") and run("inspect", "model.onnx", "-q")[1].count("\n") == 1
    code, out, err = run("expand", "model.onnx", "--ffn", 3, "-q")
    assert code == 1 and out == "" and err.startswith("error: ")
    assert json.loads(run("inspect", "model.onnx", "-q", "--json")[1])["architecture"]["hidden"] == 96
    assert run("validate", "model.onnx", "gpt.onnx", "-q")[0] == 1


def test_quiet_suggestions_are_commands_that_run(folder):  # noqa: F811
    code, out, err = run("suggest", "model.onnx", "--params", "1M", "-q")
    assert (code, err) == (0, "") and len(out.splitlines()) == 3 and all(line.startswith("onnxgrow expand model.onnx --") for line in out.splitlines())
    assert run(*out.splitlines()[0].split()[1:], "--plan", "-q")[0] == 0


def test_a_quiet_difference_is_its_exit_code(folder):  # noqa: F811
    assert run("diff", "model.onnx", "gpt.onnx", "-q") == (1, "", "") and run("diff", "model.onnx", "model.onnx", "-q") == (0, "", "")


def test_verbose_says_more(folder):  # noqa: F811
    usual, more = (run("expand", "model.onnx", "--hidden", 144, "--force", *v)[1] for v in ([], ["-v"]))
    assert "heads follow hidden" in more and "gain · √(96/144)" in more and "writing: " in more and "heads follow" not in usual
    assert "Traceback" not in run("inspect", "none.onnx")[2] and "source.py" in run("inspect", "none.onnx", "-v")[2]
    assert "nodes" in seen("inspect", 80, "model.onnx", "-v") and "nodes" not in seen("inspect", 80, "model.onnx")
    assert json.loads(run("expand", "model.onnx", "--ffn", 300, "-v", "--json", "--no-validate")[1])["validation"] is None


def test_both_at_once_make_no_sense(folder):  # noqa: F811
    code, _, err = run("inspect", "model.onnx", "-q", "-v")
    assert code == 2 and "contradict" in err


def test_every_command_that_prints_takes_both():
    for name, command in main.commands.items():
        options = {o for p in command.params for o in p.opts}
        assert {"-q", "--quiet", "-v", "--verbose", "--json"} <= options or name == "completion", name


# --- help that helps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command, code, meant", [
    ("exand model.onnx", 2, "did you mean 'expand'?"), ("valdate a b", 2, "did you mean 'validate'?"), ("import_weights a", 2, "did you mean 'import-weights'?"),
    ("xyzzy", 2, "one of: check-rules"), ("expand model.onnx --hiden 3", 2, "--hidden"), ("expand model.onnx --kvheads 3", 2, "--kv-heads"),
    ("expand model.onnx --set fnn=300", 1, "did you mean 'ffn'?"), ("expand model.onnx --set kv-heads=4", 1, "did you mean 'kv_heads'?"),
    ("expand model.onnx --set layer=6", 1, "did you mean 'layers'?")])
def test_did_you_mean(folder, command, code, meant):  # noqa: F811
    found, out, err = run(*command.split())
    assert (found, out) == (code, "") and meant in err


@pytest.mark.parametrize("name", [None, *main.commands])
def test_help_fits_and_nothing_of_it_is_cut(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(*([name] if name else []), "--help")
    assert code == 0 and max(map(len, out.splitlines())) <= 80 and "..." not in out.replace("[OPTIONS] COMMAND [ARGS]...", "")
    assert "INTEGER RANGE" not in out and "FLOAT RANGE" not in out


def test_nothing_is_guessed_from_nothing():
    assert did_you_mean("xyzzy", ["hidden", "ffn"]) is None
    assert did_you_mean("KV-Heads", ["heads", "kv_heads"]).startswith("did you mean 'kv_heads'")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts_are_valid(shell, tmp_path):
    text = script(shell)
    assert run("completion", shell) == (0, text, "") and SHELLS[shell][2] in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here to check the script with")
    (tmp_path / "script").write_text(text)
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("typed, wanted", [("onnxgrow exp", ["expand", "export"]), ("onnxgrow expand --kv", ["--kv-heads"]),
                                           ("onnxgrow expand --method na", ["naive"]), ("onnxgrow completion f", ["fish"])])
def test_bash_completes(typed, wanted, tmp_path):
    (tmp_path / "onnxgrow").write_text(f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(ROOT)!r})\nfrom onnxgrow.commands import main\nmain()\n")
    (tmp_path / "onnxgrow").chmod(0o755)
    words_ = typed.split()
    lines = f"""{script("bash")}
COMP_WORDS=({typed}); COMP_CWORD={len(words_) - 1}; _onnxgrow_completion onnxgrow {words_[-1]} {words_[-2]}; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.stdout.split() == wanted, done.stderr


def completed(folder, words, shell="bash"):  # noqa: F811
    """What click tells a shell for a line that ends in the word being typed."""
    instruction = {"_ONNXGROW_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", "from onnxgrow.commands import main; main(prog_name='onnxgrow')"], capture_output=True, text=True,
                          env=os.environ | instruction, cwd=folder)
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("words, wanted", [
    ("onnxgrow expand model.onnx --set h", "heads= head_dim= hidden="), ("onnxgrow expand --layers 6 model.onnx --hidden 144 --set ff", "ffn="),
    ("onnxgrow expand gpt.onnx --set pos", "positions="), ("onnxgrow expand model.onnx --set pos", ""), ("onnxgrow expand --set h", ""),
    ("onnxgrow expand broken.onnx --set h", ""), ("onnxgrow expand missing.onnx --set h", ""), ("onnxgrow expand model.onnx --set ffn=3", "")])
def test_dims_of_the_model_on_the_line_are_completed(folder, words, wanted):  # noqa: F811
    Path("broken.onnx").write_bytes(b"\x08\x07no graph")
    assert completed(Path.cwd(), words) == [f"plain,{name}" for name in wanted.split()]


def test_dims_are_completed_with_their_sizes_of_today(folder):  # noqa: F811
    assert completed(Path.cwd(), "onnxgrow expand model.onnx --set ff", "zsh") == ["plain", "ffn=", "240", "today"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_no_space_follows_what_goes_on(shell, folder):  # noqa: F811
    """In the shells themselves: NAME= is completed, and the size can be typed right behind it."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    place = Path.cwd()
    (place / "onnxgrow").write_text(f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(ROOT)!r})\nfrom onnxgrow.commands import main\nmain()\n")
    (place / "onnxgrow").chmod(0o755)
    (place / "script").write_text(script(shell))
    words_ = "onnxgrow expand model.onnx --set ff"
    asked = {"bash": f"compopt() {{ printf '%s ' compopt \"$@\"; }}; . ./script; COMP_WORDS=({words_}); COMP_CWORD=4; _onnxgrow_completion onnxgrow ff --set; echo \"${{COMPREPLY[@]}}\"",
             "zsh": f"compdef() {{ }}; . ./script; _describe() {{ print -r -- \"${{(q)@}}\" \"$completions_with_descriptions\"; }}; words=({words_}); CURRENT=5; _onnxgrow_completion",
             "fish": f". ./script; complete -C '{words_}'"}[shell]
    plain = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run([shell, *plain, "-c", asked], capture_output=True, text=True, cwd=place, env=os.environ | {"PATH": f"{place}:{os.environ['PATH']}", "HOME": str(place)})
    wanted = {"bash": "compopt -o nospace ffn=", "zsh": "-V unsorted completions_with_descriptions -U -S '' ffn=:240 today", "fish": "ffn=\t240 today"}[shell]
    assert done.stdout.strip() == wanted, done.stderr


def test_the_pages_are_what_the_program_says():
    made = pages.pages()
    stale = [file.name for file, text in made.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    assert not stale, f"{stale}: run python -m benchmarks.pages"
    assert set((ROOT / "docs" / "commands").glob("*.md")) == {f for f in made if f.parent.name == "commands"}


def test_every_command_has_an_example_on_its_page():
    for name, command in main.commands.items():
        assert pages.examples(command) and all(e.startswith(f"onnxgrow {name}") for e in pages.examples(command)), name
        assert all(f"    {e}\n" in pages.page(name, command) for e in pages.examples(command))


def test_links_of_the_pages_lead_somewhere():
    for page in (ROOT / "docs" / "commands").glob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.parametrize("width", screens.WIDTHS)
@pytest.mark.parametrize("name", screens.SCREENS)
def test_the_screens_are_what_the_commands_show(name, width):
    svg = (screens.TARGET / f"{name}-{width}.svg").read_text(encoding="utf-8")
    assert screens.words(svg) == screens.words(screens.draw(name, width)), "run python -m benchmarks.screens"
    assert max(map(len, screens.record(name, width).export_text().splitlines())) <= width
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_the_screens_can_be_read():
    """Every colour of their text has the contrast on its background that WCAG 2 asks for."""
    from tests.test_report_browser import contrast

    for file in screens.TARGET.glob("*.svg"):
        svg = file.read_text(encoding="utf-8")
        rules = dict(re.findall(r"\.([\w-]+-r\d+) \{ fill: (#\w{6})", svg))
        used = {rules[name] for name, text in re.findall(r'<text class="([\w-]+)"[^>]*>([^<]*)</text>', svg) if name in rules and re.search(r"\w", html.unescape(text))}
        assert used and all(contrast(colour, screens.COLOURS["background"]) >= 4.5 for colour in used), file.name
    assert {f"{name}-{width}.svg" for name in screens.SCREENS for width in screens.WIDTHS} == {f.name for f in screens.TARGET.glob("*.svg")}


def test_a_command_to_copy_stays_one_line(folder):  # noqa: F811
    name = "a-model-with-a-name-that-is-rather-long-" * 2 + ".onnx"
    shutil.copy("model.onnx", name)
    assert f"onnxgrow expand {name} --hidden" in seen("suggest", 80, name, "--params", "1M")
    out = seen("expand", 80, name, "--ffn", 300, "-o", name.replace("-a-", "-b-"))
    assert f"next: onnxgrow export {name.replace('-a-', '-b-')}   #" in out


def test_an_export_shows_how_far_it_is(folder):  # noqa: F811
    from onnxgrow import load
    from onnxgrow.pytorch import export

    written, ran = [], []
    export(load("model.onnx"), "model_pt", progress=lambda *x: written.append(x), checked=lambda *x: ran.append(x))
    assert written[-1][0] == written[-1][1] == 437_100 * 4 and [a for a, _ in written] == sorted({a for a, _ in written})
    assert ran == [(i, 5) for i in range(5)]
    assert re.search(r"writing .*1.75 MB of 1.75 MB.*\n.*validating .*run 4 of 5", seen("export", 80, "model.onnx", "-o", "again_pt"))
