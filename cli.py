"""The command line of a checkout: `python cli.py expand model.onnx --hidden 1024`, with the dependencies installed and the package not."""

from onnxgrow.commands import main

if __name__ == "__main__":
    main()
