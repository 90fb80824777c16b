"""What a release is of: the version, the commit and its time, and the crates that its programs are made of."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What is shipped. Crates that only tests and build scripts want are no part of it.
SHIPPED = ("yuan-tools", "yuan")
DESCRIPTION = "Run Yuan2.0-M32 on the machine you own"
LICENCE = "MIT OR Apache-2.0"


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@dataclasses.dataclass(frozen=True)
class Crate:
    """One of the dependencies."""

    id: str
    name: str
    version: str
    licence: str
    repository: str
    folder: pathlib.Path
    checksum: str | None
    needs: tuple[str, ...]

    @property
    def purl(self) -> str:
        return f"pkg:cargo/{self.name}@{self.version}"


@functools.cache
def version() -> str:
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


@functools.cache
def commit() -> str:
    """As the programs show it. That of a tree that has changes says so."""
    changed = output("git", "status", "--porcelain", "--untracked-files=no").strip()
    return output("git", "rev-parse", "--short=10", "HEAD").strip() + ("-changed" if changed else "")


@functools.cache
def epoch() -> int:
    """The time that every file of a release has: SOURCE_DATE_EPOCH, or that of the commit."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or output("git", "log", "-1", "--format=%ct"))


@functools.cache
def crates(triple: str) -> list[Crate]:
    """What is linked into programs and library for that target, ours included, by name."""
    told = json.loads(
        output("cargo", "metadata", "--locked", "--offline", "--format-version=1", f"--filter-platform={triple}")
    )
    packages = {package["id"]: package for package in told["packages"]}
    nodes = {node["id"]: node for node in told["resolve"]["nodes"]}
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in locked}

    def needs(node: dict) -> list[str]:
        linked = [dep["pkg"] for dep in node["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
        return [pkg for pkg in linked if not runs_in_the_compiler(packages[pkg])]

    wanted = [package["id"] for package in packages.values() if package["name"] in SHIPPED and not package["source"]]
    reached: set[str] = set()
    while wanted:
        pkg = wanted.pop()
        if pkg not in reached:
            reached.add(pkg)
            wanted += needs(nodes[pkg])

    def crate(pkg: str) -> Crate:
        package = packages[pkg]
        return Crate(
            id=pkg,
            name=package["name"],
            version=package["version"],
            licence=package["license"] or "",
            repository=package["repository"] or "",
            folder=pathlib.Path(package["manifest_path"]).parent,
            checksum=checksums.get((package["name"], package["version"])),
            needs=tuple(sorted(needs(nodes[pkg]))),
        )

    return sorted(map(crate, reached), key=lambda crate: (crate.name, crate.version))


def runs_in_the_compiler(package: dict) -> bool:
    return any("proc-macro" in target["kind"] for target in package["targets"])


def foreign(triple: str) -> list[Crate]:
    """Those of others."""
    return [crate for crate in crates(triple) if crate.checksum]
