"""The programs `yuan` and `yuan-quant` of the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["yuan", "yuan_quant"]


def yuan() -> NoReturn:
    """Becomes the program `yuan`."""
    _become("yuan")


def yuan_quant() -> NoReturn:
    """Becomes the program `yuan-quant`."""
    _become("yuan-quant")


def _become(name: str) -> NoReturn:
    program = Path(__file__).parent / "bin" / (name + (".exe" if os.name == "nt" else ""))
    if not program.exists():
        sys.exit(f"error: this package has no programs ({program}): install the wheel, or build {name} with `cargo install --path tools`")
    if os.name == "nt":  # Where a program cannot be replaced by another.
        sys.exit(subprocess.call([str(program), *sys.argv[1:]]))
    os.execv(program, [name, *sys.argv[1:]])
