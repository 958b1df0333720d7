"""The exported code goes on training the way people train: two processes, sharded blocks, checkpointed blocks, PEFT, Trainer, accelerate.

Two processes on the halves of a batch have to end where one process ends on the whole. They are forked from a server that has torch loaded,
and talk over gloo: `torchrun` itself, which loads it three times, runs in the slow tests.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections import Counter
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from train_sharded import WRAPPER, blocks_of, full_weights, my_rows, train_step, wrap

import onnxgrow
from onnxgrow.pytorch import export, import_weights, load_folder, module_of

ROOT = Path(__file__).parents[1]
CARRIED = {"tiny-gpt": dict(hidden=112, layers=6), "tiny-llama": dict(hidden=144, layers=6)}  # each with its growth
ZOO = {"gpt2": dict(hidden=40, layers=3), "llama": dict(hidden=48, layers=3), "bert-mlm": dict(hidden=64, layers=3), "t5": dict(ffn=80)}
MODELS = [*ZOO, *CARRIED]
STEPS, RATE, TOLERANCE = 3, 0.05, 1e-5
LOADED = ["torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "torch._dynamo",
          "onnxgrow.pytorch"]  # fmt: skip
MODES = ["ddp", "fsdp", "fsdp checkpointed"]

multiprocessing.set_forkserver_preload(LOADED)


FAST = [("gpt2", False), ("t5", False), ("tiny-llama", True)]
CASES = [pytest.param(name, grown, marks=[] if (name, grown) in FAST else pytest.mark.slow, id=name + "-grown" * grown)
         for grown in (False, True) for name in MODELS]  # fmt: skip

each_model = pytest.mark.parametrize("name", MODELS)


# --- models and batches ---


@lru_cache
def path_of(name: str) -> Path:
    from tests.growing import usual  # not above: it loads transformers, which the processes of these tests do not need

    return ROOT / "onnxgrow" / "models" / f"{name}.onnx" if name in CARRIED else usual(name).path


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture
def folder_of(places):
    """A function: the folder of a model, as it is or grown; the ONNX file lies beside it, as FOLDER.onnx."""

    @lru_cache
    def make(name: str, grown: bool = False) -> Path:
        folder, model = places / (name + "-grown" * grown), onnxgrow.load(path_of(name))
        file = folder.with_suffix(".onnx")
        if grown and not file.exists():
            model.plan(**(ZOO | CARRIED)[name]).write(file, validate=False)
        elif not file.exists():
            file.write_bytes(path_of(name).read_bytes())
        if not folder.exists():
            export(onnxgrow.load(file), folder, check=False)
        return folder

    return make


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def inputs_of(name: str, seed: int = 0, batch: int = 4, length: int = 9) -> dict[str, Tensor]:
    """Inputs with padding, and labels."""
    from tests.zoo_models import SPECS

    generator = torch.Generator().manual_seed(seed)
    if name in CARRIED:
        inputs = {"input_ids": torch.randint(256, (batch, length), generator=generator)}
    else:
        inputs = SPECS[name].example(batch, length, seed)
    like = inputs.get("decoder_input_ids", inputs["input_ids"])
    return inputs | {"labels": torch.randint(90, like.shape, generator=generator)}


# --- the same training in one process and in two ---


def train(rank: int, world: int, mode: str, folder: Path, batches: list[dict[str, Tensor]]) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and final weights. SGD: Adam would make a whole step out of the rounding of a gradient that is zero, as that of a key's bias."""
    model = load_folder(folder).train()
    net = wrap(model, mode.split()[0], checkpoint="checkpointed" in mode)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    assert all(isinstance(p, DTensor) == mode.startswith("fsdp") for p in model.parameters())
    losses = [train_step(net, optimizer, my_rows(batch, rank, world)).item() for batch in batches]
    return losses, full_weights(model, rank)


def in_process(rank: int, world: int, work, place: Path, meet: bool, port: int) -> None:
    """What one of several processes does: read what torchrun would tell it, meet the others, work, and leave what the first one found."""
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    if meet:
        dist.init_process_group("gloo")
    found = work(rank, world)
    if rank == 0:
        torch.save(found, place / "found.pt")
    if meet:
        dist.destroy_process_group()


