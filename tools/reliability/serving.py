"""Has every call of `yuan serve` fail, one in each run, and asks it as if nothing were amiss.

    python3 tools/reliability/serving.py target/debug [--stride N] [--seconds S] [--kinds KIND,...]

The server is started, asked (an answer, a stream, a session that is saved and restored, figures), asked the same again, and ended by SIGTERM. A server that cannot start ends with
status 1 and a line that says why. One that has started outlives the fault: a request that meets it may fail, and the same request has its usual answer afterwards.
"""

import argparse
import collections
import http.client
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import random

import commands
from room import House, look
from shim import KINDS, PATIENCE, WAYS, name_of

BODY = {"prompt": "Psalms", "max_tokens": 6, "temperature": 1, "seed": 1, "ignore_eos": True}
REQUESTS = [
    ("GET", "/health", None),
    ("POST", "/v1/completions", BODY),
    ("POST", "/v1/completions", {**BODY, "stream": True}),
    ("POST", "/slots/0?action=save", {"filename": "a"}),
    ("POST", "/slots/0?action=restore", {"filename": "a"}),
    ("GET", "/v1/models", None),
    ("GET", "/metrics", None),
]
SERVE = commands.Command(
    "serve", ["yuan", "serve", "{inputs}/tiny.gguf", "--port", "0", "--sessions", "{work}/sessions"], before={}
)


def ask(port, method, path, body):
    """Status and text of a reply, or None where the connection was cut."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, TimeoutError):
            return 0, "no answer"
        return None
    finally:
        connection.close()


def essence(reply):
    """What is the same each time: of an answer its texts, of the rest the status."""
    if reply is None:
        return None
    status, text = reply
    return status, re.findall(r'"text":"((?:[^"\\]|\\.)*)"', text), "[DONE]" in text


class Server:
    """A running server, or one that has ended before it was asked anything."""

    def __init__(self, room, environment):
        (room.folder / "sessions").mkdir()
        self.child = subprocess.Popen(room.arguments, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.said, self.port = [], None
        self.is_known = threading.Event()
        self.reader = threading.Thread(target=self.listen, daemon=True)
        self.reader.start()
        if not self.is_known.wait(PATIENCE):
            self.child.kill()

    def listen(self):
        for line in self.child.stderr:
            self.said.append(line.decode(errors="replace"))
            if found := re.search(r"served at http://[\d.]+:(\d+)", self.said[-1]):
                self.port = int(found[1])
                self.is_known.set()
        self.is_known.set()

    def replies(self):
        return [essence(ask(self.port, *request)) for request in REQUESTS]

    def end(self):
        self.child.send_signal(signal.SIGTERM)
        try:
            status = self.child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            status = None
        self.reader.join(PATIENCE)
        return status, "".join(self.said)


def problems(room, shim, environment, expected, after):
    """What is wrong with a server that has met a fault, and whether it was one that has started."""
    server = Server(room, environment)
    if server.port is None:
        status, said = server.end()
        what = shim.seen()[2] or ""
        if what.split(" ")[1:2] == ["2"]:
            return [], "deaf"
        fine = status == 1 and any(line.startswith("error: ") for line in said.splitlines()) and "panicked" not in said
        return ([] if fine else [f"it ends at once with {status}: {said[-800:]}"]), "refused"
    found = []
    for _ in range(3):
        was_hit = shim.seen()[2] is not None
        replies = server.replies()
        for request, reply, usual in zip(REQUESTS, replies, expected):
            refused = reply is None or reply[0] >= 400 or reply[0] == 200 and reply != usual and not reply[2]
            if reply is not None and reply[0] == 0 or reply != usual and (was_hit or not refused):
                found.append(f"{request[1]} is answered {reply}, not {usual}")
        if replies == expected and shim.seen()[2] is not None:
            break
    now = look(room.folder)
    # What a saved session holds goes by which requests its slot took before; that it can be restored has been asked above.
    if now.keys() != after.keys() and not found:
        found.append(f"left: {sorted(set(now) ^ set(after))}")
    status, said = server.end()
    if status != 0 or "panicked" in said:
        found.append(f"it ends with {status}: {said[-800:]}")
    return found, "served"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=KINDS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        house = House(folder, asked.programs)
        room, shim = house.room(SERVE), house.shim
        environment = {**room.environment, **shim.environment()}
        shim.ask()
        room.empty()
        server = Server(room, environment)
        expected = server.replies()
        assert all(reply and reply[0] == 200 for reply in expected), expected
        after = look(room.folder)
        assert server.end()[0] == 0
        counts = shim.seen()[0]
        every = [
            (kind, number, how)
            for kind in asked.kinds
            for number in range(1, counts[kind] + 1)
            for way, how in enumerate(WAYS[kind])
            if (number + way) % asked.stride == 0
        ]
        random.Random(1).shuffle(every)
        until, seen, wrong = time.monotonic() + asked.seconds, collections.Counter(), []
        for kind, number, how in every:
            if time.monotonic() > until:
                break
            room.empty()
            shim.ask(kind, number, how)
            found, became = problems(room, shim, environment, expected, after)
            what = shim.seen()[2]
            seen[became if what else "missed"] += 1
            for problem in found:
                wrong.append(f"serve, {kind} {number} {name_of(how)} ({what}): {problem}")
                print(wrong[-1], flush=True)
        print(f"serve: {sum(seen.values())} faults, {dict(seen)}; calls: {counts}")
        print(f"{len(wrong)} wrong")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
