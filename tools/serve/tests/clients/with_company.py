"""Checks that no request notices the others: many clients at once, with seeds, who come and go at random. Each text, and each likelihood, is what a lone request
has had. Once with the model mapped, and once with most of its experts outside memory.

    python3 tools/serve/tests/clients/with_company.py target/release/yuan [REQUESTS [CLIENTS]]
"""

import json
import random
import sys
import threading
import time

from plain import ask, connect, counters, events
from server import serve

HEADERS = ["Psalms 3:1-4", "Genesis 6:1-3", "Proverbs 32:1-5", "春日山中 李白", "秋夜 杜甫", "送友人归江南 王维"]
BEGINNINGS = ["And it came to pass", "The LORD is", "Thus saith", "白日", "山中", "明月"]
ENDINGS = [" the heaven and the earth.", " in the days of the king", "依山尽，黄河入海流。", " bread."]
# With few of the demo model's 64 experts in memory.
WAYS = {"mapped": ["--paging", "mapped"], "streamed": ["--paging", "streamed", "--memory", "142M"]}


def request(number):
    """The address and the body of a request: the same for the same number."""
    chance = random.Random(number)
    header, beginning = chance.choice(HEADERS), chance.choice(BEGINNINGS)
    kind = chance.randrange(10)
    if kind < 2:
        contexts = [f"{header}<sep>{beginning}" + chance.choice(["", " "]) for _ in range(2)]
        prompts = [context + ending for context in contexts for ending in chance.sample(ENDINGS, 2)]
        return "/v1/completions", {"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    sampler = {
        "temperature": chance.choice([0, 0.7, 1.0, 1.5]), "top_p": chance.choice([1, 0.9]), "top_k": chance.choice([0, 40]),
        "seed": number, "max_tokens": chance.randrange(1, 48), "repetition_penalty": chance.choice([1, 1.2]),
    }  # fmt: skip
    if kind < 6:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": header}], **sampler}
    # Some begin alike for longer than a snapshot is apart.
    long = f"{header}<sep>" + " ".join([beginning] * chance.choice([1, 1, 30]))
    return "/v1/completions", {"prompt": long, "logprobs": chance.choice([None, 2]), "n": chance.choice([1, 1, 2]), **sampler}


def essence(reply):
    """What must be the same: texts, likelihoods, and why they have ended."""
    return [(c.get("text", c.get("message", {}).get("content")), c.get("logprobs"), c["finish_reason"]) for c in reply["choices"]]


def alone(address, count):
    return [essence(ask(address, *request(number))) for number in range(count)]


def streamed(address, path, body, leaves=None):
    """The same from a stream; who `leaves` goes away after so many chunks."""
    connection = connect(address)
    try:
        connection.request("POST", path, json.dumps({**body, "stream": True}), {"content-type": "application/json"})
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
        choices = {}
        for seen, chunk in enumerate(events(reply)):
            if seen == leaves:
                return None
            for choice in chunk["choices"]:
                text, logprobs, finish = choices.get(choice["index"], ("", None, None))
                text += choice.get("text", choice.get("delta", {}).get("content")) or ""
                if more := choice.get("logprobs"):
                    logprobs = {key: (logprobs or {}).get(key, []) + more[key] for key in more}
                choices[choice["index"]] = (text, logprobs, choice["finish_reason"] or finish)
        return [choices[index] for index in sorted(choices)]
    finally:
        connection.close()


def together(address, count, clients, wanted):
    """Every request once, by clients who take them in any order, rest at random, and sometimes begin another one and leave it."""
    numbers = list(range(count))
    random.Random(count).shuffle(numbers)
    lock, wrong, left = threading.Lock(), [], [0]

    def client(which):
        chance = random.Random(which)
        time.sleep(chance.random())
        while True:
            with lock:
                if not numbers or wrong:
                    return
                number = numbers.pop()
            path, body = request(number)
            try:
                if chance.random() < 0.2:
                    with lock:
                        left[0] += 1
                    streamed(address, *request(count + number), leaves=chance.randrange(8))
                if chance.random() < 0.5:
                    found = streamed(address, path, body)
                else:
                    found = essence(ask(address, path, body))
            except Exception as error:
                found = error
            if found != wanted[number]:
                with lock:
                    wrong.append((path, body, found, wanted[number]))
            if chance.random() < 0.1:
                time.sleep(chance.random() / 2)

    threads = [threading.Thread(target=client, args=(which,)) for which in range(clients)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong, f"{len(wrong)} are not the same: {wrong[0]}"
    return left[0]


def main():
    program, count, clients = sys.argv[1], int((sys.argv[2:] or ["96"])[0]), int((sys.argv[3:] or ["32"])[0])
    with serve(program, "--sequences", "1") as address:
        wanted = alone(address, count)
    likelihoods = sum(request(number)[1].get("echo", False) for number in range(count))
    for way, options in WAYS.items():
        with serve(program, *options, "--queue", "1000") as address:
            began = time.monotonic()
            left = together(address, count, clients, wanted)
            found = counters(address)
        passes = found["yuan_pass_sequences_total"] / found["yuan_passes_total"]
        print(
            f"{way}: {count} requests of {clients} clients, {likelihoods} of them likelihoods, {left} more that left: all as alone. "
            f"{time.monotonic() - began:.0f} s, {passes:.1f} sequences a pass, {found['yuan_expert_bytes_read_total'] / 1e6:.0f} MB of experts read"
        )


if __name__ == "__main__":
    main()
