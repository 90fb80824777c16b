"""Programs and library for a target, by the functions of `.ci/emulation` that also set up what compiles for it."""

import dataclasses
import os
import pathlib
import re
import subprocess

import facts

LIBRARY = "target/cargo-c"


@dataclasses.dataclass(frozen=True)
class Target:
    """A system that there is an archive for."""

    name: str
    # Debian's name of the architecture.
    debian: str
    # Programs: the target, the folder of what is compiled for it, and what comes before cargo.
    programs: str
    folder: str
    cargo: str
    # What has to be there first.
    set_up: str
    # The library, which programs of the system link: the target, and what comes before cargo.
    library: str
    library_cargo: str
    # What runs the programs here.
    runner: tuple[str, ...] = ()


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="x86_64-linux",
            debian="amd64",
            programs="x86_64-unknown-linux-musl",
            folder="target/musl",
            cargo="on_musl",
            set_up="install_missing musl-tools; fetch_cross_rust; std_for x86_64-unknown-linux-musl",
            library="x86_64-unknown-linux-gnu",
            library_cargo="",
        ),
        # Debian has no musl for it: programs of glibc.
        Target(
            name="aarch64-linux",
            debian="arm64",
            programs="aarch64-unknown-linux-gnu",
            folder="target/arm",
            cargo="on_arm max",
            set_up="install_missing gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user-static; fetch_cross_rust",
            library="aarch64-unknown-linux-gnu",
            library_cargo="on_arm max",
            runner=("qemu-aarch64-static", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"),
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Profile:
    """How it is compiled."""

    name: str
    folder: str
    # What gzip does of 9.
    level: int
    variables: dict[str, str]

    def environment(self) -> dict[str, str]:
        told = {**os.environ, **self.variables, "YUAN_PORTABLE": "1"}
        if self.name == "release":
            told |= {"SOURCE_DATE_EPOCH": str(facts.epoch()), "YUAN_COMMIT": facts.commit(), **without_folders()}
        return told


# The quick one is that of the stage `static` of `.ci/run`, whose results it finds.
PROFILES = {
    "release": Profile("release", "release", 9, {"CARGO_PROFILE_RELEASE_DEBUG": "false", "CARGO_PROFILE_RELEASE_STRIP": "debuginfo"}),
    "quick": Profile("dev", "debug", 1, {"CARGO_PROFILE_DEV_OPT_LEVEL": "0", "CARGO_PROFILE_DEV_DEBUG": "false"}),
}


def without_folders() -> dict[str, str]:
    """Flags by which no folder of this machine is in what is compiled, from Rust or from C."""
    cargo = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")
    folders = {facts.ROOT: "/yuan", cargo: "/cargo", facts.ROOT / "target/cross-rust": "/rust"}
    rust = " ".join(f"--remap-path-prefix={folder}={name}" for folder, name in folders.items())
    c = " ".join(f"-ffile-prefix-map={folder}={name}" for folder, name in folders.items())
    # By target: RUSTFLAGS would take the place of those that `on_musl` needs, to which it adds YUAN_RUSTFLAGS.
    by_target = {f"CARGO_TARGET_{arch}_UNKNOWN_LINUX_GNU_RUSTFLAGS": rust for arch in ("X86_64", "AARCH64")}
    return {"YUAN_RUSTFLAGS": rust, **by_target, "CFLAGS": c, "CXXFLAGS": c}


def shell(script: str, environment: dict[str, str]) -> None:
    subprocess.run(["bash", "-c", f"set -euo pipefail; . .ci/emulation; {script}"], cwd=facts.ROOT, env=environment, check=True)


def programs(target: Target, profile: Profile) -> pathlib.Path:
    """Compiles `yuan` and `yuan-quant`. Returns their folder."""
    # One of them, built alone, would have other features.
    build = f"{target.cargo} cargo build --quiet --locked --profile {profile.name} -p yuan-tools --bins"
    shell(f"{target.set_up}; {build}", profile.environment())
    return facts.ROOT / target.folder / target.programs / profile.folder


def library(target: Target, profile: Profile, into: pathlib.Path) -> None:
    """Compiles the C library, and puts header, libraries, `yuan.pc` and the files for CMake below `into`, from where they may be moved anywhere."""
    # That of the stage `capi`, where it is quick: with its flags, so that neither compiles anew what the other has.
    environment = profile.environment() if profile.name == "release" else dict(os.environ)
    other = f" --target {target.library}" if target.library_cargo else ""
    install = f"cargo cinstall --locked -p yuan --profile {profile.name}{other} --target-dir {LIBRARY}"
    where = f"--prefix / --libdir /lib --includedir /include --datadir /share --destdir '{into}'"
    shell(f"{target.set_up if target.library_cargo else ':'}; {target.library_cargo} {install} {where}", environment)
    told = into / "lib/pkgconfig/yuan.pc"
    text = re.sub(r"^prefix=.*$", "prefix=${pcfiledir}/../..", told.read_text(), flags=re.MULTILINE)
    told.write_text(re.sub(r"^(libdir|includedir)=/*(lib|include)$", r"\1=${prefix}/\2", text, flags=re.MULTILINE))


def oldest_glibc(files: list[pathlib.Path]) -> str | None:
    """The version of glibc that these files need; nothing where they need none."""
    told = "".join(facts.output("readelf", "--wide", "--version-info", str(path)) for path in files)
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([0-9.]+)", told)}
    return ".".join(map(str, max(versions))) if versions else None
