"""The programs of the wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROMPT

import yuan

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(not (Path(yuan.__file__).parent / "bin").exists(), reason="there are no programs without a wheel")


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True, timeout=60).stdout


def test_commands(engine: yuan.Engine, model: str) -> None:
    assert yuan.__version__ in said(str(BIN / "yuan"), "--version") and yuan.__version__ in said(str(BIN / "yuan-quant"), "--version")
    for command in ([str(BIN / "yuan")], [sys.executable, "-m", "yuan"]):
        assert said(*command, "generate", model, "-p", PROMPT, "-n", "12") == engine.generate(PROMPT, 12) + "\n"
    assert "demo" in said(str(BIN / "yuan-quant"), "inspect", model) or said(str(BIN / "yuan-quant"), "inspect", model)


def test_the_installed_package() -> None:
    from importlib.metadata import distribution

    installed = distribution("yuan")
    files = {str(file) for file in installed.files or ()}
    assert installed.version == yuan.__version__ and "yuan/py.typed" in files and any("licenses/LICENSE-MIT" in file for file in files)
    assert (Path(yuan.__file__).parent / "lib").exists()
