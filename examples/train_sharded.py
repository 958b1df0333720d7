"""Train an exported folder on several processes: DDP, or FSDP2 with one group of parameters for each block.

    onnxgrow export grown.onnx -o grown_pt
    torchrun --nproc-per-node 2 examples/train_sharded.py grown_pt --mode fsdp --steps 3
    onnxgrow import-weights grown.onnx grown_pt/sharded.safetensors -o trained.onnx

NCCL where there is CUDA, else gloo. It needs torch and safetensors; `python examples/train_sharded.py FOLDER` is the same training in one process.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

WRAPPER = "_checkpoint_wrapped_module."  # what a checkpointed block puts into the names of its parameters


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """What lies in a ModuleList that is in no other one: a block may have lists of its own, of experts for instance."""
    if isinstance(model, nn.ModuleList):
        return list(model)
    return [block for child in model.children() for block in blocks_of(child)]


def wrap(model: nn.Module, mode: str, checkpoint: bool = False) -> nn.Module:
    """What to call instead of the model. FSDP2 gives the model new parameters, so make the optimizer afterwards."""
    if checkpoint:  # keep only what goes into a block, compute the rest again on the way back; first, so that FSDP2 wraps this too
        apply_activation_checkpointing(model, check_fn=blocks_of(model).__contains__)
    if mode == "fsdp":
        for block in blocks_of(model):
            fully_shard(block)
        return fully_shard(model)  # what no block owns stays together: embeddings and head, so a tied head stays tied
    return DistributedDataParallel(model) if mode == "ddp" else model


def my_rows(batch: dict[str, Tensor], rank: int, world: int) -> dict[str, Tensor]:
    """This process's share of a batch; inputs that have no batch axis go to everyone."""
    most = max(len(x) for x in batch.values())
    return {name: x[rank::world] if len(x) == most else x for name, x in batch.items()}


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> Tensor:
    """One step; the loss, averaged over processes. Gradients are averaged too, which is right while all have as many labels that count."""
    loss = net(**batch)["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    shown = loss.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(shown)
        shown /= dist.get_world_size()
    return shown


def full_weights(model: nn.Module, rank: int = 0) -> dict[str, Tensor]:
    """Every parameter and buffer as one whole tensor, on the CPU of the first process. All processes must call it: each brings its shards."""
    weights = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:  # a tied weight comes once, as in model.safetensors
        whole = value.detach().full_tensor() if isinstance(value, DTensor) else value.detach()
        if rank == 0:
            weights[name.replace(WRAPPER, "")] = whole.cpu().contiguous()
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made by onnxgrow export")
    parser.add_argument("--mode", choices=["ddp", "fsdp"], default="fsdp")
    parser.add_argument("--checkpoint", action="store_true", help="compute the insides of blocks again instead of keeping them")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, help="default: sharded.safetensors in the folder")
    args = parser.parse_args()
    sys.path.insert(0, str(args.folder.resolve()))
    from model import load, parameter_groups  # the code in the folder, as it is
    from train import batch

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    model = load(device=device).train()
    net = wrap(model, args.mode if world > 1 else "none", args.checkpoint)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=args.lr)
    generator = torch.Generator().manual_seed(0)  # the same batch everywhere, of which each takes its rows
    for step in range(args.steps):
        rows = {name: x.to(device) for name, x in my_rows(batch(generator), rank, world).items()}
        loss = train_step(net, optimizer, rows)
        if rank == 0:
            print(f"step {step:4}  loss {loss.item():.6f}", flush=True)
    weights = full_weights(model, rank)
    if rank == 0:
        out = args.out or args.folder / "sharded.safetensors"
        save_file(weights, out, {"format": "pt"})
        print(f"wrote {out}; back to ONNX: onnxgrow import-weights MODEL.onnx {out} -o trained.onnx")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
