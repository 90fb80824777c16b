"""Checks `yuan serve` with lm-evaluation-harness, on the local tasks of tools/eval. Nothing is fetched from anywhere.

    python3 -m pip install --target target/lm_eval "lm_eval[api]"
    PYTHONPATH=target/lm_eval python3 tools/serve/tests/clients/with_lm_eval.py target/release/yuan
"""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[4]
# Lists whose likelihoods are compared with `yuan logits`, and texts with `yuan generate`.
COMPARED = 12
UNTIL = ["<eod>", ".", "。"]


class Client:
    """The server, the harness, and the container that both the server and `yuan logits` read."""

    def __init__(self, program, address, model, harness, tasks):
        self.program, self.address, self.model, self.harness, self.tasks = program, address, model, harness, tasks

    def run(self, model, task, batch=1, chat=False, **more):
        """What the harness has found: its figures, and a sample for each question."""
        path = "/v1/chat/completions" if model == "local-chat-completions" else "/v1/completions"
        args = {"base_url": self.address + path, "model": "demo", "max_retries": 1, **more}
        # Its bars of progress.
        with contextlib.redirect_stderr(io.StringIO()):
            found = self.harness.simple_evaluate(
                model=model, model_args=args, tasks=[task], task_manager=self.tasks, batch_size=batch, apply_chat_template=chat,
                bootstrap_iters=0, random_seed=None, numpy_random_seed=None, torch_random_seed=None,
            )  # fmt: skip
        return found["results"][task], sorted(found["samples"][task], key=lambda sample: sample["doc_id"])

    def counter(self, name):
        with urllib.request.urlopen(self.address + "/metrics") as reply:
            lines = reply.read().decode().splitlines()
        return next(int(float(line.split(" ")[1])) for line in lines if line.startswith(name + " "))

    def ids(self, text):
        body = json.dumps({"prompt": text, "add_special_tokens": False}).encode()
        request = urllib.request.Request(self.address + "/tokenize", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["tokens"]

    def logits(self, ids):
        import numpy

        with tempfile.TemporaryDirectory() as folder:
            output = folder + "/logits.npy"
            tokens = ",".join(map(str, ids))
            subprocess.run([self.program, "logits", self.model, "--tokens", tokens, "--output", output], check=True)
            return numpy.load(output).astype(numpy.float64)


def asked(sample, choice):
    """What the harness has asked for."""
    asked = sample["arguments"][f"gen_args_{choice}"] if isinstance(sample["arguments"], dict) else sample["arguments"][choice]
    return (asked["arg_0"], asked["arg_1"]) if isinstance(asked, dict) else tuple(asked)


def answers(samples):
    """For each question, the likelihood of each choice, and whether it is what the model would have said."""
    return [[tuple(resp[0]) for resp in sample["resps"]] for sample in samples]


def choices(client):
    """Token ids, all choices of all questions in one request: what they have in common is computed once."""
    names = ["yuan_pass_tokens_total", "yuan_prompt_tokens_total", "yuan_prompt_tokens_cached_total"]
    before = [client.counter(name) for name in names]
    figures, samples = client.run("local-completions", "yuan_heldout", 256, tokenizer_backend="remote")
    run, whole, cached = (client.counter(name) - had for name, had in zip(names, before))
    lists = [client.ids("".join(asked(sample, i))) for sample in samples for i in range(4)]
    different = {tuple(ids[:n]) for ids in lists for n in range(1, len(ids) + 1)}
    assert len(lists) == 4 * len(samples) and sum(map(len, lists)) == whole, (len(lists), whole)
    # The last token before two choices part is run for each of them. A few beginnings are the same in different questions, which do not wait.
    most = len(different) + len(lists) + 4 * len(samples)
    assert run <= most < 0.6 * whole and cached == whole - run, (run, most, whole, cached)
    assert figures["acc,none"] > 0.5, figures
    print(f"{whole} tokens of prompts, {len(different)} of them different, {run} run; accuracy {figures['acc,none']}")
    client.choices = samples


def other_ways(client):
    """One at a time, eight at once, and as texts: the same figures."""
    remote = dict(model="local-completions", task="yuan_heldout", tokenizer_backend="remote")
    for more in [dict(batch=1), dict(batch=7, num_concurrent=8), dict(batch=5, tokenized_requests=False)]:
        _, samples = client.run(**remote, **more)
        assert answers(samples) == answers(client.choices), more


def logits(client):
    """The likelihoods are those of `yuan logits`."""
    import numpy

    worst = 0
    for sample in client.choices[:: max(1, len(client.choices) // COMPARED)]:
        number = sample["doc_id"] % 4
        context, ending = asked(sample, number)
        ids, start = client.ids(context + ending), len(client.ids(context))
        rows = client.logits(ids)
        top = rows.max(axis=1, keepdims=True)
        logprobs = rows - top - numpy.log(numpy.exp(rows - top).sum(axis=1, keepdims=True))
        places = range(start, len(ids))
        wanted = sum(logprobs[i - 1, ids[i]] for i in places)
        found, greedy = sample["resps"][number][0]
        # The harness adds the numbers up; each of them is within 1e-5.
        worst = max(worst, abs(found - wanted) / len(places))
        assert greedy == all(rows[i - 1].argmax() == ids[i] for i in places), sample
    assert worst < 1e-5, worst
    print(f"likelihoods of a token differ by {worst:.1e} at most")


def texts(client):
    """Continuations are those of `yuan generate`."""
    _, samples = client.run("local-completions", "yuan_heldout_text", 4, tokenizer_backend="remote")
    _, plain = client.run("local-completions", "yuan_heldout_text", tokenizer_backend="remote", tokenized_requests=False, num_concurrent=8)
    assert [s["resps"] for s in samples] == [s["resps"] for s in plain]
    for sample in samples[:: max(1, len(samples) // COMPARED)]:
        command = [client.program, "generate", client.model, "--prompt", asked(sample, 0)[0], "--tokens", "24"]
        command += [part for text in UNTIL for part in ("--stop", text)]
        wanted = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
        assert sample["resps"][0][0].strip() == wanted.strip(), (sample, wanted)
    assert sum(bool(sample["resps"][0][0].strip()) for sample in samples) > len(samples) // 2


def chat(client):
    """Questions of a chat."""
    _, samples = client.run("local-chat-completions", "yuan_heldout_text", chat=True, num_concurrent=4)
    found = [sample["resps"][0][0] for sample in samples]
    assert sum(bool(text.strip()) for text in found) > len(found) // 2, found
    assert not any(end in text for text in found for end in UNTIL), found
    _, again = client.run("local-chat-completions", "yuan_heldout_text", chat=True)
    assert [sample["resps"][0][0] for sample in again] == found


def authors(client):
    """The authors' way of asking, on questions and a script that are made like theirs."""
    with tempfile.TemporaryDirectory() as folder:
        data, scripts = pathlib.Path(folder, "datasets/GSM8K"), pathlib.Path(folder, "tasks/GSM8K")
        data.mkdir(parents=True), scripts.mkdir(parents=True)
        (data / "gsm8k.txt").write_text("Psalms 3:1-2[SEP]one\n春日山中<n>李白[SEP]two\n", encoding="utf-8")
        (scripts / "eval_for_gsm8k.py").write_text("def f():\n    prompt = '''Genesis 1:1<n>'''\n    other = 'no'\n", encoding="utf-8")
        command = [sys.executable, "tools/eval/authors.py", folder, "gsm8k", "--output", folder + "/out", "--url", client.address]
        for questions in ("1", "2"):
            subprocess.run([*command, "--first", questions], check=True, stdout=subprocess.DEVNULL)
        lines = pathlib.Path(folder, "out/samples_0.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line.partition("[SEP]")[0] for line in lines] == ["Genesis 1:1<n>Psalms 3:1-2", "Genesis 1:1<n>春日山中<n>李白"], lines
    for line, prompt in zip(lines, ("Genesis 1:1\nPsalms 3:1-2<sep>", "Genesis 1:1\n春日山中\n李白<sep>")):
        command = [client.program, "generate", client.model, "--prompt", prompt, "--tokens", "1000", "--json"]
        wanted = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout)
        found, text = line.partition("[SEP]")[2], wanted["text"].strip().replace("\n", "<n>")
        # An answer that does not end by itself goes on to the end of the server's context, behind these thousand tokens.
        assert found.startswith(text) if wanted["finish"] == "length" else found == text, (found, wanted)


def main():
    program = os.path.abspath(sys.argv[1])
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        # Before the harness is there: it reads them once.
        os.environ.update(XDG_CACHE_HOME=folder, HF_HOME=folder, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1")
        from server import run, serve

        import lm_eval
        import lm_eval.tasks

        tasks = lm_eval.tasks.TaskManager(include_path=str(ROOT / "tools/eval/tasks"), include_defaults=False)
        with serve(program) as address:
            [model] = pathlib.Path(folder).glob("**/*.gguf")
            client = Client(program, address, model, lm_eval, tasks)
            run([(check, client) for check in (choices, other_ways, logits, texts, chat, authors)])


if __name__ == "__main__":
    main()
