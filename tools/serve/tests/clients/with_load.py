"""Checks `yuan serve` under load, and when things go wrong: many clients for a time, clients that go away and that do not read, a model file that is cut off, and
the end by SIGTERM.

    python3 tools/serve/tests/clients/with_load.py target/release/yuan [SECONDS [DISCONNECTS]]
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

from plain import ask, connect, counters, events, post
from server import address, serve

CHAT = "/v1/chat/completions"
CLIENTS = 64
TEXTS = ["Psalms 3:1-4", "Genesis 6:1-3", "春日山中 李白", "秋夜 杜甫", "Proverbs 32:1-5"]


class Server:
    """A server and its process."""

    def __init__(self, program, *options):
        command = [program, "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        self.address = address(self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0

    def resident(self):
        """MiB of memory that are the process's own: pages of files can be dropped."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024

    def is_idle(self):
        found = counters(self.address)
        held = found["yuan_kv_pages"] - found["yuan_kv_pages_kept"]
        return (found["yuan_requests"], found["yuan_sequences_running"], found["yuan_kv_sequences"], held) == (0, 0, 0, 0)

    def wait_until_idle(self):
        """Nothing is left of any request but pages for those who begin alike."""
        while not self.is_idle():
            time.sleep(0.05)


def question(chance):
    messages = [{"role": "user", "content": chance.choice(TEXTS)}]
    for _ in range(chance.randrange(3)):
        messages += [{"role": "assistant", "content": "And he said unto them."}, {"role": "user", "content": chance.choice(TEXTS)}]
    return {"messages": messages, "max_tokens": chance.randrange(4, 64), "seed": chance.randrange(1000), "temperature": 0.8}


def load(program, seconds, interval):
    """Clients without a pause: no reply but 200 and 429, and no memory that grows."""
    counts, lock, end = {}, threading.Lock(), time.monotonic() + seconds

    def client(which):
        chance = random.Random(which)
        while time.monotonic() < end:
            status, headers, body = post(server.address, CHAT, question(chance))
            if status == 429:
                time.sleep(min(int(headers["retry-after"]), 1) * chance.random())
            with lock:
                counts[status] = counts.get(status, 0) + 1
            if status not in (200, 429):
                print(status, body[:500])

    # Pages of earlier answers stay as long as there is room for them: with little, that is used up soon.
    with Server(program, "--demo", "--queue", "32", "--memory", "145M", "--paging", "mapped") as server:
        threads = [threading.Thread(target=client, args=(which,)) for which in range(CLIENTS)]
        [thread.start() for thread in threads]
        memory = []
        while time.monotonic() < end:
            time.sleep(max(0, min(interval, end - time.monotonic())))
            memory.append(server.resident())
        [thread.join() for thread in threads]
        server.wait_until_idle()
        found = counters(server.address)
    assert set(counts) <= {200, 429} and counts.get(200, 0) > CLIENTS, counts
    # What is there after a half: buffers, and all pages that there is room for.
    half = memory[len(memory) // 2]
    assert max(memory[len(memory) // 2 :]) <= 1.05 * half + 2, memory
    tokens = found["yuan_tokens_predicted_total"]
    print(
        f"load: {CLIENTS} clients for {seconds} s: {counts[200]} answers, {tokens / seconds:.0f} tokens a second, {counts.get(429, 0)} times 429; "
        f"MiB of memory every {interval:.0f} s: {', '.join(f'{m:.1f}' for m in memory)}"
    )


def disconnects(program, count):
    """Clients that go away at any time leave nothing behind."""

    def client(which):
        chance = random.Random(which)
        for _ in range(count // 16 + 1):
            connection = connect(server.address)
            body = {**question(chance), "stream": chance.random() < 0.7, "max_tokens": 900, "ignore_eos": True, "n": chance.choice([1, 1, 3])}
            try:
                connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})
                if body["stream"] and chance.random() < 0.8:
                    connection.getresponse().read(chance.randrange(1, 4000))
                else:
                    time.sleep(chance.random() / 20)
            finally:
                connection.close()

    with Server(program, "--demo", "--queue", "64") as server:
        threads = [threading.Thread(target=client, args=(which,)) for which in range(16)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        server.wait_until_idle()
        ask(server.address, CHAT, question(random.Random(0)))
        print(f"disconnects: {16 * (count // 16 + 1)}, and no page or sequence is left")


def slow_readers(program):
    """Who does not read is cut off, and others are served meanwhile."""
    body = {"messages": [{"role": "user", "content": TEXTS[0]}], "n": 8, "max_tokens": 900, "ignore_eos": True, "stream": True}
    body.update(logprobs=True, top_logprobs=20)
    with Server(program, "--demo", "--timeout", "1") as server:
        place = urllib.parse.urlsplit(server.address)
        sockets = []
        for _ in range(4):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect((place.hostname, place.port))
            data = json.dumps(body).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
            one.sendall(head.encode() + data)
            sockets.append(one)
        ask(server.address, CHAT, question(random.Random(0)))
        server.wait_until_idle()
        produced = counters(server.address)["yuan_tokens_predicted_total"]
        assert produced < 4 * 8 * 900, produced
        [one.close() for one in sockets]
        print(f"slow readers: 4 cut off after {produced:.0f} tokens of {4 * 8 * 900}")


def cut_off(program, container):
    """A model file that is cut off is an error of the requests, and no more."""
    with tempfile.TemporaryDirectory() as folder:
        file = shutil.copy(container, folder)
        with Server(program, file, "--paging", "mapped") as server:
            ask(server.address, CHAT, question(random.Random(0)))
            os.truncate(file, 100_000)
            chance, statuses = random.Random(1), set()
            for _ in range(12):
                status, _, reply = post(server.address, CHAT, question(chance))
                statuses.add(status)
                if status != 200:
                    assert json.loads(reply)["error"]["message"], reply
            assert 500 in statuses and statuses <= {200, 500}, statuses
            with urllib.request.urlopen(server.address + "/health") as reply:
                assert reply.status == 200
            server.wait_until_idle()
    print(f"a model file cut off: replies {sorted(statuses)}, and the server lives")


def drains(program):
    """SIGTERM: what runs is ended, what comes is refused."""
    body = {"messages": [{"role": "user", "content": TEXTS[0]}], "max_tokens": 400, "ignore_eos": True, "seed": 1}
    with Server(program, "--demo") as server:
        wanted = ask(server.address, CHAT, body)["choices"][0]["message"]["content"]
    server = Server(program, "--demo")
    connection = connect(server.address)
    connection.request("POST", CHAT, json.dumps({**body, "stream": True}), {"content-type": "application/json"})
    chunks = events(connection.getresponse())
    text = next(chunks)["choices"][0]["delta"].get("content") or ""
    server.process.send_signal(signal.SIGTERM)
    try:
        # The signal takes a moment to arrive.
        while (status := post(server.address, CHAT, {**body, "max_tokens": 1})[0]) == 200:
            pass
        assert status == 503, status
    except OSError:
        pass  # It does not listen any more.
    text += "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert text == wanted, (text, wanted)
    assert server.process.wait(60) == 0
    print("SIGTERM: the answer that ran was ended, and the next one refused")


def main():
    program, seconds, count = sys.argv[1], int((sys.argv[2:] or ["16"])[0]), int((sys.argv[3:] or ["100"])[0])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        with serve(program):
            [container] = pathlib.Path(folder).glob("**/*.gguf")
        load(program, seconds, max(1, min(60, seconds / 8)))
        disconnects(program, count)
        slow_readers(program)
        cut_off(program, container)
        drains(program)


if __name__ == "__main__":
    main()
