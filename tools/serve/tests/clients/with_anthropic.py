"""Checks `yuan serve` with the package `anthropic`.

    python3 -m pip install --target target/clients anthropic
    PYTHONPATH=target/clients python3 tools/serve/tests/clients/with_anthropic.py target/release/yuan
"""

import sys

import anthropic

from server import run, serve

QUESTIONS = ["Psalms 3:1", "春日山中 李白"]


def asked(question, **more):
    return dict(model="demo", max_tokens=40, messages=[{"role": "user", "content": question}], extra_body={"seed": 7}, **more)


def messages(client):
    for question in QUESTIONS:
        reply = client.messages.create(**asked(question))
        (block,) = reply.content
        assert reply.role == "assistant" and block.type == "text" and block.text, reply
        assert reply.stop_reason in ("end_turn", "max_tokens"), reply
        counted = client.messages.count_tokens(model="demo", messages=[{"role": "user", "content": question}])
        assert counted.input_tokens == reply.usage.input_tokens + reply.usage.cache_read_input_tokens, (counted, reply)
        with client.messages.stream(**asked(question)) as stream:
            text = "".join(stream.text_stream)
            whole = stream.get_final_message()
        assert text == block.text == whole.content[0].text, "a streamed answer is another one"
        assert whole.stop_reason == reply.stop_reason and whole.usage.output_tokens == reply.usage.output_tokens


def stops(client):
    reply = client.messages.create(**asked(QUESTIONS[0], system=[{"type": "text", "text": "Be brief."}], stop_sequences=["e", "never"]))
    assert reply.stop_reason == "stop_sequence" and reply.stop_sequence == "e" and "e" not in reply.content[0].text, reply


def events(client):
    kinds = [event.type for event in client.messages.create(**asked(QUESTIONS[0]), stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and "content_block_delta" in kinds, kinds


def models(client):
    (model,) = client.models.list().data
    assert model.type == "model" and model.created_at and model.display_name, model
    assert client.models.retrieve(model.id).id == model.id


def tools(client):
    schema = {"type": "object", "properties": {"city": {"enum": ["长安", "Lhasa"]}}, "required": ["city"], "additionalProperties": False}
    said = [{"role": "user", "content": "How is the weather?"}]
    asked = dict(
        model="demo", max_tokens=200, extra_body={"seed": 3}, tools=[{"name": "weather", "description": "The weather of a city", "input_schema": schema}],
    )
    needed = dict(tool_choice={"type": "any", "disable_parallel_tool_use": True})
    reply = client.messages.create(**asked, **needed, messages=said)
    (call,) = reply.content
    assert reply.stop_reason == "tool_use" and call.type == "tool_use" and call.name == "weather", reply
    assert call.input["city"] in ("长安", "Lhasa"), call
    with client.messages.stream(**asked, **needed, messages=said) as stream:
        (streamed,) = stream.get_final_message().content
    assert streamed.input == call.input
    said += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees"}]}]
    after = client.messages.create(**asked, messages=said)
    assert after.content and after.usage.input_tokens + after.usage.cache_read_input_tokens > reply.usage.input_tokens, after


def refused(client):
    wrong = [
        dict(temperature=-1),
        dict(thinking={"type": "enabled", "budget_tokens": 1024}),
        dict(tools=[{"type": "bash_20250124", "name": "bash"}]),
    ]
    for more in wrong:
        try:
            # The client's own type of a field would hide what the server says.
            client.messages.create(model="demo", max_tokens=40, messages=[{"role": "user", "content": "a"}], extra_body=more)
        except anthropic.BadRequestError as error:
            assert error.body["error"]["type"] == "invalid_request_error" and error.body["error"]["message"], error
        else:
            raise AssertionError(f"accepted: {more}")


if __name__ == "__main__":
    with serve(sys.argv[1]) as address:
        # The client's own repetitions would hide a refusal.
        client = anthropic.Anthropic(base_url=address, api_key="none", max_retries=0)
        run((check, client) for check in (messages, stops, events, models, tools, refused))
