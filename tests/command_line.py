"""What the tests of every command ask of the command line: what help imports, and which options there are."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from typer.main import get_command

from taylorder import cli

ROOT = Path(__file__).parent.parent

_HEAVY = ("torch", "transformers", "triton", "weightwatcher", "scipy", "numpy", "pandas", "matplotlib", "safetensors")

_PROGRAM = f"""
import sys
from taylorder.cli import main
sys.argv = ["taylorder", *sys.argv[1:]]
try:
    main()
finally:
    print([name for name in {_HEAVY!r} if name in sys.modules], file=sys.stderr)
"""

WORDS = "All work and no play makes Jack a dull boy; the quick brown fox jumps over 13 lazy dogs. " * 8


def heavy_imports(*arguments):
    """The heavy packages that a command line imports before it ends, its exit code, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return ast.literal_eval(done.stderr.splitlines()[-1]), done.returncode, done.stdout


def started(count, *arguments, program=("-m", "taylorder"), **environment):
    """Run the command line in so many processes: exit code, standard output and standard error."""
    command = [sys.executable]
    if count > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [*command, *program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, **one_thread, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def options(command):
    """The options of a command by their long names; each has its help."""
    parameters = get_command(cli.app).commands[command].params
    found = {option.opts[0]: option for option in parameters if option.opts[0].startswith("--")}
    assert all(option.help.endswith(".") for option in found.values())
    return found
