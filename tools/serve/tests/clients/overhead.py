"""What HTTP costs: the time to the first token and between tokens beside `yuan generate`, and eight clients beside `yuan bench --sequences 8` and llama-server.

    python3 tools/serve/tests/clients/overhead.py target/release/yuan yuan.gguf [--llama-server BINARY LLAMA.gguf] [--runs 3]

The sides of a comparison take turns. Times are of the client, in ms; it writes ids and reads a stream. All servers get the same ids. Tokens are the best ones, as in
`yuan bench`, or chosen of the 40 best by seeds, which is work beside the passes.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import threading
import time
import urllib.request

from plain import connect, counters, events
from server import address

PROMPT, ANSWER, CLIENTS = 64, 48, 8


class Yuan:
    def __init__(self, program, model):
        command = [program, "serve", model, "--port", "0", "--threads", "2", "--context", "1024"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        self.address = address(self.process)


class Llama:
    def __init__(self, program, model):
        self.address = "http://127.0.0.1:18466"
        command = [program, "-m", model, "--port", "18466", "-t", "2", "-tb", "2", "-np", str(CLIENTS), "-c", str(512 * CLIENTS)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            try:
                urllib.request.urlopen(self.address + "/health").close()
                return
            except OSError:
                assert self.process.poll() is None, "it has ended"
                time.sleep(0.2)


def close(server):
    server.process.terminate()
    server.process.wait()


GREEDY, CHANCE = {"temperature": 0}, {"temperature": 1, "top_k": 40}


def body(seed, choice):
    ids = [random.Random(seed).randrange(100, 4000) for _ in range(PROMPT)]
    return {"prompt": ids, "max_tokens": ANSWER, "seed": seed, "ignore_eos": True, "stream": True, **choice}


def stream(place, seed, choice):
    """When it was asked for, when each chunk came, and the number of tokens."""
    connection = connect(place)
    began, times, tokens = time.monotonic(), [], 0
    connection.request("POST", "/v1/completions", json.dumps(body(seed, choice)), {"content-type": "application/json"})
    for chunk in events(connection.getresponse()):
        if any(choice["text"] for choice in chunk["choices"]):
            times.append(time.monotonic())
        tokens = max(tokens, (chunk.get("timings") or {}).get("predicted_n", 0))
    connection.close()
    assert tokens == ANSWER and len(times) > ANSWER / 2, (tokens, len(times))
    return began, times, tokens


def lone(place, seed):
    """Time to the first token, and to each of the others on average."""
    began, times, tokens = stream(place, seed, CHANCE)
    return (times[0] - began) * 1e3, (times[-1] - times[0]) / (tokens - 1) * 1e3


def many(place, seed, choice):
    """Tokens a second while all run, and the 95th of a hundred times between chunks then."""
    found = [None] * CLIENTS

    def client(which):
        found[which] = stream(place, seed * 100 + which, choice)

    threads = [threading.Thread(target=client, args=(which,)) for which in range(CLIENTS)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    start, end = max(times[0] for _, times, _ in found), min(times[-1] for _, times, _ in found)
    # Where a character takes several tokens they come in one chunk.
    inside = sum(sum(start < t <= end for t in times) * tokens / len(times) for _, times, tokens in found)
    between = sorted(b - a for _, times, _ in found for a, b in zip(times, times[1:]) if start <= a and b <= end)
    return inside / (end - start), between[int(len(between) * 0.95)] * 1e3


def inside(server):
    """Seconds to first tokens and between tokens as the thread of a sequence has them, which calls the library, and their numbers."""
    found = counters(server.address)
    names = ["yuan_time_to_first_token_seconds", "yuan_time_between_tokens_seconds"]
    return [found[name + end] for name in names for end in ("_sum", "_count")]


def one_client(yuan, runs):
    rows = []
    for seed in range(runs):
        before = inside(yuan)
        first, between = lone(yuan.address, seed)
        first_sum, _, between_sum, count = (now - then for now, then in zip(inside(yuan), before))
        rows.append((first, first_sum * 1e3, between, between_sum / count * 1e3))
    median = [statistics.median(column) for column in zip(*rows)]
    print("one client: first token {:.2f} ms, of which the library {:.2f}; between tokens {:.3f} ms, the library {:.3f}".format(*median))


def bench(program, model):
    command = [program, "bench", model, "--threads", "2", "-p", str(PROMPT), "-n", str(ANSWER), "-r", "1", "--sequences", str(CLIENTS)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"together\s+([\d.]+) tok/s", said)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--llama-server", nargs=2, metavar=("BINARY", "MODEL"))
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    rows = {}

    def put(name, found):
        rows.setdefault(name, []).append(found)

    def eight(name, server, run):
        put(f"{name}, the best tokens", many(server.address, run + 1, GREEDY))
        put(f"{name}, of the 40 best", many(server.address, run + 1, CHANCE))
        close(server)

    for run in range(args.runs):
        yuan = Yuan(args.program, args.model)
        lone(yuan.address, 1000 + run)
        if run == 0:
            one_client(yuan, 5)
        eight("yuan serve", yuan, run)
        put("yuan bench", (bench(args.program, args.model), None))
        if args.llama_server:
            llama = Llama(*args.llama_server)
            lone(llama.address, 1000 + run)
            eight("llama-server", llama, run)
    for name, found in rows.items():
        rates, times = zip(*found)
        line = f"{CLIENTS} sequences, {name}: {statistics.median(rates):.1f} tokens a second ({min(rates):.1f} .. {max(rates):.1f})"
        print(line + (f", 95 % of times between tokens up to {statistics.median(times):.0f} ms" if times[0] else ""))


if __name__ == "__main__":
    main()
