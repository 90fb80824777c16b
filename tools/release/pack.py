"""Archives whose bytes depend on nothing but what is in them: sorted, of one time and of nobody."""

import gzip
import hashlib
import io
import os
import pathlib
import shutil
import stat
import subprocess
import tarfile
import tempfile

import facts


def settle(tree: pathlib.Path) -> None:
    """Gives all files of a tree one time, and permissions by their kind."""
    for path in sorted(tree.rglob("*"), reverse=True) + [tree]:
        if path.is_symlink():
            os.utime(path, (facts.epoch(), facts.epoch()), follow_symlinks=False)
            continue
        runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
        path.chmod(0o755 if runs else 0o644)
        os.utime(path, (facts.epoch(), facts.epoch()))


def tar_gz(tree: pathlib.Path, archive: pathlib.Path, level: int) -> None:
    """The tree under its own name."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = facts.epoch()
        return member

    with io.BytesIO() as tar:
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.GNU_FORMAT) as packed:
            for path in [tree, *sorted(tree.rglob("*"))]:
                packed.add(path, path.relative_to(tree.parent).as_posix(), recursive=False, filter=plain)
        archive.write_bytes(gzip.compress(tar.getvalue(), level, mtime=0))


def deb(tree: pathlib.Path, package: pathlib.Path, architecture: str, needs: dict[str, str], level: int) -> None:
    """The tree, which lies below /usr, as a package of Debian and what is like it."""
    control = {
        "Package": "yuan",
        "Version": facts.version(),
        "Architecture": architecture,
        "Section": "science",
        "Priority": "optional",
        "Maintainer": "The developers of yuan <developers@yuan.invalid>",
        **needs,
        "Installed-Size": str(sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) // 1024),
        "Description": f"{facts.DESCRIPTION}\n A runtime for a bilingual mixture of experts, in as little memory as it is given;"
        "\n the programs yuan and yuan-quant, and a library for C.",
    }
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder, "root")
        shutil.copytree(tree, root / "usr", symlinks=True)
        lines = "".join(f"{name}: {value}\n" for name, value in control.items())
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN/control").write_text(lines)
        (root / "DEBIAN/triggers").write_text("activate-noawait ldconfig\n")
        settle(root)
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Zgzip", f"-z{level}", "--build", root, package],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "SOURCE_DATE_EPOCH": str(facts.epoch())},
        )


def sums(folder: pathlib.Path) -> str:
    """What `sha256sum -c` checks."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
