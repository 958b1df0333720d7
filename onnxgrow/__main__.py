"""`python -m onnxgrow`: the command line where the script is not on the path."""

from .commands import main

if __name__ == "__main__":
    main(prog_name="onnxgrow")
