"""Programs of current llama.cpp, built from the source package of llama-cpp-python."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
]


def built(cache: Path, jobs: int, name: str = "llama-bench") -> Path:
    """The program; downloads and builds it where it is not in `cache` yet (about ten minutes of one core)."""
    found = sorted(cache.glob(f"llama_cpp_python-*/vendor/llama.cpp/build/bin/{name}"))
    if found:
        return found[-1]
    source = sources(cache)
    build = source / "build"
    run("cmake", "-S", source, "-B", build, *FLAGS)
    run("nice", "-n", "15", "cmake", "--build", build, "--target", name, "--parallel", jobs)
    return build / "bin" / name


def sources(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob("llama_cpp_python-*.tar.gz")):
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", PACKAGE, "-d", cache)
    archive = sorted(cache.glob("llama_cpp_python-*.tar.gz"))[-1]
    folder = cache / archive.name.removesuffix(".tar.gz")
    if not folder.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(cache, filter="data")
    return folder / "vendor" / "llama.cpp"


def run(*command: object) -> None:
    print("+", *command, file=sys.stderr)
    # What a program prints while it builds is not our output.
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, env=os.environ | {"MAKEFLAGS": ""})
