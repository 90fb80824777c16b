"""Draws assets/pictures/speed.svg: what `yuan plan` expects of laptops by their memory.

`docs/speed.py YUAN` prints the picture; `docs/speed.py YUAN --check` fails where the one in the repository is another.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PICTURE = Path(__file__).resolve().parent.parent / "assets/pictures/speed.svg"
# GB/s of memory and of the drive, a colour, and how high above its end the name of a line stands.
LAPTOPS = [(120, 7, "#0072b2"), (60, 3, "#d55e00"), (40, 1, "#009e73")]
MEMORIES = range(6, 37)
LEFT, TOP, WIDTH, HEIGHT, MOST = 60, 54, 560, 300, 40


def speed(yuan: str, memory: int, laptop: tuple[int, int, str]) -> float | None:
    """Tokens a second at most behind 4096 tokens of Yuan2.0-M32, its cache in q8_0; none where it does not fit."""
    of_memory, of_drive, _ = laptop
    command = [yuan, "plan", "--geometry", "m32", "--memory", f"{memory}G", "--kv", "q8_0", "--json"]
    command += ["--memory-speed", str(of_memory), "--drive-speed", str(of_drive)]
    table = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["table"]
    row = next(row for row in table["contexts"] if row["context"] == 4096 and row["kv"] == "q8_0")
    return row["tokens_per_second"] if row["fits"] else None


def picture(yuan: str) -> str:
    def x(memory: float) -> float:
        return LEFT + (memory - MEMORIES[0]) / (MEMORIES[-1] - MEMORIES[0]) * WIDTH

    def y(speed: float) -> float:
        return TOP + HEIGHT * (1 - speed / MOST)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 30} {TOP + HEIGHT + 56}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">Yuan2.0-M32: tokens a second at most, estimated · 每秒词元数（估计的上限）</text>',
        f'<text x="{LEFT}" y="41" fill="#555555">yuan plan, behind 4096 tokens, --kv q8_0; lines: memory / drive · 内存 / 硬盘</text>',
    ]
    for tokens in range(0, MOST + 1, 10):
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(tokens):.1f}" y2="{y(tokens):.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tokens) + 4:.1f}" text-anchor="end">{tokens}</text>')
    for memory in (8, 12, 16, 20, 24, 28, 32, 36):
        parts.append(f'<text x="{x(memory):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{memory}</text>')
    parts.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">memory for yuan, GB · 给 yuan 的内存</text>')
    for laptop in LAPTOPS:
        of_memory, of_drive, colour = laptop
        speeds = [(memory, speed(yuan, memory, laptop)) for memory in MEMORIES]
        known = [(memory, tokens) for memory, tokens in speeds if tokens is not None]
        points = " ".join(f"{x(memory):.1f},{y(tokens):.1f}" for memory, tokens in known)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        last = known[-1][1]
        name = f"{of_memory} / {of_drive} GB/s: {last:.0f}"
        parts.append(f'<text x="{LEFT + WIDTH}" y="{y(last) - 7:.1f}" text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    drawn = picture(sys.argv[1])
    if sys.argv[2:] != ["--check"]:
        sys.stdout.write(drawn)
    elif drawn != PICTURE.read_text(encoding="utf-8"):
        sys.exit(f"{PICTURE} is not what {sys.argv[1]} expects: docs/speed.py YUAN > assets/pictures/speed.svg")


if __name__ == "__main__":
    main()
