"""The real `openai` package against a server of the demo model: python3 check.py http://127.0.0.1:8080/v1"""

import sys

from openai import BadRequestError, OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none")
model = client.models.list().data[0].id

for question in ["春日山中 李白", "Psalms 151:1-4"]:
    chat = dict(model=model, messages=[{"role": "user", "content": question}], max_tokens=30, seed=3)
    reply = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2)
    assert reply.usage.completion_tokens >= len(reply.choices[0].logprobs.content) > 0
    text, usage = "", None
    for chunk in client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == reply.choices[0].message.content and text
    assert usage == reply.usage, (usage, reply.usage)

# As lm-evaluation-harness asks for likelihoods.
prompts = [[3, 4, 5], [7], [3, 4, 5, 6]]
reply = client.completions.create(model=model, prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1, echo=True)
for choice, prompt in zip(reply.choices, prompts):
    of_tokens, tops = choice.logprobs.token_logprobs, choice.logprobs.top_logprobs
    assert len(of_tokens) == len(tops) == len(prompt) + 1 and of_tokens[0] is None and tops[0] is None
    assert all(p <= max(top.values()) for p, top in zip(of_tokens[1:], tops[1:]))
    assert of_tokens[-1] == max(tops[-1].values()), "the greedy token"

embeddings = client.embeddings.create(model=model, input=["a", "b"])
assert len(embeddings.data) == 2 and abs(sum(x * x for x in embeddings.data[0].embedding) - 1) < 1e-4

try:
    client.completions.create(model=model, prompt=[3] * 5000)
    sys.exit("a prompt beyond the context was not refused")
except BadRequestError as error:
    assert error.code == "context_length_exceeded"
print("openai: passed")
