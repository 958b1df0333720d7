"""Cases of tests/test_errors.py: folders with one model in several graphs."""

from __future__ import annotations

import os
import shutil

from tests.error_cases_file import file, in_folder


@file("holds the graphs of one model: …")
def in_parts(folder, patch):
    in_folder()
    shutil.copy("gpt.onnx", "src/decoder_model.onnx")
    os.rename("src/model.onnx", "src/encoder_model.onnx")
    return "expand src --hidden 144"
