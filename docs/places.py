"""A preprocessor of mdBook: links of the repository become links of the book.

Chapters link as they do where the repository is read, and include documents of its root, whose links begin there. A link to a document
that is a chapter leads to the chapter; one to another file of the repository becomes its name, since a book has no such file; a picture
comes into the page itself. A link to nothing is an error.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path, PurePosixPath

SOURCES = Path(__file__).resolve().parent / "src"
ROOT = SOURCES.parent.parent
# What comes first wins: a link may have code in its words, and code may look like a link.
PARTS = re.compile(
    r"(?P<fenced>^```.*?^```[ \t]*$)"
    r"|!\[(?P<alt>[^\]]*)\]\((?!\w+:)(?P<drawn>[^)\s]+)\)"
    r"|\[(?P<words>[^\[\]]*)\]\((?!\w+:)(?P<target>[^)\s]+)\)"
    r'|(?P<before><img [^>]*src=")(?!\w+:)(?P<picture>[^"]+)'
    r"|(?P<code>`+[^`\n]*`+)",
    re.S | re.M,
)
HEADING = re.compile(r"^#+ +(.+)$", re.M)


def slug(heading: str) -> str:
    """The name that mdBook and GitHub give a heading."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda found: found[1] or "", heading).strip().lower()
    return "".join("-" if c in " -" else c for c in text if c.isalnum() or c in " -_")


class Book:
    """All chapters, and what is wrong with their links."""

    def __init__(self, items: list) -> None:
        self.chapters = list(self.of(items))
        self.paths = {chapter["path"] for chapter in self.chapters if chapter.get("path")}
        self.names = {c["path"]: {slug(h) for h in HEADING.findall(c["content"])} for c in self.chapters if c.get("path")}
        self.wrong: list[str] = []

    def of(self, items: list):
        for item in items:
            if isinstance(item, dict) and "Chapter" in item:
                yield item["Chapter"]
                yield from self.of(item["Chapter"]["sub_items"])

    def file(self, target: str) -> Path | None:
        """The file that a chapter's link means: from the chapter's folder, or from the root, where included text comes from."""
        places = (SOURCES / target, ROOT / target, ROOT / "tools/python" / target)
        return next((place.resolve() for place in places if place.exists()), None)

    def chapter_of(self, file: Path) -> str | None:
        if file.parent == SOURCES and file.name in self.paths:
            return file.name
        if file.parent == ROOT and file.name in self.paths:
            return file.name
        if file == ROOT / "README.md":
            return "introduction.md"
        return "yuan.h.md" if file == ROOT / "include/yuan.h" else None

    def link(self, own: str, words: str, target: str) -> str:
        path, _, name = target.partition("#")
        if not path:
            if name in self.names[own]:
                return f"[{words}](#{name})"
            found = next((chapter for chapter, names in self.names.items() if name in names), None)
            if found is None:
                self.wrong.append(f"{own}: no heading #{name}")
            return f"[{words}]({found}#{name})"
        file = self.file(path)
        if file is None:
            self.wrong.append(f"{own}: no file {path}")
            return words
        chapter = self.chapter_of(file)
        if chapter is None:
            shown = PurePosixPath(os.path.relpath(file, ROOT))
            return words if words.strip("`") in str(shown) else f"{words} (`{shown}`)"
        if name and name not in self.names[chapter]:
            chapter = next((c for c, names in self.names.items() if name in names), None)
            if chapter is None:
                self.wrong.append(f"{own}: {path} has no heading #{name}")
        return f"[{words}]({chapter}{'#' + name if name else ''})"

    def picture(self, own: str, target: str) -> str:
        file = self.file(target)
        if file is None:
            self.wrong.append(f"{own}: no picture {target}")
            return target
        kind = "svg+xml" if file.suffix == ".svg" else "png"
        return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"

    def changed(self, own: str, found: re.Match[str]) -> str:
        if found["target"]:
            return self.link(own, found["words"], found["target"])
        if found["drawn"]:
            return f"![{found['alt']}]({self.picture(own, found['drawn'])})"
        if found["picture"]:
            return found["before"] + self.picture(own, found["picture"])
        return found[0]

    def run(self) -> None:
        for chapter in self.chapters:
            own = chapter.get("path")
            if own is not None:
                chapter["content"] = PARTS.sub(lambda found, own=own: self.changed(own, found), chapter["content"])


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "supports":
        return
    _context, book = json.load(sys.stdin)
    whole = Book(book["items"] if "items" in book else book["sections"])
    whole.run()
    if whole.wrong:
        sys.exit("\n".join(whole.wrong))
    json.dump(book, sys.stdout)


if __name__ == "__main__":
    main()
