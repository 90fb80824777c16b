"""Programs of other packages, by way of the server of the wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from conftest import QUESTION, ROOT

import yuan

PROGRAMS = {"langchain_chat": "langchain_openai", "llama_index_chat": "llama_index.llms.openai_like"}


@pytest.fixture(scope="module")
def address(model: str) -> Iterator[str]:
    if not (Path(yuan.__file__).parent / "bin").exists():
        pytest.skip("there are no programs without a wheel")
    command = [sys.executable, "-m", "yuan", "serve", model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as server:
        assert server.stderr is not None
        for line in server.stderr:
            if " is served at " in line:
                yield line.partition(" is served at ")[2].partition(":  ")[0].split()[0].rstrip(":;,")
                break
        server.terminate()


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_programs_of_others(program: str, address: str, engine: yuan.Engine) -> None:
    pytest.importorskip(PROGRAMS[program])
    path = ROOT / "examples" / "python" / "served" / f"{program}.py"
    done = subprocess.run([sys.executable, str(path), address, QUESTION], capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == engine.chat([("user", QUESTION)], 24) + "\n"
