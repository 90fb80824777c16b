"""What a short answer waits for beside long prompts: the times between its tokens while eight prompts of 4096 are read, against one piece of a prompt and one token alone.

    python3 tools/serve/tests/clients/fairness.py target/release/yuan yuan.gguf [--prompts 8] [--length 4096] [-- OPTIONS OF THE SERVER]

Times are of the client, in ms. The pieces are those that the server tells of (`return_progress`) while one such prompt is read alone.
"""

import argparse
import json
import random
import subprocess
import threading
import time

from plain import connect, events
from server import address

SHORT, MOST = 16, 4096


def ids(seed, length):
    chosen = random.Random(seed)
    return [chosen.randrange(100, 4000) for _ in range(length)]


def stream(place, prompt, most, seen=lambda: None, until=lambda: False, **fields):
    """The chunks of an answer, with the time of each."""
    connection = connect(place)
    body = {"prompt": prompt, "max_tokens": most, "ignore_eos": True, "stream": True, "temperature": 0, **fields}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    found = []
    for chunk in events(connection.getresponse()):
        found.append((time.monotonic(), chunk))
        seen()
        if until():
            break
    connection.close()
    return found


def at(values, share):
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def between(times):
    return [(b - a) * 1e3 for a, b in zip(times, times[1:])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("options", nargs="*", help="of the server, behind --")
    args = parser.parse_args()
    context = max(args.length + 64, SHORT + MOST)
    command = [args.program, "serve", args.model, "--port", "0", "--context", str(context), "--sequences", str(args.prompts + 1)]
    server = subprocess.Popen([*command, *args.options], stderr=subprocess.PIPE, text=True, encoding="utf-8")
    place = address(server)

    alone = [t for t, chunk in stream(place, ids(0, SHORT), 64) if chunk["choices"]]
    token = between(alone)
    read = [chunk["prompt_progress"] for _, chunk in stream(place, ids(1, args.length), 1, return_progress=True) if "prompt_progress" in chunk]
    done = [0.0] + [progress["time_ms"] for progress in read]
    pieces = [b - a for a, b in zip(done, done[1:])]
    bound = at(pieces, 0.95) + at(token, 0.95)
    print(f"alone: a token {at(token, 0.5):.1f} ms (p95 {at(token, 0.95):.1f}), a piece of a prompt {at(pieces, 0.5):.0f} ms (p95 {at(pieces, 0.95):.0f})")

    # The answer runs before the prompts come and until they are read.
    running, ended, begun = threading.Event(), threading.Event(), []
    answer = []
    short = threading.Thread(
        target=lambda: answer.extend(stream(place, ids(2, SHORT), MOST, running.set, ended.is_set)),
    )
    short.start()
    running.wait()
    begun.append(time.monotonic())
    long = [threading.Thread(target=stream, args=(place, ids(10 + which, args.length), 1)) for which in range(args.prompts)]
    [thread.start() for thread in long]
    [thread.join() for thread in long]
    begun.append(time.monotonic())
    ended.set()
    short.join()
    server.terminate()
    server.wait()
    times = [t for t, chunk in answer if chunk["choices"] and begun[0] <= t <= begun[1]]
    waits = between(times)
    assert len(waits) > args.prompts, "the answer stood still"
    print(
        f"beside {args.prompts} prompts of {args.length}, which took {begun[1] - begun[0]:.1f} s: {len(waits)} tokens, "
        f"p50 {at(waits, 0.5):.0f} ms, p95 {at(waits, 0.95):.0f} ms, most {max(waits):.0f} ms; "
        f"p95 of a piece and a token together {bound:.0f} ms"
    )


if __name__ == "__main__":
    main()
