"""The tests of the package, against the demo model: `YUAN_TEST_MODEL=demo.gguf python3 -m pytest tools/python/tests`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator

import pytest

import yuan

Run = Callable[[str], "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[3]
PROMPT, QUESTION = "春日山中 李白<sep>", "春日山中 李白"


@pytest.fixture(scope="session")
def model() -> str:
    """The demo model."""
    return os.environ["YUAN_TEST_MODEL"]


@pytest.fixture(scope="session")
def engine(model: str) -> Iterator[yuan.Engine]:
    """It, open."""
    with yuan.Engine(model, threads=2) as opened:
        yield opened


@pytest.fixture
def session(engine: yuan.Engine) -> Iterator[yuan.Session]:
    """A session that goes on for ever."""
    with engine.session(shift=4) as made:
        yield made


@pytest.fixture
def python(model: str) -> Run:
    """Runs a program, which finds the model in `model`, an engine in `engine`, and `yuan`."""

    def run(program: str) -> "subprocess.CompletedProcess[str]":
        begin = f"import yuan\nmodel = {model!r}\nengine = yuan.Engine(model, threads=1)\n"
        return subprocess.run([sys.executable, "-c", begin + program], capture_output=True, text=True, encoding="utf-8", timeout=60)

    return run
