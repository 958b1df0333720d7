"""The page on pipelines and the examples for CI and containers: what can be tried without docker and a runner is tried."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from onnxgrow.commands import main
from onnxgrow.growthfile import KEYS, read_recipe
from tests import seq2seq
from tests.test_docs import ROOT, blocks, shell

PAGE, ACTION, DOCKER = ROOT / "docs" / "pipelines.md", ROOT / "examples" / "github-action", ROOT / "examples" / "docker"


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """model.onnx, and source/ with it and its config."""
    shutil.copy(ROOT / "onnxgrow" / "models" / "tiny-llama.onnx", tmp_path / "model.onnx")
    (tmp_path / "source").mkdir()
    shutil.copy(tmp_path / "model.onnx", tmp_path / "source")
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 240, "num_hidden_layers": 4}
    (tmp_path / "source" / "config.json").write_text(json.dumps(sizes))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bash(script: str, **more: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=os.environ | {"PATH": path} | more, capture_output=True, text=True)


def parse(words: list[str]) -> None:
    """Read an onnxgrow command line without running it; click refuses unknown commands, options and values."""
    assert words[0] == "onnxgrow"
    name, command, rest = main.resolve_command(click.Context(main), words[1:])
    command.make_context(name, list(rest), resilient_parsing=False)


@pytest.mark.filterwarnings("ignore")
def test_the_commands_of_the_page_run(workplace):
    seq2seq.export("t5", workplace / "t5")
    seq2seq.merge(workplace / "t5")
    done = bash("\n".join(shell(PAGE)))
    assert done.returncode == 0, done.stderr
    assert {"grow.yaml", "grown.onnx", "larger.onnx", "grown", "source-l6", "t5-grown"} <= set(os.listdir())
    assert "sizes: hidden is 144 here, and the flag's 192 is taken" in done.stderr


def test_the_recipe_of_the_page_has_every_key(workplace):
    (text,) = (code for _, code in blocks(PAGE, "yaml"))
    Path("page.yaml").write_text(text)
    assert tuple(read_recipe(Path("page.yaml"))) == KEYS


def test_yaml_of_the_action_is_an_action():
    action, workflow = (yaml.safe_load((ACTION / name).read_text()) for name in ("action.yml", "workflow.yml"))
    steps = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite" and all(step["shell"] == "bash" and step["name"] for step in steps)
    assert not any("${{" in step["run"] for step in steps), "inputs reach the shell through the environment only"
    used = set(re.findall(r"inputs\.(\w+)", json.dumps(action)))
    assert used == set(action["inputs"])
    (job,) = workflow["jobs"].values()
    (call,) = (step for step in job["steps"] if step.get("uses", "").startswith("./"))
    assert set(call["with"]) <= set(action["inputs"]) and {n for n, i in action["inputs"].items() if i.get("required")} <= set(call["with"])
    assert f"steps.{call['id']}.outputs.report" in json.dumps(job) and "report" in action["outputs"] and workflow["permissions"] == {"contents": "read"}


def test_the_steps_of_the_action_run(workplace):
    """All but the installation, as a runner would: with its environment, in the checkout."""
    (workplace / "models").mkdir()
    shutil.move("model.onnx", "models/model.onnx")
    shutil.copy(ACTION / "grow.yaml", "grow.yaml")
    names = {"inputs.recipe": "grow.yaml", "inputs.output": "grown.onnx"}
    runner = {"RUNNER_TEMP": str(workplace), "GITHUB_OUTPUT": str(workplace / "outputs")}
    said = ""
    for step in yaml.safe_load((ACTION / "action.yml").read_text())["runs"]["steps"]:
        if step["name"] == "Install":
            continue
        values = {key: names[re.fullmatch(r"\$\{\{ (\S+) \}\}", value)[1]] for key, value in step["env"].items()}
        done = bash(step["run"], **values, **runner)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert json.loads(Path("growth.json").read_text())["validation"]["equal"] and Path("outputs").read_text() == f"report={workplace}/growth.json\n"
    assert "grown by onnxgrow" in said


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_dockerfiles(name, workplace):
    """Instructions are known, what is copied and installed exists, and the printed command lines parse."""
    text = (DOCKER / name).read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = {line.split()[0] for line in lines}
    assert lines[0].startswith("FROM python:3") and words <= {"FROM", "ARG", "COPY", "RUN", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    entry = next(json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT"))
    runs = [shlex.split(line.removeprefix("#")) for line in text.splitlines() if line.startswith("#   docker run")]
    assert runs and all("-v" in run and "$PWD:/work" in run for run in runs)
    for run in runs:
        image = next(i for i, word in enumerate(run) if word.split(":")[0] == "onnxgrow")
        parse([*entry, *run[image + 1:]])
    assert f"-f examples/docker/{name} ." in text and "WORKDIR /work" in text and lines.index("USER grower") < lines.index(f"ENTRYPOINT {json.dumps(entry)}")
    done = bash('EXTRAS=; echo "/src${EXTRAS:+[$EXTRAS]}"; EXTRAS=torch; echo "/src${EXTRAS:+[$EXTRAS]}"')
    assert done.stdout.split() == ["/src", "/src[torch]"] and "/src${EXTRAS:+[$EXTRAS]}" in text


def test_extras_of_the_containers_exist():
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = re.findall(r"EXTRAS=(\w+)", (DOCKER / "Dockerfile").read_text())
    assert named and set(named) <= set(config["options.extras_require"])


def test_a_wrong_command_line_would_be_seen():
    for line in ("onnxgrow expnd model.onnx", "onnxgrow expand model.onnx --hiden 3", "onnxgrow expand model.onnx --provider tpu"):
        with pytest.raises(click.UsageError):
            parse(shlex.split(line))
