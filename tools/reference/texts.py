"""Random texts and conversations that are hard on tokenizers and chat templates: the same ones for the same seed, on every machine."""
import json
import random
import sys

WORDS = """the a of and to in is model expert router token attention filter language memory don't I'm it's naïve café e.g. Mr. U.S.A. COVID-19
rooms100 items123 tests s000 s001 s042 s999 S001 s1000 s01 ss000s ps012x""".split()
CHINESE = "的一是不了在人有我他这为之大来以个中上们你好世界天气怎么样写诗秋请回答问题，。？！、；：“”《》（）【】　".replace("\n", "")
CODE = """def f(x):\\n    return x**2\\n|for (int i = 0; i < n; ++i) {\\n\\tsum += a[i];\\n}|SELECT * FROM t WHERE a <> 'b';|<html><body class="x">&amp;</body></html>|
#include <stdio.h>\\r\\n|let s: &'static str = "a\\\\n";|x = {"a": [1, 2.5e-3, null, true]}|if a != b && c >= d || !e { }|\\\\begin{equation} \\\\sum_{i=0}^n x_i^2 \\\\end{equation}|
git commit -m 'x' --no-verify|https://example.com/a?b=c&d=%20#e|user@example.com|->|=>|...|====|----|/* */|<!-- -->|0x1F|1e-05|::<T>|\\tif x:\\n\\t\\tpass\\n"""
CODE = [c.strip("\n").encode().decode("unicode_escape") for c in CODE.split("|")]
EMOJI = ["😀", "🍕", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇨🇳", "🇨", "❤️", "❤", "1️⃣", "🧑🏿‍🚀", "☺︎", "🫠", "\u200d", "\ufe0f", "🏴\U000e0067\U000e0062\U000e007f"]
SPECIALS = """<s> </s> <unk> <eod> <n> <sep> <pad> <mask> <predict> <FIM_SUFFIX> <FIM_PREFIX> <FIM_MIDDLE> <commit_before> <jupyter_code> <empty_output>
<repo_name> <file_sep> <BOS> <IMAGE> </IMAGE> <obj> </obj> <3dbox> </3dbox> <depth> <eop> <eog> <|begin_of_sentence|> <|end_of_sentence|> <|User|>
<|Assistant|> <think> </think> <search_result> </search_query> <tool_calls> </tool_calls> <tool_response> </tool_response> <final_answer>
</final_answer> <infer> <inferresult> <code_query>""".split()
ALMOST = """<sep <s sep> <|User| |User|> <|User|<|User|> <<sep>> <sep>> < sep> <SEP> <eod/> <think > </ think> <thin k> <|Assistant <|im_start|> <0x0A> <0xFF> <dummy00001>
<|begin_of_sentence <tool_call> [/INST] <image> <n <n>> s00 s0000 s000s001s002 ▁<sep> ▁s000""".split()
STRANGE = "\ufffd\ufffe\uffff\ufdd0\U0001ffff\U0010ffff\U0010fffd\ue000\uf8ff\U000f0000\u0000\u0001\u0007\u001b\u001c\u001f\u007f\u0080\u0085\u009f\u00ad\ufeff\u200b\u200e\u202e\u2060\u2581\u0378\U000e0001"
SPACES = [" ", "  ", "   ", " " * 16, " " * 33, "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n ", "\u00a0", "\u3000", "\u2003", "\u2028", "\u2029", "\u205f", "\v", "\f", "\u0085", " \u3000 "]
MARKS = "".join(map(chr, range(0x300, 0x370))) + "\u0483\u0591\u05b0\u064b\u0651\u093c\u0e31\u0e49\u1ab0\u20d0\u20e3\u302a\u3099\ufe20"
BASES = "aeiouncszAEO日あกकשد"
SCRIPTS = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x10A0, 0x1100), (0x1100, 0x1200), (0x2000, 0x2C00), (0x3040, 0x3130),
           (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xF900, 0xFB00), (0xFE00, 0x10000), (0x10000, 0x10200), (0x1D400, 0x1D800), (0x1F000, 0x1FB00), (0x20000, 0x2A6E0)]
DIGITS = "0123456789" * 3 + "０１９٣५²½Ⅷ①一二"


