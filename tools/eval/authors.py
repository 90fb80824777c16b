"""Asks a running `yuan serve` the questions of the model's authors, in their way, and writes the answers as their scripts read them.

    git clone https://github.com/IEIT-Yuan/Yuan2.0-M32 authors
    yuan serve yuan2-m32.gguf --context 8192 &
    python3 tools/eval/authors.py authors gsm8k --output gsm8k

A task is `gsm8k`, `math` or `arc`. The questions are the lines of their `datasets/`, before `[SEP]`; what they put before each question stands in their
`tasks/*/eval_for_*.py` and is read from there. Behind a question stands `<sep>`, `<n>` is a newline; answers are greedy, of 1024 tokens less one at most.
`tasks/*/score_*.py` counts the right ones of the folder that is written, which can be finished later if it is interrupted.
"""

import argparse
import ast
import concurrent.futures
import json
import pathlib
import re
import urllib.request

# The questions and the folder of the scripts, by task.
TASKS = {"gsm8k": ("GSM8K/gsm8k.txt", "GSM8K"), "math": ("MATH/math.txt", "MATH"), "arc": ("ARC/ARC_challenge.txt", "ARC")}
MOST = 1023


def before(folder):
    """What stands before a question: the text that the authors' script calls `prompt`."""
    [script] = folder.glob("eval_for_*.py")
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            if [getattr(target, "id", None) for target in node.targets] == ["prompt"]:
                return node.value.value
    raise SystemExit(f"{script} gives no text the name prompt")


def questions(authors, task):
    """The prompts."""
    data, folder = TASKS[task]
    file = authors / "datasets" / data
    if not file.exists():
        raise SystemExit(f"there are no questions in {file}")
    start = before(authors / "tasks" / folder)
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(start + line.partition("[SEP]")[0] + "<sep>").replace("<n>", "\n") for line in lines]


def answer(url, prompt):
    """The line of an answer."""
    body = {"model": "yuan", "prompt": prompt, "max_tokens": MOST, "temperature": 0}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        text = json.load(reply)["choices"][0]["text"]
    line = (prompt + text).strip().replace("<pad>", "").replace("<eod>", "").replace("<sep>", "[SEP]")
    return re.sub("(<n>)+", "<n>", line.replace("\n", "<n>")).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("authors", type=pathlib.Path, help="a checkout of the authors' repository")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for the answers")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--at-once", type=int, default=8, help="questions that are asked together (default 8)")
    parser.add_argument("--first", type=int, help="only so many questions")
    args = parser.parse_args()
    prompts = questions(args.authors, args.task)[: args.first]
    args.output.mkdir(parents=True, exist_ok=True)
    # Their scripts want the number of a process at the end of a name.
    file = args.output / "samples_0.jsonl"
    done = len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0
    with file.open("a", encoding="utf-8") as out, concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        for place, line in enumerate(pool.map(lambda prompt: answer(args.url, prompt), prompts[done:]), done + 1):
            out.write(line + "\n")
            out.flush()
            print(f"{place} of {len(prompts)}", flush=True)


if __name__ == "__main__":
    main()
