"""Examples run: those in `yuan.ray`, in the package's README, and the programs of examples/python/ray."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import POETS, ROOT
from ray.cluster_utils import Cluster

import yuan
import yuan.ray

PROGRAMS = ROOT / "examples" / "python" / "ray"
QUESTIONS = [f"春日山中 {poet}" for poet in POETS]


def run(cluster: Cluster, folder: Path, arguments: List[str]) -> str:
    environment = {**os.environ, "RAY_ADDRESS": str(cluster.address)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(folder: Path) -> str:
    path = folder / "questions.parquet"
    pq.write_table(pa.table({"id": list(range(len(QUESTIONS))), "question": QUESTIONS}), path)
    return str(path)


def answers(folder: Path) -> List[str]:
    found: List[str] = pq.read_table(folder / "answers").sort_by("id").column("answer").to_pylist()
    return found


@pytest.fixture
def server(model: str) -> Iterator[str]:
    command = [sys.executable, "-m", "yuan", "serve", model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as started:
        assert started.stderr is not None
        for line in started.stderr:
            if " is served at " in line:
                yield line.partition(" is served at ")[2].partition(":  ")[0].split()[0].rstrip(":;,")
                break
        started.terminate()


def test_examples_in_the_package(engine: yuan.Engine) -> None:
    tried = 0
    for module in pkgutil.iter_modules(yuan.ray.__path__):
        result = doctest.testmod(importlib.import_module(f"yuan.ray.{module.name}"), extraglobs={"engine": engine})
        assert result.failed == 0, module.name
        tried += result.attempted
    assert tried >= 4


def test_examples_in_the_readme(cluster: Cluster, model: str, folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "tools/python/README.md").read_text(encoding="utf-8"), re.S)
    shown = [block for block in blocks if "yuan.ray" in block]
    assert shown
    os.symlink(model, folder / "yuan2-m32.gguf")
    for block in shown:
        block = block.replace('"yuan2-m32.gguf"', repr(str(folder / "yuan2-m32.gguf")))
        assert run(cluster, folder, ["-c", block])


def test_a_corpus(cluster: Cluster, model: str, engine: yuan.Engine, folder: Path) -> None:
    said = run(cluster, folder, [str(PROGRAMS / "answer_corpus.py"), model, asked(folder), str(folder / "answers")])
    assert f"{len(QUESTIONS)} answers are in " in said
    assert answers(folder) == [engine.chat([("user", question)], 24) for question in QUESTIONS]


def test_a_corpus_by_the_server(cluster: Cluster, server: str, engine: yuan.Engine, folder: Path) -> None:
    run(cluster, folder, [str(PROGRAMS / "served_corpus.py"), server, asked(folder), str(folder / "answers")])
    assert answers(folder) == [engine.chat([("user", question)], 24) for question in QUESTIONS]
