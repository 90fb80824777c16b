"""The licences of everything that is linked into the programs, as one text."""

import pathlib

import facts

NAMES = ("licen", "copying", "notice", "unlicense", "copyright")
# What is linked in beside crates. Its texts are in `runtime-licences.txt`.
RUNTIME = pathlib.Path(__file__).with_name("runtime-licences.txt")
RULE = "=" * 100


def texts(crate: facts.Crate) -> list[str]:
    """The crate's own licence files. Of a crate without any, the texts of the common licences that it names."""
    found = [
        path
        for folder in (crate.folder, *(crate.folder / name for name in ("LICENSES", "licenses", "license")))
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.lower().startswith(NAMES) and path.suffix not in (".rs", ".html", ".json")
    ]
    if not found and "Apache-2.0" in crate.licence:
        found = [facts.ROOT / "LICENSE-APACHE"]
    if not found:
        raise SystemExit(f"{crate.name} {crate.version} ({crate.licence}) has no licence file: add its text to {RUNTIME}")
    return [path.read_text(encoding="utf-8", errors="replace").strip() for path in found]


def all_of(triple: str) -> str:
    crates = facts.foreign(triple)
    unnamed = [crate.name for crate in crates if not crate.licence]
    if unnamed:
        raise SystemExit(f"crates without a licence: {', '.join(unnamed)}")
    holders: dict[str, list[str]] = {}
    for crate in crates:
        for text in texts(crate):
            holders.setdefault(text, []).append(f"{crate.name} {crate.version}")
    parts = [
        f"What is linked into the programs and the library of yuan {facts.version()} beside its own code, and under which licences.",
        "\n".join(f"{crate.name} {crate.version}: {crate.licence} ({crate.repository or 'crates.io'})" for crate in crates),
        RUNTIME.read_text(encoding="utf-8").strip(),
    ]
    for text, names in sorted(holders.items(), key=lambda held: held[1]):
        parts.append(f"{RULE}\n{', '.join(dict.fromkeys(names))}:\n\n{text}")
    return "\n\n".join(parts) + "\n"
