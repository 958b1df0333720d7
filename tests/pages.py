"""Pages of the documentation as their readers use them: what is typed is run, what is shown as an answer is compared with the real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.M | re.S)


def all_blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, what stands behind it, the code) of the fenced blocks of a page."""
    return [(language, label.strip(), code) for language, label, code in FENCE.findall(page.read_text(encoding="utf-8"))]


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(what stands behind the language, the code) of the blocks in one language."""
    return [(label, code) for kind, label, code in all_blocks(page) if kind == language]


def shell(page: Path) -> list[str]:
    """The command lines of a page."""
    return [line for _, code in blocks(page, "sh") for line in code.splitlines() if line]


def links(page: Path) -> list[str]:
    """Where a page leads inside the repository, as it is written there."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("http")]


def perform(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run in a folder, with the scripts of this Python on the path; stderr joins stdout, as on a terminal."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def like_a_clone(folder: Path) -> Path:
    """Make a folder look like a clone of the repository to those who type in it."""
    for name in ("onnxgrow", "rules", "examples", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def misses(shown: str, said: str) -> list[str]:
    """Lines of a shown answer that do not come in what was really said, in this order; `…` stands for anything."""
    lines, missing = iter(said.splitlines()), []
    for line in shown.splitlines():
        pattern = ".*".join(map(re.escape, line.rstrip().split("…")))
        if not any(re.fullmatch(pattern, real.rstrip()) for real in lines):
            missing.append(line)
            lines = iter(said.splitlines())
    return missing


def follow(page: Path, folder: Path) -> None:
    """Do all that a guide says, block by block in one folder.

    `sh` is typed (`sh exit 1`: and ends so), `python` is run, what has a file name behind its language is saved under it, and `text` is what
    the blocks since the last `text` have said, or some lines of it.
    """
    said, done = "", 0
    for number, (language, label, code) in enumerate(all_blocks(page)):
        if language == "text":
            assert not misses(code, said), f"{page.name}: {misses(code, said)} is not in\n{said}"
            said = ""
            continue
        if language in ("python", "json", "yaml") and label:
            (folder / label).write_text(code, encoding="utf-8")
            continue
        assert language in ("sh", "python"), f"{page.name}: what is to become of a block in {language!r}?"
        if language == "python":
            file = folder / f"block_{number}.py"
            file.write_text(code, encoding="utf-8")
            command, ends = [sys.executable, file.name], 0
        else:
            lines = [line for line in code.splitlines() if not line.startswith("pip install ")]
            command, ends = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)], int(label.removeprefix("exit ") or 0)
        result = perform(command, folder)
        assert result.returncode == ends, f"{page.name}:\n{code}\n{result.stdout}"
        said, done = said + result.stdout, done + 1
    assert done, f"{page.name} has nothing to run"
