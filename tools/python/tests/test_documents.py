"""Examples run: those in the package, in its README and the project's, and the programs of examples/python."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUESTION, ROOT

import yuan

PROGRAMS = sorted((ROOT / "examples" / "python").glob("*.py"))
ARGUMENTS = {"generate": ["春日山中 李白<sep>", "24"], "chat": ["--tokens", "12"], "batch": [], "at_once": [], "logits": ["春日山中"]}


def test_examples_in_the_package(engine: yuan.Engine, model: str) -> None:
    tried = 0
    names = [f"yuan.{module.name}" for module in pkgutil.iter_modules(yuan.__path__) if module.name not in ("__main__", "ray")]
    for name in ["yuan", *names]:
        result = doctest.testmod(importlib.import_module(name), extraglobs={"engine": engine, "model": model, "yuan": yuan})
        assert result.failed == 0, name
        tried += result.attempted
    assert tried >= 20


@pytest.mark.parametrize("page", ["README.md", "tools/python/README.md"])
def test_examples_in_pages(page: str, model: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    # Those of `yuan.ray` run where there is a cluster (ray_tests).
    blocks = [block for block in blocks if "yuan.ray" not in block]
    assert blocks
    os.symlink(model, tmp_path / "yuan2-m32.gguf")
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=60)
        assert done.returncode == 0 and done.stdout, (block, done.stderr)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_programs(program: Path, model: str) -> None:
    arguments = [sys.executable, str(program), model, *ARGUMENTS[program.stem]]
    done = subprocess.run(arguments, input=f"{QUESTION}\n杜甫\n", capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0 and len(done.stdout) > 10, done
    failed = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert failed.returncode != 0 and "usage" in failed.stderr
