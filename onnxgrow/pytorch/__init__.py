"""Back to PyTorch: readable modules, weights as safetensors, and the way back into the ONNX file.

    import onnxgrow
    from onnxgrow.pytorch import export, load_folder

    export(onnxgrow.load("grown.onnx"), "grown_pt")
    module = load_folder("grown_pt")                    # a torch.nn.Module; outputs = module(input_ids=..., ...)
    import_weights(onnxgrow.load("grown.onnx"), "grown_pt/trained.safetensors", "trained.onnx")
"""

from .check import Agreement
from .folder import Exported, export, load_folder, module_of, parameters_of
from .importing import import_weights

__all__ = ["Agreement", "Exported", "export", "import_weights", "load_folder", "module_of", "parameters_of"]
