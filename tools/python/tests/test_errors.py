"""Errors are Python's, and one `YuanError`."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Optional, Type

import pytest
from conftest import PROMPT, Run

import yuan
from yuan.errors import of_file


def test_errors_in_the_words_of_python(engine: yuan.Engine, model: str, tmp_path: Path) -> None:
    missing, folder, other = str(tmp_path / "没有.gguf"), str(tmp_path), str(tmp_path / "other.gguf")
    Path(other).write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 100)
    Path(other + ".2").write_bytes(b"GGUF" + bytes(100))

    def raises(kind: Type[Exception], call: Callable[[], object], part: Optional[str] = None) -> yuan.YuanError:
        with pytest.raises(kind, match=part) as caught:
            call()
        assert isinstance(caught.value, yuan.YuanError) and caught.value.status.startswith("YUAN_ERROR_")
        return caught.value

    error = raises(FileNotFoundError, lambda: yuan.Engine(missing), "没有.gguf")
    assert isinstance(error, OSError) and error.errno == errno.ENOENT and error.filename == missing
    raises(FileNotFoundError, lambda: engine.restore(missing))
    raises(ValueError, lambda: yuan.Engine(folder))
    raises(yuan.BadFileError, lambda: yuan.Engine(other))
    raises(NotImplementedError, lambda: yuan.Engine(other + ".2"), "version 0")
    raises(yuan.BadFileError, lambda: engine.restore(model))
    raises(MemoryError, lambda: yuan.Engine(model, memory="1M"))
    raises(ValueError, lambda: yuan.Sampler(temperature=-1.0))
    raises(yuan.ContextFullError, lambda: engine.generate("春" * 2000))
    with engine.session() as session:
        raises(FileNotFoundError, lambda: session.save(os.path.join(folder, "no", "x")))
        raises(ValueError, lambda: session.generate(5))
        error = raises(OSError, lambda: session.save("/dev/full/x"))
        assert isinstance(error, OSError) and error.errno == errno.ENOTDIR
    for said, kind in [("(os error 13)", PermissionError), ("(os error 2)", FileNotFoundError), ("(os error 5)", yuan.FileError)]:
        found = of_file(yuan.FileError(f"cannot open it: {said}"), other)
        assert isinstance(found, kind) and str(found) == f"cannot open it: {said}" and f"(os error {found.errno})" == said
    for wrong in (lambda: yuan.Engine(model, threads=-1), lambda: engine.generate(PROMPT, -2), lambda: engine.generate(PROMPT, timeout=0)):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(OverflowError):
        engine.generate([-1])


def test_numpy_may_be_missing(python: Run) -> None:
    program = """
import sys
sys.modules["numpy"] = None
session = engine.session()
session.eval(engine.tokenize("春"))
assert len(session.logits_list()) == engine.tokenizer.vocab_size
for call in (session.logits, session.embedding, lambda: engine.embed("春")):
    try:
        call()
    except ImportError as error:
        print("pip install numpy" in str(error))
"""
    done = python(program)
    assert done.stdout == "True\nTrue\nTrue\n", done


def test_where_the_library_is_looked_for(tmp_path: Path) -> None:
    package = Path(yuan.__file__).parent
    shutil.copytree(package, tmp_path / "yuan", ignore=shutil.ignore_patterns("lib", "bin", "__pycache__"))

    def complaint(**environment: str) -> str:
        kept: Dict[str, str] = {name: value for name, value in os.environ.items() if name not in ("YUAN_LIBRARY", "LD_LIBRARY_PATH")}
        kept.update(environment, PYTHONPATH=str(tmp_path))
        done = subprocess.run([sys.executable, "-c", "import yuan"], cwd=tmp_path, env=kept, capture_output=True, text=True)
        return done.stderr if done.returncode else ""

    said = complaint()
    assert "ImportError" in said and str(tmp_path / "yuan" / "lib") in said and "YUAN_LIBRARY" in said and "the system's loader" in said, said
    assert "cannot be loaded" in complaint(YUAN_LIBRARY=str(tmp_path / "no.so"))
    from yuan._library import library

    assert complaint(YUAN_LIBRARY=library._name) == ""
