"""Test the kernels on a GPU and time them there, in six minutes: one JSON and one table.

    python scripts/gpu.py [--model M] [--out FILE] [--device cuda|cpu] [--quick]

Where there is no GPU it says so and ends well. ``--device cpu --quick`` goes through every section on tiny sizes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import torch
from gpu_run.run import measured, table
from gpu_run.sizes import sizes
from rich.console import Console

from taylorder.storage.files import replacing
from taylorder.storage.finite_json import as_json


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="generate with this model (default: random weights in SmolLM2's shape)")
    parser.add_argument("--out", type=Path, default=Path("taylorder-out/gpu/gpu.json"), metavar="FILE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repeat: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was tested or timed; --device cpu --quick tries the sections.")
        return
    document = measured(sizes(torch.device(options.device), options.quick), options.model)
    with replacing(options.out) as path:
        path.write_text(as_json(document))
    Console().print(table(document))


if __name__ == "__main__":
    main()
