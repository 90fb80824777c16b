#!/usr/bin/env python3
"""Compares the tokenizer and the chat template with those of the authors' programs, on random texts and conversations.

usage: check_texts.py TOKENS [--texts N] [--chats N] [--seed N] [--template FILE]

TOKENS is the program of examples/tokens.rs. Ids of texts are those of transformers' LlamaTokenizer over SentencePiece, for the vocabulary of Yuan 2.0,
for that of Yuan 3.0, which is made of it as the authors' converter does, and for the tiny model's. Conversations are rendered by Jinja as transformers
sets it up, with the template src/yuan3.jinja or that of another FILE, such as the authors' own; special strings that people wrote in them stay text.
Exits with 1 when the ids of any text or conversation differ. Fixtures come from YUAN_FIXTURES, else ../shared/fixtures.
"""
import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from sentencepiece import sentencepiece_model_pb2
from transformers import LlamaTokenizer

from texts import Source, conversation, text

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(os.environ.get("YUAN_FIXTURES", ROOT.parent / "shared/fixtures"))
ROWS = 136_064
# SHA-256 of the ids of the conversations, by vocabulary, seed and number, as the authors' template makes them (`--template`: the file
# vllm/examples/tool_chat_template_yuan3_pythonic.jinja of Yuan-lab-LLM/Yuan3.0 at 85b27820).
AUTHORS = {
    ("yuan3-tiny", 1, 1000): "32cd1458b8d677102bf6dcc86302aee0245916409e91a88635ae41640ea79af9",
    ("Yuan 3.0", 1, 1000): "58ec4818688337ea6674129b124b943cc1bd754b46d2e371354f3b04bc3b7187",
}


class Reference:
    """The authors' tokenizer: LlamaTokenizer with these special strings, of which the numbered ones are special in what people write too."""

    def __init__(self, model, special, numbered=()):
        options = {"add_bos_token": False, "add_eos_token": False, "legacy": True, "eos_token": "<eod>"}
        self.llama = LlamaTokenizer(str(model), additional_special_tokens=[*special, *numbered], **options)
        self.special = cutter([token for token in self.llama.all_special_tokens if token not in numbered])
        self.numbered = cutter(numbered)

    def id(self, token):
        return self.llama.convert_tokens_to_ids(token)

    def parse(self, text):
        """The ids of a text in which special strings are special."""
        return self.id(self.llama.tokenize(text))

    def as_text(self, text):
        """The ids of a text that people wrote."""
        ids = []
        for part in self.numbered.split(text):
            ids.extend([self.id(part)] if self.numbered.fullmatch(part) else self.llama.sp_model.encode(part))
        return ids

    def render(self, template, chat):
        """The ids of a conversation: every special string that people wrote is a stand-in until the template's own are cut out."""
        used = set(json.dumps(chat, ensure_ascii=False))
        free = (chr(c) for c in range(0x100000, 0x10FFFE) if chr(c) not in used)
        stand_ins = {}

        def hide(value, kept=()):
            if isinstance(value, str):
                return self.special.sub(lambda m: m[0] if m[0] in kept else stand_ins.setdefault(m[0], next(free)), value)
            if isinstance(value, list):
                return [hide(v, kept) for v in value]
            if isinstance(value, dict):
                return {hide(k): hide(v, kept if k == "content" else ()) for k, v in value.items()}
            return value

        # Templates look for the marks of the reasoning in answers.
        marks = lambda message: ("<think>", "</think>") if message["role"] == "assistant" else ()
        hidden = {k: hide(v) for k, v in chat.items()}
        hidden["messages"] = [hide(message, ()) | {"content": hide(message["content"], marks(message))} for message in chat["messages"]]
        whole, written = [], {ord(stand_in): text for text, stand_in in stand_ins.items()}
        for part in self.special.split(template.render(hidden)):
            whole.extend([self.id(part)] if self.special.fullmatch(part) else self.as_text(part.translate(written)))
        return whole


def cutter(strings):
    """Cuts a text at these strings, at the leftmost and the longest."""
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if strings else r"(\b\B)")


def references(folder):
    """The vocabularies: name, arguments of TOKENS, and what it is compared with."""
    tiny, real = FIXTURES / "models/yuan3-tiny", FIXTURES / "yuan-tokenizer"
    goldens = json.loads((real / "goldens.json").read_text())
    listed = json.loads((tiny / "tokenizer_config.json").read_text())["additional_special_tokens"]
    numbered = [f"s{i:03}" for i in range(1000)]
    special = [token for token in listed if token not in numbered]

    def with_strings(strings):
        # The authors' scripts append what is no piece yet.
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString((real / "tokenizer.model").read_bytes())
        known = {piece.piece for piece in model.pieces}
        for token in strings:
            if token not in known:
                model.pieces.add(piece=token, score=0)
        path = Path(folder) / f"{len(strings)}.model"
        path.write_bytes(model.SerializeToString())
        return path

    of_yuan2 = goldens["hf_all_special_tokens"]
    yield "Yuan 2.0", [real], Reference(with_strings(of_yuan2), of_yuan2)
    yield "yuan3-tiny", [tiny], Reference(tiny / "tokenizer.model", special, numbered)
    yield "Yuan 3.0", [real, ROWS], Reference(with_strings(listed), special, numbered)


def templates(path):
    """The template as transformers compiles it."""
    def refuse(message):
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(path.read_text())


def ask(program, arguments, lines):
    """What TOKENS says to each line."""
    asked = "".join(json.dumps(line) + "\n" for line in lines)
    answer = subprocess.run([program, *map(str, arguments)], input=asked.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in answer.stdout.splitlines()]


def compare(what, asked, found, expected):
    """How many differ; the shortest ones are shown."""
    assert len(found) == len(expected) == len(asked)
    wrong = sorted((len(json.dumps(a)), i) for i, a in enumerate(asked) if found[i] != expected[i])
    print(f"{what}: {len(wrong)} of {len(asked)} differ, {sum(map(len, expected))} tokens", flush=True)
    for _, i in wrong[:3]:
        print(f"  {json.dumps(asked[i])}\n    expected {expected[i]}\n    found    {found[i]}")
    return len(wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens")
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--chats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--template", type=Path, default=ROOT / "src/yuan3.jinja")
    args = parser.parse_args()

    wrong = 0
    source = Source(args.seed)
    texts = [{"text": text(source), "special": source.chance(0.5)} for _ in range(args.texts)]
    source = Source(args.seed)
    chats = [conversation(source) for _ in range(args.chats)]
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments, reference in references(folder):
            expected = [(reference.parse if t["special"] else reference.as_text)(t["text"]) for t in texts]
            wrong += compare(f"{name}: texts", texts, ask(args.tokens, arguments, texts), expected)
            if name == "Yuan 2.0":
                continue
            template = templates(args.template)
            expected = [reference.render(template, chat) for chat in chats]
            wrong += compare(f"{name}: conversations", chats, ask(args.tokens, arguments, chats), expected)
            digest = hashlib.sha256(json.dumps(expected).encode()).hexdigest()
            print(f"{name}: SHA-256 of the ids of the conversations {digest}")
            authors = AUTHORS.get((name, args.seed, args.chats))
            if authors not in (None, digest):
                print("  the authors' template gives", authors)
                wrong += 1
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
