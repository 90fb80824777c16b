"""Checks `yuan serve` with the client that people use: the package `openai`, and requests as lm-evaluation-harness writes them.

    python3 -m pip install --target target/clients openai
    PYTHONPATH=target/clients python3 tools/serve/tests/clients/check.py target/release/yuan
"""

import json
import math
import sys
import threading
from typing import Literal

import openai
import pydantic

from server import run, serve

QUESTIONS = ["Psalms 3:1", "春日山中 李白"]


def chat(client):
    for question in QUESTIONS:
        asked = dict(model="demo", messages=[{"role": "user", "content": question}], max_tokens=40, seed=7)
        reply = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
        choice = reply.choices[0]
        assert choice.message.role == "assistant" and choice.message.content, reply
        assert choice.finish_reason in ("stop", "length"), reply
        assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content), reply
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        text, usage = "", None
        for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
        assert text == choice.message.content, "a streamed answer is another one"
        # The second time the prompt may have been there.
        assert (usage.prompt_tokens, usage.completion_tokens) == (reply.usage.prompt_tokens, reply.usage.completion_tokens)


def at_once(client):
    """Answers do not depend on who else is asking."""

    def ask(seed):
        asked = [{"role": "user", "content": QUESTIONS[seed % 2]}]
        return client.chat.completions.create(model="m", messages=asked, max_tokens=24, seed=seed).choices[0].message.content

    alone = [ask(seed) for seed in range(16)]
    together = [None] * 16

    def put(seed):
        together[seed] = ask(seed)

    threads = [threading.Thread(target=put, args=(seed,)) for seed in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert together == alone, (alone, together)


def likelihoods(client):
    """Requests and reading of `local-completions` of lm-evaluation-harness."""
    tokenize = lambda text: client.post("/tokenize", body={"prompt": text, "add_special_tokens": False}, cast_to=object)["tokens"]
    info = client.get("/tokenizer_info", cast_to=object)
    assert len(tokenize(info["eos_token"])) == 1, info
    contexts = ["In the beginning God created", "白日依山盡"]
    endings = [" the heaven and the earth.", "，黃河入海流"]
    rows, lengths = [], []
    for context, ending in zip(contexts, endings):
        lengths.append(len(tokenize(context)))
        rows.append(tokenize(context + ending))
    reply = client.completions.create(
        model="demo", prompt=rows, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    sums = []
    for choice, row, length in zip(sorted(reply.choices, key=lambda c: c.index), rows, lengths):
        tokens, top = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
        assert len(tokens) == len(top) == len(row) + 1, (len(tokens), len(row))
        assert tokens[0] is None and all(math.isfinite(x) and x <= 0 for x in tokens[1:])
        assert all(value <= max(best.values()) for value, best in zip(tokens[1:], top[1:]))
        assert tokens[-1] == max(top[-1].values()), "the token behind the prompt is the best"
        sums.append(sum(tokens[length:-1]))
    # The same, one at a time, as texts.
    for context, ending, length, wanted in zip(contexts, endings, lengths, sums):
        reply = client.completions.create(model="demo", prompt=context + ending, temperature=0, max_tokens=1, logprobs=1, echo=True)
        assert sum(reply.choices[0].logprobs.token_logprobs[length:-1]) == wanted
    generated = client.completions.create(model="demo", prompt="The LORD", max_tokens=20, temperature=0, stop=["a", "b", "c", "d", "\n"])
    assert not set("abcd\n") & set(generated.choices[0].text), generated


def structured(client):
    """What pydantic's users do, without pydantic's models: a schema, and calls of functions."""
    schema = {
        "type": "object", "additionalProperties": False, "required": ["poet", "year"],
        "properties": {"poet": {"type": "string", "maxLength": 8}, "year": {"type": "integer", "minimum": 600, "maximum": 999}},
    }
    asked = dict(model="demo", messages=[{"role": "user", "content": QUESTIONS[1]}], max_tokens=200)
    form = {"type": "json_schema", "json_schema": {"name": "poem", "schema": schema, "strict": True}}
    for seed in range(4):
        reply = client.chat.completions.create(**asked, seed=seed, response_format=form)
        found = json.loads(reply.choices[0].message.content)
        assert set(found) == {"poet", "year"} and 600 <= found["year"] <= 999, found

    class Poem(pydantic.BaseModel):
        title: str = pydantic.Field(max_length=10)
        lines: list[Literal["春", "夏"]] = pydantic.Field(min_length=1, max_length=2)

    poem = client.chat.completions.parse(**asked, seed=1, response_format=Poem).choices[0].message.parsed
    assert isinstance(poem, Poem), poem
    try:
        client.chat.completions.create(**asked, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}})
        raise AssertionError("a schema that is none was accepted")
    except openai.BadRequestError as error:
        assert error.param == "response_format", error


def tools(client):
    function = {
        "name": "weather", "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["长安", "Lhasa"]}}, "required": ["city"], "additionalProperties": False},
    }
    messages = [{"role": "user", "content": "How is the weather?"}]
    asked = dict(model="demo", tools=[{"type": "function", "function": function}], max_tokens=200, parallel_tool_calls=False, seed=3)
    choice = client.chat.completions.create(**asked, messages=messages, tool_choice="required").choices[0]
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("长安", "Lhasa")
    with client.chat.completions.stream(**asked, messages=messages, tool_choice="required") as stream:
        for _event in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    # The call and its result are read, and what follows may be text.
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
    reply = client.chat.completions.create(**asked, messages=messages).choices[0]
    assert reply.message.content or reply.message.tool_calls, reply


def others(client):
    assert [model.id for model in client.models.list()] != []
    texts = ["The LORD is my shepherd", "床前明月光"]
    # By default the client asks for base64.
    coded = client.embeddings.create(model="demo", input=texts)
    plain = client.embeddings.create(model="demo", input=texts, encoding_format="float")
    for a, b in zip(coded.data, plain.data):
        assert max(abs(x - y) for x, y in zip(a.embedding, b.embedding, strict=True)) < 1e-6
        assert abs(sum(x * x for x in b.embedding) - 1) < 1e-5


def refused(client):
    try:
        client.completions.create(model="demo", prompt=[3] * 100_000)
        raise AssertionError("a prompt beyond the context was accepted")
    except openai.APIStatusError as error:
        assert (error.status_code, error.code) == (413, "context_length_exceeded"), error
    wrong = [
        dict(messages=[]),
        dict(messages=[{"role": "user", "content": "a"}], temperature=-1),
        dict(messages=[{"role": "user", "content": "a"}], n=0),
    ]
    for request in wrong:
        try:
            client.chat.completions.create(model="demo", **request)
        except openai.BadRequestError as error:
            assert error.body["message"], error
        else:
            raise AssertionError(f"accepted: {str(request)[:200]}")
    try:
        client.get("/nothing/here", cast_to=object)
    except openai.NotFoundError:
        return
    raise AssertionError("an address that is none was accepted")


def main():
    with serve(sys.argv[1]) as address:
        # The client's own repetitions would hide a refusal.
        client = openai.OpenAI(base_url=address + "/v1", api_key="none", max_retries=0)
        root = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        run([(chat, client), (at_once, client), (structured, client), (tools, client), (others, client), (likelihoods, root), (refused, client)])


if __name__ == "__main__":
    main()
