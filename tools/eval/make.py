"""Makes tasks/heldout.jsonl of the demo model's held-out text: how does a passage go on? One of four is right, three are of other passages.

    python3 tools/eval/make.py

English questions are verses of which three words in four are given, Chinese ones poems without the last line.
"""

import json
import pathlib

HERE = pathlib.Path(__file__).parent
TEXT = HERE.parent.parent / "assets/demo-model/heldout.txt"
# Of each language.
QUESTIONS = {"en": 16, "zh": 16}
CHOICES = 4


def parts():
    """By language: headers with what is given, and how it goes on."""
    found = {"en": [], "zh": []}
    for document in TEXT.read_text(encoding="utf-8").split("\n<eod>\n"):
        header, separator, body = document.partition("<sep>")
        if not separator:
            continue
        if body.isascii():
            words = body.split(" ")[:32]
            given, rest = " ".join(words[:24]), " " + " ".join(words[24:])
        else:
            lines = body.removesuffix("。").split("。")
            given, rest = "。".join(lines[:-1]) + "。", lines[-1] + "。"
        if given and len(rest) > 8:
            found["en" if body.isascii() else "zh"].append((header + separator + given, rest))
    return found


def main():
    lines = []
    for language, passages in parts().items():
        # Evenly of all.
        chosen = passages[:: len(passages) // QUESTIONS[language]][: QUESTIONS[language]]
        for number, (question, right) in enumerate(chosen):
            others = [chosen[(number + step) % len(chosen)][1] for step in (1, 3, 5)]
            answer = number % CHOICES
            choices = others[:answer] + [right] + others[answer:]
            lines.append({"language": language, "question": question, "choices": choices, "answer": answer})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (HERE / "tasks/heldout.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
