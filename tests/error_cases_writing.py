"""FileError, of writing: how each message is provoked."""

from __future__ import annotations

import os
from pathlib import Path

from onnxgrow.model import Model
from tests.error_cases import Family

file = Family("FileError")


@file("was changed while it was read")
def changed(folder, patch):
    plan = Model("model.onnx").plan(ffn=300)
    os.utime("model.onnx", ns=(1, 1))
    return lambda: plan.write("out.onnx", validate=False)


@file("went away while it was read: …")
def gone(folder, patch):
    plan = Model("model.onnx").plan(ffn=300)
    patch.setattr("onnxgrow.write._write", lambda *_: os.rename("model.onnx", "moved.onnx"))

    def act():
        try:
            plan.write("out.onnx", validate=False)
        finally:
            os.rename("moved.onnx", "model.onnx")  # the folder must be as it was
    return act


@file("is whole, but the disk did not confirm its name: …")
def not_confirmed(folder, patch):
    from onnxgrow import atomic, disk

    def act():
        patch.setattr(disk, "sync_folder", failing)
        try:
            atomic.save(Path("model.onnx"), content, overwrite=True)
        finally:
            patch.undo()
            atomic.recover(folder)

    def failing(_):
        raise OSError(5, "Input/output error")
    content = Path("model.onnx").read_bytes()
    return act


@file("holds the source model, which is never changed")
def source_inside(folder, patch):
    plan = Model("model.onnx").plan(ffn=300)
    os.mkdir("grown")
    plan.write("grown/model.onnx", validate=False)
    return "expand grown --ffn 400 -o grown --force"


@file("which would be lost: export did not write it")
def trained_inside(folder, patch):
    from onnxgrow.pytorch import export

    export(Model("model.onnx"), "pt", check=False)
    Path("pt/trained.safetensors").write_bytes(b"days of work")
    return "export model.onnx -o pt --force --no-validate"
