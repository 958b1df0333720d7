"""How long `onnxgrow --help` takes, against the imports that no command can do without.

    python benchmarks/startup.py                 the ratio to `python -c "import click, numpy"`, in runs that take turns

Both start the interpreter that runs this file; the target of the ratio is 1.5.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

TARGET = 1.5
COMMAND = Path(sys.executable).with_name("onnxgrow")
BASE = [sys.executable, "-c", "import click, numpy"]


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(rounds: int) -> tuple[float, float]:
    """Median seconds of `onnxgrow --help` and of the base, after one round that fills the caches."""
    rows = [(seconds([str(COMMAND), "--help"]), seconds(BASE)) for _ in range(rounds + 1)][1:]
    return tuple(statistics.median(column) for column in zip(*rows, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    ours, base = measure(parser.parse_args().rounds)
    print(f"onnxgrow --help       {1000 * ours:6.1f} ms")
    print(f"import click, numpy   {1000 * base:6.1f} ms")
    print(f"ratio                 {ours / base:6.2f}     (target {TARGET})")
    return 0 if ours <= TARGET * base else 1


if __name__ == "__main__":
    sys.exit(main())
