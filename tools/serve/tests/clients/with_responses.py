"""Checks the responses of `yuan serve` with the package `openai`.

    python3 -m pip install --target target/clients openai
    PYTHONPATH=target/clients python3 tools/serve/tests/clients/with_responses.py target/release/yuan
"""

import sys
from typing import Literal

import openai
import pydantic
from openai.types.responses import ResponseCompletedEvent, ResponseIncompleteEvent, ResponseTextDeltaEvent

from server import run, serve

QUESTIONS = ["Psalms 3:1", "春日山中 李白"]


def asked(text, /, **more):
    return dict(model="demo", input=text, max_output_tokens=30, extra_body={"seed": 7}, **more)


def responses(client):
    for question in QUESTIONS:
        reply = client.responses.create(**asked(question, instructions="Be brief."))
        assert reply.output_text and reply.status in ("completed", "incomplete"), reply
        assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens, reply
        events = list(client.responses.create(**asked(question, instructions="Be brief."), stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        text = "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))
        assert text == reply.output_text == events[-1].response.output_text, "a streamed answer is another one"
        assert isinstance(events[-1], (ResponseCompletedEvent, ResponseIncompleteEvent)), events[-1]
        with client.responses.stream(**asked(question, instructions="Be brief.")) as stream:
            done = [event.text for event in stream if event.type == "response.output_text.done"]
        assert done == [text]


def turns(client):
    first = client.responses.create(**asked(QUESTIONS[0]))
    second = client.responses.create(**asked("Go on.", previous_response_id=first.id))
    said = [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Go on."},
    ]
    assert client.responses.create(**asked(said)).output_text == second.output_text
    # What the client was given, given back.
    said[1] = first.output[0].model_dump(exclude_none=True)
    assert client.responses.create(**asked(said)).output_text == second.output_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(second.id)
    try:
        client.responses.retrieve(second.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted response is still there")


def scores(client):
    reply = client.responses.create(**asked(QUESTIONS[0], top_logprobs=2, include=["message.output_text.logprobs"]))
    entries = reply.output[0].content[0].logprobs
    assert entries and all(len(entry.top_logprobs) == 2 for entry in entries), reply


class Verse(pydantic.BaseModel):
    book: Literal["Psalms", "Ruth"]
    verse: int = pydantic.Field(ge=1, le=176)


def structured(client):
    for question in QUESTIONS:
        reply = client.responses.parse(**asked(question, text_format=Verse))
        assert isinstance(reply.output_parsed, Verse), reply


def tools(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["长安", "Lhasa"]}}, "required": ["city"], "additionalProperties": False}
    tool = {"type": "function", "name": "weather", "description": "The weather of a city", "parameters": schema, "strict": True}
    more = dict(model="demo", max_output_tokens=200, extra_body={"seed": 3}, tools=[tool], parallel_tool_calls=False)
    said = [{"role": "user", "content": "How is the weather?"}]
    reply = client.responses.create(**more, input=said, tool_choice="required")
    (call,) = reply.output
    assert call.type == "function_call" and call.name == "weather" and "city" in call.arguments, reply
    with client.responses.stream(**more, input=said, tool_choice="required") as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_response().output[0]
    assert streamed.arguments == call.arguments and "response.function_call_arguments.done" in kinds, kinds
    said += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}]
    after = client.responses.create(**more, input=said)
    assert after.output and after.usage.input_tokens > reply.usage.input_tokens, after


def refused(client):
    for more in (dict(tools=[{"type": "web_search"}]), dict(text={"format": {"type": "strange"}}), dict(temperature=-1)):
        try:
            client.responses.create(**asked("a", **more))
        except openai.BadRequestError as error:
            assert error.body["message"], error
        else:
            raise AssertionError(f"accepted: {more}")


if __name__ == "__main__":
    with serve(sys.argv[1]) as address:
        # The client's own repetitions would hide a refusal.
        client = openai.OpenAI(base_url=address + "/v1", api_key="none", max_retries=0)
        run((check, client) for check in (responses, turns, scores, structured, tools, refused))
