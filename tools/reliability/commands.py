"""The commands of `yuan` and `yuan-quant` that are tried, and what they need."""

import dataclasses
import subprocess

# What a killed or failed run may leave, with which the next one goes on.
CONVERSION = (".partial", ".journal")
PROMPT = "Psalms 3:1-4<sep>"
CHAT = "In the beginning\n/save {work}/talk.session\n春日山中\n/quit\n"


@dataclasses.dataclass
class Command:
    """A program's run in a folder of its own, `{work}`, beside `{inputs}`, which nobody may change."""

    name: str
    arguments: list
    given: str = ""
    # Whether standard output is the same in every run.
    repeats: bool = True
    # Whether what it cannot read is part of what it prints.
    tells: bool = False
    # Parts of names of files that a run that has failed may leave.
    resumes: tuple = ()
    # Files that it also writes as far as it has come, when it fails.
    partly: tuple = ()
    # Inputs that lie in the folder before, by the names they have there.
    before: dict = dataclasses.field(default_factory=dict)
    # Whether it asks the hub of this machine.
    hub: bool = False


def commands():
    """All of them but `yuan serve`, which serving.py has."""
    tiny = "{inputs}/tiny.gguf"
    quiet = ["--memory-speed", "50", "--drive-speed", "2"]
    # Which a saved session has, too.
    seed = ["--seed", "1"]
    convert = ["yuan-quant", "{inputs}/tiny", "-o", "{work}/out.gguf"]
    return [
        Command("generate", ["yuan", "generate", tiny, "-p", PROMPT, "-n", "8", "--temp", "1", *seed]),
        Command("streamed", ["yuan", "generate", tiny, "-p", PROMPT, "-n", "8", "--paging", "streamed"]),
        Command("from_file", ["yuan", "generate", tiny, "-f", "{inputs}/prompt.txt", "-n", "4", "--json-object"]),
        Command("from_input", ["yuan", "generate", tiny, "-f", "-", "-n", "4"], given="春日山中"),
        Command(
            "save",
            ["yuan", "generate", tiny, "-p", PROMPT, "-n", "8", *seed, "--save", "{work}/new.session"],
            partly=("new.session",),
        ),
        Command(
            "save_over",
            ["yuan", "generate", tiny, "-p", "Ruth", "-n", "8", *seed, "--save", "{work}/old.session"],
            before={"old.session": "old.session"},
            partly=("old.session",),
        ),
        Command("load", ["yuan", "generate", tiny, "--load", "{inputs}/old.session", "-n", "4", "--ignore-eod"]),
        Command("chat", ["yuan", "chat", tiny, "-n", "6", *seed, "--history", "{work}/history"], given=CHAT, partly=("talk.session",)),
        Command("tokenize", ["yuan", "tokenize", tiny, "春日山中 Psalms"]),
        Command("logits", ["yuan", "logits", tiny, "--tokens", "7,8,9", "-o", "{work}/logits.npy"]),
        Command("perplexity", ["yuan", "perplexity", tiny, "-f", "{inputs}/text.txt", "--against", "{inputs}/q3.gguf"]),
        Command(
            "compare",
            ["yuan", "compare", tiny, "{inputs}/q3.gguf", "-f", "{inputs}/text.txt", "--svg", "{work}/kl.svg", *quiet],
        ),
        Command("inspect", ["yuan", "inspect", tiny]),
        Command("bench", ["yuan", "bench", tiny, "-p", "16", "-n", "4", "-r", "1"], repeats=False),
        Command(
            "bench_trace",
            ["yuan", "bench", tiny, "-p", "16", "-n", "4", "-r", "1", "--trace", "{work}/a.trace"],
            repeats=False,
        ),
        Command("plan", ["yuan", "plan", tiny, "--json", "--memory", "1G", *quiet], repeats=False),
        Command("doctor", ["yuan", "doctor", tiny, "--quick"], repeats=False),
        Command("trace", ["yuan", "trace", tiny, "-p", PROMPT, "-n", "8", "-o", "{work}/a.trace"]),
        Command("replay", ["yuan", "replay", "{inputs}/a.trace", "--svg", "{work}/use.svg"]),
        Command("list", ["yuan", "list"], tells=True, before={"models/tiny.gguf": "tiny.gguf"}),
        Command("rm", ["yuan", "rm", "tiny"], before={"models/tiny.gguf": "tiny.gguf"}),
        Command("man", ["yuan", "man", "{work}/man"]),
        Command("completions", ["yuan", "completions", "bash"]),
        Command("demo", ["yuan", "demo", "--assets", "{assets}", "--cache", "{work}/kept", "-n", "2"], repeats=False, resumes=CONVERSION),
        Command("pull", ["yuan", "pull", "a/b", "--endpoint", "{hub}", "--rope-base", "10000"], resumes=("models/a--b.gguf.",), hub=True),
        Command("convert", convert, resumes=CONVERSION),
        Command("convert_over", convert, resumes=CONVERSION, before={"out.gguf": "q3.gguf"}),
        Command("importance", [*convert, "--importance", "{inputs}/importance.gguf"], resumes=CONVERSION),
        Command("requantize", ["yuan-quant", "{inputs}/standard.gguf", "-o", "{work}/out.gguf"], resumes=CONVERSION),
        Command("size", [*convert, "--size", "5100000"], resumes=CONVERSION),
        Command("dry_run", [*convert[:2], "--dry-run"]),
        Command("verify", ["yuan-quant", "verify", tiny]),
        Command("export", ["yuan-quant", "export", tiny, "-o", "{work}/standard.gguf"], resumes=CONVERSION),
        Command(
            "calibrate",
            ["yuan-quant", "calibrate", tiny, "--text", "{inputs}/text.txt", "--hessians", "layer", "-o", "{work}/i.gguf"],
            resumes=("i.gguf.partial",),
        ),
        Command("synth", ["yuan-quant", "synth", "--geometry", "tiny", "-o", "{work}/new.gguf"], resumes=CONVERSION),
        Command("synth_folder", ["yuan-quant", "synth", "--geometry", "tiny", "-o", "{work}/new"]),
    ]


def prepare(programs, inputs, assets):
    """Makes the inputs of all commands in the folder `inputs`."""

    def quant(*arguments):
        subprocess.run([programs / "yuan-quant", *arguments], check=True, capture_output=True)

    def yuan(*arguments):
        subprocess.run([programs / "yuan", *arguments], check=True, capture_output=True)

    tiny = inputs / "tiny.gguf"
    heldout = (assets / "heldout.txt").read_text(encoding="utf-8")
    (inputs / "text.txt").write_text(heldout[:700], encoding="utf-8")
    (inputs / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    quant("synth", "--geometry", "tiny", "--layers", "2", "-o", inputs / "tiny")
    quant(inputs / "tiny", "-o", tiny)
    quant(inputs / "tiny", "-o", inputs / "q3.gguf", "--experts", "q3_k")
    quant("export", tiny, "-o", inputs / "standard.gguf")
    quant("calibrate", tiny, "--text", inputs / "text.txt", "-o", inputs / "importance.gguf")
    yuan("trace", tiny, "-p", PROMPT, "-n", "8", "-o", inputs / "a.trace")
    yuan("generate", tiny, "-p", PROMPT, "-n", "8", "--save", inputs / "old.session")