def in_two(work, place: Path, meet: bool = True):
    """What work(rank, 2) returns in the first of two processes. Errors there are raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(in_process, (2, work, place, meet, port), nprocs=2, start_method="forkserver")
    return torch.load(place / "found.pt")


def in_each_mode(rank: int, world: int, folder: Path, batches: list) -> dict:
    return {mode: train(rank, world, mode, folder, batches) for mode in MODES}


def difference(found: tuple, wanted: tuple) -> float:
    """The largest, of losses and weights, relative to the largest value of each."""
    (losses, weights), (wanted_losses, wanted_weights) = found, wanted
    assert weights.keys() == wanted_weights.keys()
    pairs = [(torch.tensor(losses), torch.tensor(wanted_losses)), *((weights[name], wanted_weights[name]) for name in weights)]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-2)).item() for a, b in pairs)


@pytest.mark.parametrize("name, grown", CASES)
def test_two_processes_end_where_one_does(name, grown, folder_of, tmp_path):
    folder, batches = folder_of(name, grown), [inputs_of(name, step) for step in range(STEPS)]
    found = in_two(partial(in_each_mode, folder=folder, batches=batches), tmp_path)
    wanted = train(0, 1, "alone", folder, batches)
    assert wanted[1].keys() == stored(folder).keys()  # a tied weight is one parameter; difference() asks the same of the shards
    assert difference((wanted[0], stored(folder)), wanted) > 1000 * TOLERANCE  # it does learn
    differences = {mode: difference(found[mode], wanted) for mode in MODES}
    print(differences)
    assert max(differences.values()) < TOLERANCE, differences


def test_the_same_rows_for_both_would_be_seen(folder_of, tmp_path):
    batches = [inputs_of("tiny-llama", step) for step in range(STEPS)]
    halves = [{name: x[: len(x) // 2] for name, x in batch.items()} for batch in batches]
    wanted, found = (train(0, 1, "alone", folder_of("tiny-llama"), some) for some in (batches, halves))
    assert difference(found, wanted) > 100 * TOLERANCE


def slowed(rank: int, world: int, mode: str, folder: Path, batches: list) -> dict[str, Tensor]:
    """Weights after training in which the old numbers stand still."""
    code = module_of(folder)
    model = code.load(folder).train()
    net = wrap(model, mode)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    code.slow_down_old(optimizer, model, 0.0, folder)
    for batch in batches:
        train_step(net, optimizer, my_rows(batch, rank, world))
    return full_weights(model, rank)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_old_numbers_stand_still_in_two_processes(mode, folder_of, tmp_path):
    folder, batches = folder_of("tiny-llama", grown=True), [inputs_of("tiny-llama", step) for step in range(STEPS)]
    found, before = in_two(partial(slowed, mode=mode, folder=folder, batches=batches), tmp_path), stored(folder)
    masks = module_of(folder).grown_masks(load_folder(folder), folder)
    assert all(torch.equal(found[name][~new], before[name][~new]) for name, new in masks.items())
    assert any(not torch.equal(found[name][new], before[name][new]) for name, new in masks.items())


def group_sizes(model: nn.Module, code, folder: Path) -> dict[str, int]:
    return {group["name"]: len(group["params"]) for group in code.parameter_groups(model, folder)}


def sharded_groups(rank: int, world: int, mode: str, folder: Path) -> dict[str, int]:
    code = module_of(folder)
    model = code.load(folder)
    wrap(model, mode.split()[0], checkpoint="checkpointed" in mode)
    return group_sizes(model, code, folder)


@pytest.mark.parametrize("mode", ["fsdp", "fsdp checkpointed"])
def test_groups_of_old_and_new_are_those_of_the_whole_model(mode, folder_of, tmp_path):
    folder = folder_of("tiny-llama", grown=True)
    wanted = group_sizes(load_folder(folder), module_of(folder), folder)
    assert wanted.keys() == {"mixed", "grown"}  # every old weight has become wider
    assert in_two(partial(sharded_groups, mode=mode, folder=folder), tmp_path) == wanted


# --- blocks ---


def loss_and_gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    loss = model(**batch)["loss"]
    loss.backward()
    return loss.item(), {name.replace(WRAPPER, ""): p.grad for name, p in model.named_parameters()}


@each_model
def test_checkpointed_blocks_give_the_same_gradients(name, folder_of):
    batch, calls = inputs_of(name), Counter()
    wanted_loss, wanted = loss_and_gradients(load_folder(folder_of(name)), batch)
    model = load_folder(folder_of(name))
    blocks = blocks_of(model)
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: calls.update([number]))
    loss, found = loss_and_gradients(wrap(model, "alone", checkpoint=True), batch)
    assert calls == {number: 2 for number in range(len(blocks))}  # there, and on the way back
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert found.keys() == wanted.keys() and all(torch.allclose(found[n], wanted[n], rtol=1e-5, atol=1e-7) for n in wanted)


@each_model
def test_blocks_of_a_kind_share_a_class_and_own_their_parameters(name, folder_of):
    model = load_folder(folder_of(name, grown=True))
    blocks = blocks_of(model)
    kinds = len({type(block) for block in blocks})
    assert kinds == (4 if name == "t5" else 1) < len(blocks)  # of T5, the first block of a stack makes the positions for the others
    owners = Counter(id(p) for block in blocks for p in block.parameters())
    assert set(owners.values()) == {1}
    assert {id(p) for p in model.parameters()} > owners.keys()


@each_model
def test_linear_maps_are_linears(name, folder_of):
    """So that PEFT and quantisation find them."""
    model = load_folder(folder_of(name))
    inside = [(m, p) for block in blocks_of(model) for m in block.modules() for p in m.parameters(recurse=False) if p.dim() == 2]
    assert len(inside) >= 4 * len(blocks_of(model))
    assert all(isinstance(module, (nn.Linear, nn.Embedding)) for module, _ in inside)


# --- what wraps it ---


@each_model
def test_peft_finds_every_linear_map(name, folder_of):
    peft = pytest.importorskip("peft")
    model, batch = load_folder(folder_of(name)), inputs_of(name)
    names, wanted = [n for n, _ in model.named_parameters()], model(**batch)["loss"].item()
    maps = {n for n, m in model.named_modules() if n and not isinstance(m, nn.Embedding) and any(p.dim() == 2 for p in m.parameters(recurse=False))}
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    loss = tuned(**batch)["loss"]
    loss.backward()
    found = {n.removeprefix("base_model.model.") for n, _ in tuned.named_parameters()}
    assert {n.removesuffix(".lora_A.default.weight") for n in found if ".lora_A." in n} == maps
    assert loss.item() == pytest.approx(wanted, rel=1e-6)  # LoRA begins with zeros
    assert all((p.grad is not None) == ("lora_" in n) for n, p in tuned.named_parameters())
    assert [n for n, _ in tuned.merge_and_unload().named_parameters()] == names


def trainer_of(name: str, folder: Path, out: Path):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs it")
    from transformers import Trainer, TrainingArguments

    batch = inputs_of(name, batch=12)
    rows = [{key: x[i] for key, x in batch.items()} for i in range(12)]
    options = dict(learning_rate=RATE, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0, use_cpu=True, save_strategy="no", report_to=[])
    arguments = TrainingArguments(str(out), max_steps=STEPS, per_device_train_batch_size=12, disable_tqdm=True, **options)
    return Trainer(load_folder(folder), arguments, train_dataset=rows, eval_dataset=rows), batch


@pytest.mark.parametrize("name", ["gpt2", "t5", "tiny-llama"])
def test_the_trainer_of_transformers_takes_it_as_it_is(name, folder_of, tmp_path):
    trainer, batch = trainer_of(name, folder_of(name), tmp_path)
    model = load_folder(folder_of(name)).train()
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    wanted = [train_step(model, optimizer, batch).item() for _ in range(STEPS)]
    assert trainer.train().training_loss == pytest.approx(sum(wanted) / STEPS, rel=TOLERANCE)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(model(**batch)["loss"].item(), rel=TOLERANCE)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt"])
def test_what_the_trainer_saves_goes_back(name, folder_of, tmp_path):
    trainer, _ = trainer_of(name, folder_of(name), tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert import_weights(onnxgrow.load(path_of(name)), tmp_path / "saved" / "model.safetensors", tmp_path / "back.onnx").max_rel < TOLERANCE


@pytest.mark.slow
def test_lightning_takes_it(folder_of, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model, self.losses = model, []

        def training_step(self, batch, _):
            loss = self.model(**batch)["loss"]
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), RATE)

    batches, model = [inputs_of("tiny-gpt", step) for step in range(STEPS)], load_folder(folder_of("tiny-gpt")).train()
    task = Task(load_folder(folder_of("tiny-gpt")).train())
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    lightning.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet).fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    assert task.losses == pytest.approx([train_step(model, optimizer, batch).item() for batch in batches], rel=TOLERANCE)


# --- the examples ---

EXAMPLES = {"ddp": "train_sharded.py --mode ddp", "fsdp": "train_sharded.py --mode fsdp --checkpoint", "accelerate": "train_accelerate.py"}
each_example = pytest.mark.parametrize("example", list(EXAMPLES))


def run_example(rank: int, world: int, words: list[str]) -> str:
    """What an example prints."""
    sys.argv = words
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(words[0], run_name="__main__")
    return printed.getvalue()


def losses_in(printed: str) -> list[float]:
    return [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step")]


def check_example(printed: str, folder: Path, out: Path) -> None:
    """Losses are those of one process, and the weights go back into the ONNX file."""
    sys.modules.pop("train", None), sys.modules.pop("model", None)
    alone = run_example(0, 1, [str(ROOT / "examples" / "train_sharded.py"), str(folder), "--steps", "3", "--out", str(out.with_name("alone.safetensors"))])
    assert losses_in(printed) == pytest.approx(losses_in(alone), rel=TOLERANCE) and len(losses_in(printed)) == STEPS
    model = onnxgrow.load(folder.with_suffix(".onnx"))
    assert import_weights(model, out, out.with_suffix(".onnx")).max_rel < TOLERANCE


def words_of(example: str, folder: Path, out: Path) -> list[str]:
    if example == "accelerate":
        pytest.importorskip("accelerate")
    script, *options = EXAMPLES[example].split()
    return [str(ROOT / "examples" / script), str(folder), *options, "--steps", str(STEPS), "--out", str(out)]


@each_example
def test_an_example_trains_in_two_processes(example, folder_of, tmp_path):
    folder, out = folder_of("tiny-gpt", grown=True), tmp_path / "trained.safetensors"
    printed = in_two(partial(run_example, words=words_of(example, folder, out)), tmp_path, meet=False)
    check_example(printed, folder, out)


@pytest.mark.slow
@each_example
def test_an_example_runs_under_torchrun(example, folder_of, tmp_path):
    folder, out = folder_of("tiny-gpt"), tmp_path / "trained.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words_of(example, folder, out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    check_example(done.stdout, folder, out)
