"""The command line of a checkout: `python cli.py expand model.onnx --hidden 1024`, with the dependencies installed and the package not."""

from pathlib import Path

import onnxgrow

onnxgrow.__path__.append(str(Path(__file__).parent))  # rules/ is installed as onnxgrow.rules; here it stands beside the package

if __name__ == "__main__":
    from onnxgrow.commands import main

    main()
