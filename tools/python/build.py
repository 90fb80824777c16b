#!/usr/bin/env python3
"""Packs the wheel: `build.py LIBRARY PROGRAMS OUT`, with libyuan, the folder of `yuan` and `yuan-quant`, and the folder for the wheel.

    cargo build --release -p yuan -p yuan-tools
    python3 -m pip install hatchling==1.33.0
    tools/python/build.py target/release/libyuan.so target/release target/wheel

Needs hatchling (PyPI), and `strip` (the environment variable STRIP names another) and `readelf` (binutils). The same library and programs make the same bytes. What the wheel asks of the system is read from
the symbols that they need, and is its name: `manylinux_2_34_x86_64` is for systems with glibc 2.34 or later."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Tuple

ROOT = Path(__file__).resolve().parents[2]
# What every system of the manylinux rules has (PEP 600), as far as it is used here.
SYSTEM = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
MACHINES = {"Advanced Micro Devices X86-64": "x86_64", "AArch64": "aarch64"}
# Of every file in the wheel: hatchling's own choice, 2 February 2020, whatever the environment says.
TIME = "1580601600"


def said(*command: str | Path) -> str:
    """What a program says, in English."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"})
    return done.stdout


def asks(file: Path) -> Tuple[str, Tuple[int, ...]]:
    """The machine that an ELF file is for, and the newest version of glibc that a symbol of it needs."""
    machine = re.search(r"Machine:\s+(.*)", said("readelf", "--file-header", file))
    if machine is None or machine[1].strip() not in MACHINES:
        sys.exit(f"error: {file} is for {machine[1] if machine else 'no machine'}; there are wheels for {' and '.join(MACHINES)}")
    foreign = set(re.findall(r"\(NEEDED\).*\[(.*)\]", said("readelf", "--dynamic", file))) - SYSTEM
    if foreign:
        sys.exit(f"error: {file} needs {', '.join(sorted(foreign))}, which other systems may not have")
    needs = said("readelf", "--wide", "--version-info", file).partition("Version needs section")[2]
    versions = [tuple(map(int, version.split("."))) for version in re.findall(r"Name: GLIBC_([0-9.]+)\b", needs)]
    return MACHINES[machine[1].strip()], max(versions, default=(2, 5))


def platform(files: List[Path]) -> str:
    """The name of the oldest system that all of the files run on."""
    found = [asks(file) for file in files]
    machines = {machine for machine, _ in found}
    if len(machines) > 1:
        sys.exit(f"error: the files are for {' and '.join(sorted(machines))}")
    newest = max(version for _, version in found)
    return f"manylinux_{newest[0]}_{newest[1]}_{machines.pop()}"


def stage(folder: Path, library: Path, programs: Path) -> List[Path]:
    """Lays everything that the wheel has into a folder. What was compiled is returned."""
    here = ROOT / "tools" / "python"
    shutil.copytree(here / "yuan", folder / "yuan", ignore=shutil.ignore_patterns("__pycache__", "lib", "bin"))
    for file in [here / "pyproject.toml", here / "README.md", here / "tag.py", ROOT / "Cargo.toml", ROOT / "LICENSE-MIT", ROOT / "LICENSE-APACHE"]:
        shutil.copyfile(file, folder / file.name)
    compiled = []
    for source, place in [(library, "lib/libyuan.so"), (programs / "yuan", "bin/yuan"), (programs / "yuan-quant", "bin/yuan-quant")]:
        target = folder / "yuan" / place
        target.parent.mkdir(exist_ok=True)
        subprocess.run([os.environ.get("STRIP", "strip"), "--strip-unneeded", "-o", target, source], check=True)
        compiled.append(target)
    # The rights of files are in the wheel, and depend on who made them otherwise.
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path in compiled else 0o644)
    return compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, help="libyuan.so")
    parser.add_argument("programs", type=Path, help="the folder of yuan and yuan-quant")
    parser.add_argument("out", type=Path, help="where the wheel goes")
    arguments = parser.parse_args()
    for file in [arguments.library, arguments.programs / "yuan", arguments.programs / "yuan-quant"]:
        if not file.is_file():
            sys.exit(f"error: there is no {file}: build it with `cargo build --release -p yuan -p yuan-tools`")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        compiled = stage(staged, arguments.library, arguments.programs)
        environment = {**os.environ, "YUAN_WHEEL_PLATFORM": platform(compiled), "SOURCE_DATE_EPOCH": TIME}
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(arguments.out.resolve())]
        # It says which wheel it has made.
        done = subprocess.run(command, cwd=staged, env=environment)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}; is hatchling installed (python3 -m pip install hatchling==1.33.0)?")


if __name__ == "__main__":
    main()
