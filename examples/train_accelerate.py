"""Train an exported folder with accelerate, which takes the generated model as it is.

    onnxgrow export grown.onnx -o grown_pt
    torchrun --nproc-per-node 2 examples/train_accelerate.py grown_pt --steps 3
    onnxgrow import-weights grown.onnx grown_pt/accelerated.safetensors -o trained.onnx

It needs torch, safetensors and accelerate; `python` instead of torchrun is one process. Data parallel: accelerate shards on
accelerators only and leaves that out without a word on a CPU; train_sharded.py shards everywhere.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from train_sharded import full_weights, my_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made by onnxgrow export")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, help="default: accelerated.safetensors in the folder")
    args = parser.parse_args()
    sys.path.insert(0, str(args.folder.resolve()))
    from model import load, parameter_groups  # the code in the folder, as it is
    from train import batch

    model = load().train()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    net, optimizer = accelerator.prepare(model, torch.optim.AdamW(parameter_groups(model), lr=args.lr))
    generator = torch.Generator().manual_seed(0)  # the same batch everywhere, of which each takes its rows; a DataLoader goes through prepare instead
    for step in range(args.steps):
        rows = my_rows(batch(generator), accelerator.process_index, accelerator.num_processes)
        loss = net(**{name: x.to(accelerator.device) for name, x in rows.items()})["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"step {step:4}  loss {accelerator.reduce(loss.detach(), 'mean').item():.6f}", flush=True)
    weights = full_weights(accelerator.unwrap_model(net), accelerator.process_index)
    if accelerator.is_main_process:
        save_file(weights, args.out or args.folder / "accelerated.safetensors", {"format": "pt"})
    accelerator.end_training()


if __name__ == "__main__":
    main()