class Source:
    """Draws that Python promises to be the same for the same seed in every version."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def below(self, end):
        return int(self.random() * end)

    def of(self, choices):
        return choices[self.below(len(choices))]

    def some(self, most, draw):
        return [draw() for _ in range(self.below(most + 1))]

    def chance(self, share):
        return self.random() < share


def fragment(draw, hostile):
    """One piece of a text."""
    kind = draw.below(13 if hostile else 10)
    if kind == 0:
        word = draw.of(WORDS)
        return draw.of([word, word.upper(), word.capitalize(), word + ",", word + ". "])
    if kind == 1:
        return " ".join(draw.some(8, lambda: draw.of(WORDS)))
    if kind == 2:
        return "".join(draw.some(12, lambda: draw.of(CHINESE)))
    if kind == 3:
        return draw.of(CODE)
    if kind == 4:
        return "".join(draw.some(4, lambda: draw.of(EMOJI)))
    if kind == 5:
        return draw.of(SPACES)
    if kind == 6:
        return "".join(draw.some(20, lambda: draw.of(DIGITS))) + draw.of(["", "", ".", "%", "s", "e10"])
    if kind == 7:
        return "".join(draw.of(BASES) + "".join(draw.some(4, lambda: draw.of(MARKS))) for _ in range(draw.below(6)))
    if kind == 8:
        low, high = draw.of(SCRIPTS)
        return "".join(draw.some(10, lambda: chr(low + draw.below(high - low))))
    if kind == 9:
        return "".join(chr(97 + draw.below(26)) for _ in range(draw.below(15)))
    if kind == 10:
        return draw.of(SPECIALS)
    if kind == 11:
        return draw.of(ALMOST)
    return "".join(draw.some(5, lambda: draw.of(STRANGE) if draw.chance(0.7) else any_character(draw)))


def any_character(draw):
    """Any character there is, of those that are no surrogates."""
    code = draw.below(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)


def text(draw, most=12, hostile=True):
    """A text of some pieces, sometimes of one that is repeated."""
    if draw.chance(0.02):
        return fragment(draw, hostile) * (1 + draw.below(40))
    return draw.of(["", "", " "]).join(draw.some(most, lambda: fragment(draw, hostile)))


def value(draw, depth=0):
    """A value of JSON."""
    kind = draw.below(9 if depth < 2 else 7)
    if kind < 2:
        return text(draw, 3)
    if kind == 2:
        return draw.of([True, False, None])
    if kind == 3:
        return draw.below(2**31) - 2**30
    if kind == 4:
        return draw.of([0, -1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
    if kind == 5:
        return (draw.random() - 0.5) * 10.0 ** (draw.below(40) - 20)
    if kind == 6:
        return draw.of([0.1, 1.0, -0.0, 1e16, 1e15, 1e-4, 1e-5, 1.5e300, 5e-324, 1e22, 123456789012345680.0])
    if kind == 7:
        return draw.some(3, lambda: value(draw, depth + 1))
    return {name(draw): value(draw, depth + 1) for _ in range(draw.below(4))}


def name(draw):
    return draw.of(["city", "days", "名字", "x_1", "get_weather", "查询", "a b", text(draw, 1)]) or "f"


def tool(draw):
    """A function as clients describe it."""
    properties = {name(draw): {"type": draw.of(["string", "integer", "array"]), "description": text(draw, 3)} for _ in range(draw.below(4))}
    function = {"name": name(draw), "description": text(draw, 4), "parameters": {"type": "object", "properties": properties, "required": list(properties)[:1]}}
    if draw.chance(0.1):
        function["x"] = value(draw)
    return {"type": "function", "function": function}


def said(draw):
    """What the assistant says: with its reasoning beside it, in it, or with calls."""
    content = draw.of(["", "\n", "\n\n"]) + text(draw, 5) if draw.chance(0.3) else text(draw, 5)
    message = {"role": "assistant", "content": content}
    if draw.chance(0.3):
        message["reasoning_content"] = draw.of(["", "\n", "\n\n"]) + text(draw, 4) + draw.of(["", "\n", " \n"])
    if draw.chance(0.25):
        message["content"] = draw.of(["<think>", "<think>\n", ""]) + text(draw, 3) + "</think>" + draw.of(["", "\n\n", "\n"]) + text(draw, 3)
    if draw.chance(0.3):
        calls = [{"name": name(draw), "arguments": {name(draw): value(draw) for _ in range(draw.below(4))}} for _ in range(1 + draw.below(3))]
        message["tool_calls"] = [{"type": "function", "function": call} if draw.chance(0.8) else call for call in calls]
    return message


def conversation(draw):
    """Turns in the usual order, and sometimes in none."""
    turns = []
    if draw.chance(0.5):
        turns.append({"role": "system", "content": text(draw, 6)})
    for _ in range(draw.below(5)):
        user = text(draw, 8)
        if draw.chance(0.1):
            user = [{"type": "text", "text": text(draw, 3)} for _ in range(draw.below(4))]
        elif draw.chance(0.05):
            user = draw.of(["tool_response", "<tool_response>"]) + user
        turns.append({"role": "user", "content": user})
        for _ in range(draw.below(3)):
            turns.append(said(draw))
            turns.extend({"role": "tool", "content": text(draw, 4)} for _ in range(draw.below(3) if "tool_calls" in turns[-1] else 0))
    if draw.chance(0.08) and turns:
        turns.insert(draw.below(len(turns)), {"role": draw.of(["system", "tool", "user", "critic"]), "content": text(draw, 3)})
    whole = {"messages": turns, "add_generation_prompt": draw.chance(0.8)}
    if draw.chance(0.4):
        whole["tools"] = draw.some(3, lambda: tool(draw))
    if draw.chance(0.6):
        whole["enable_thinking"] = draw.chance(0.5)
    return whole


if __name__ == "__main__":
    source = Source(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for _ in range(10):
        print(json.dumps(text(source), ensure_ascii=True))
    print(json.dumps(conversation(source), ensure_ascii=True))
