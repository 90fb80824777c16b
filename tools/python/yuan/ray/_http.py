"""What clients of OpenAI's chat interface ask for. `yuan serve` has all of the interfaces; here is what goes through Ray Serve's own door."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Tuple

from ..errors import ContextFullError, OutOfMemoryError, TimeLimitError
from ..tokenizer import Prompt

# As it is called here.
_NAMES = {"repetition_penalty": "repeat_penalty"}
_PLAIN = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "repeat_last_n", "seed", "stop", "regex", "grammar")
_REFUSED = ("tools", "functions", "prediction", "audio")


class Asked(NamedTuple):
    """An answer that a client asks for."""

    prompt: Prompt
    max_tokens: int
    is_stream: bool
    options: Dict[str, Any]


def asked(body: Any, engine: Any) -> Asked:
    """Reads a request. What is not given is as OpenAI has it: temperature 1. Wrong ones are a ValueError or a TypeError.

    >>> asked({"messages": [{"role": "user", "content": "春"}], "max_tokens": 8, "seed": 7}, engine)[1:]
    (8, False, {'temperature': 1.0, 'seed': 7})
    """
    if not isinstance(body, Mapping):
        raise TypeError("the body is no object")
    for name in _REFUSED:
        if body.get(name):
            raise ValueError(f"{name} is not here: `yuan serve` has it")
    if body.get("n") not in (None, 1):
        raise ValueError("n is 1 here: ask as many times, with a seed for each; `yuan serve` has n")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages is missing: give a list of {role, content}")
    options: Dict[str, Any] = {"temperature": 1.0}
    for field, value in body.items():
        name = _NAMES.get(str(field), str(field))
        if name in _PLAIN and value is not None:
            options[name] = value
    for name, kind in (("temperature", float), ("top_p", float), ("min_p", float), ("top_k", int), ("seed", int)):
        if name in options and (isinstance(options[name], bool) or not isinstance(options[name], (int, kind))):
            raise TypeError(f"{name} is {options[name]!r}: give a number")
    options.update(_of_form(body.get("response_format")))
    if body.get("logit_bias"):
        options["logit_bias"] = {int(token): float(bias) for token, bias in body["logit_bias"].items()}
    if body.get("logprobs"):
        options["logprobs"] = int(body.get("top_logprobs") or 0)
    most = body.get("max_completion_tokens", body.get("max_tokens"))
    if most is None:
        most = -1
    if isinstance(most, bool) or not isinstance(most, int) or most < -1:
        raise ValueError(f"max_tokens is {most!r}: give a number, or -1 for no limit")
    return Asked(engine.chat_tokens(messages), most, bool(body.get("stream")), options)


def _of_form(form: Any) -> Dict[str, Any]:
    if not form or form.get("type") == "text":
        return {}
    if form.get("type") == "json_object":
        return {"json_schema": True}
    if form.get("type") == "json_schema":
        return {"json_schema": form["json_schema"]["schema"]}
    raise ValueError(f"response_format is {form.get('type')!r}: there are text, json_object and json_schema")


def refusal(error: Exception) -> Tuple[int, Dict[str, Any]]:
    """An error as a status and a body.

    >>> refusal(ValueError("messages is missing"))
    (400, {'error': {'message': 'messages is missing', 'type': 'invalid_request_error', 'code': None}})
    """
    status, kind = 500, "server_error"
    if isinstance(error, OutOfMemoryError):
        status = 503
    elif isinstance(error, TimeLimitError):
        status = 408
    elif isinstance(error, (ValueError, TypeError, OverflowError, KeyError, AttributeError)):
        status, kind = 400, "invalid_request_error"
    code = "context_length_exceeded" if isinstance(error, ContextFullError) else None
    return status, {"error": {"message": str(error), "type": kind, "code": code}}
