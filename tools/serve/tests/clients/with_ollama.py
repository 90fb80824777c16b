"""Checks `yuan serve` with the package `ollama`.

    python3 -m pip install --target target/clients ollama
    PYTHONPATH=target/clients python3 tools/serve/tests/clients/with_ollama.py target/release/yuan
"""

import sys
from typing import Literal

import ollama
import pydantic

from server import run, serve

QUESTIONS = ["Psalms 3:1", "春日山中 李白"]
OPTIONS = {"num_predict": 40, "seed": 7}


def chat(client):
    for question in QUESTIONS:
        asked = dict(model="demo", messages=[{"role": "user", "content": question}], options=OPTIONS)
        reply = client.chat(**asked)
        assert reply.message.role == "assistant" and reply.message.content and reply.done, reply
        assert reply.done_reason in ("stop", "length") and reply.eval_count and reply.total_duration > 0, reply
        parts = list(client.chat(**asked, stream=True))
        assert "".join(part.message.content for part in parts) == reply.message.content, "a streamed answer is another one"
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert parts[-1].eval_count == reply.eval_count


def generate(client):
    reply = client.generate(model="demo", prompt=QUESTIONS[0], options=OPTIONS, logprobs=True, top_logprobs=3)
    assert reply.response and all(len(entry.top_logprobs) == 3 for entry in reply.logprobs), reply
    parts = client.generate(model="demo", prompt=QUESTIONS[0], options=ollama.Options(**OPTIONS), stream=True)
    assert "".join(part.response for part in parts) == reply.response
    raw = client.generate(model="demo", prompt="The LORD<sep>", raw=True, options={"num_predict": 5})
    assert raw.response and raw.eval_count <= 5, raw
    gap = client.generate(model="demo", prompt="The LORD ", suffix=" my shepherd", options={"num_predict": 5})
    assert gap.done and gap.eval_count <= 5, gap
    assert client.generate(model="demo").done_reason == "load"


class Verse(pydantic.BaseModel, extra="forbid"):
    book: Literal["Psalms", "Ruth"]
    verse: int = pydantic.Field(ge=1, le=176)


def structured(client):
    for question in QUESTIONS:
        said = [{"role": "user", "content": question}]
        reply = client.chat(model="demo", messages=said, format=Verse.model_json_schema(), options=OPTIONS)
        assert Verse.model_validate_json(reply.message.content), reply


CITIES = ["长安", "Lhasa"]
WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"enum": CITIES}}, "required": ["city"], "additionalProperties": False},
}}


def tools(client):
    said = [{"role": "user", "content": "How is the weather?"}]
    # The field is not ollama's: without it, this small model does not call anything.
    asked = {
        "model": "demo", "messages": said, "tools": [WEATHER], "tool_choice": "required", "stream": False,
        "options": OPTIONS | {"num_predict": 200},
    }
    reply = ollama.ChatResponse(**client._request_raw("POST", "/api/chat", json=asked).json())
    call = reply.message.tool_calls[0].function
    assert call.name == "weather" and call.arguments["city"] in CITIES, reply
    said += [reply.message, {"role": "tool", "tool_name": "weather", "content": "21 degrees in " + call.arguments["city"]}]
    after = client.chat(model="demo", messages=said, tools=[WEATHER], options=OPTIONS)
    assert after.done and after.prompt_eval_count > reply.prompt_eval_count, after


def models(client):
    (model,) = client.list().models
    assert model.size > 0 and model.details.format == "gguf" and model.modified_at, model
    (running,) = client.ps().models
    assert running.digest == model.digest and running.context_length > 0, running
    shown = client.show(model.model)
    assert "completion" in shown.capabilities and shown.modelinfo["general.architecture"] == "yuan2_moe", shown


def embeddings(client):
    texts = ["The LORD is my shepherd", "床前明月光"]
    reply = client.embed(model="demo", input=texts)
    assert len(reply.embeddings) == 2 and all(abs(sum(x * x for x in v) - 1) < 1e-5 for v in reply.embeddings)
    assert list(client.embeddings(model="demo", prompt=texts[1]).embedding) == list(reply.embeddings[1])


def refused(client):
    wrong = [
        dict(format={"type": "strange"}),
        dict(think=True),
        dict(options={"temperature": -1}),
    ]
    for request in wrong:
        for stream in (False, True):
            try:
                list(client.chat(model="demo", messages=[{"role": "user", "content": "a"}], stream=stream, **request))
            except ollama.ResponseError as error:
                assert error.status_code == 400 and error.error, error
            else:
                raise AssertionError(f"accepted: {request}")


if __name__ == "__main__":
    with serve(sys.argv[1]) as address:
        client = ollama.Client(host=address)
        run((check, client) for check in (chat, generate, structured, tools, models, embeddings, refused))
