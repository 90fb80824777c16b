"""Answers as dictionaries of OpenAI's form, which llama-cpp-python has, too."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Dict, Generator, List, Mapping, Sequence

from .answer import Answer, Score

if TYPE_CHECKING:
    from .engine import Engine
    from .tokenizer import Message

_REASONS = {"stop": "stop", "stop_text": "stop", "length": "length", "cancelled": "stop"}


def whole(engine: Engine, messages: Sequence[Message], max_tokens: int, options: Mapping[str, Any]) -> Dict[str, Any]:
    """A chat completion."""
    return completion(engine, engine.chat(messages, max_tokens, **options))


def completion(engine: Engine, answer: Answer) -> Dict[str, Any]:
    """An answer as a chat completion."""
    choice = {
        "index": 0, "message": {"role": "assistant", "content": str(answer)}, "finish_reason": _REASONS[answer.finish or "stop"],
        "logprobs": None if answer.scores is None else {"content": [_logprob(engine, score) for score in answer.scores]},
    }  # fmt: skip
    return {**_head(engine, "chat.completion"), "choices": [choice], "usage": _usage(answer)}


class Chunks:
    """The chunks of a chat completion: a first one, one for each piece, and a last one."""

    def __init__(self, engine: Engine) -> None:
        self._head = _head(engine, "chat.completion.chunk")

    def _chunk(self, delta: Dict[str, str], reason: str | None = None, **more: Any) -> Dict[str, Any]:
        return {**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}], **more}

    def first(self) -> Dict[str, Any]:
        """Says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Dict[str, Any]:
        """What comes."""
        return self._chunk({"content": text})

    def last(self, answer: Answer) -> Dict[str, Any]:
        """Why it ends, and what it took."""
        return self._chunk({}, _REASONS[answer.finish or "stop"], usage=_usage(answer))


def chunks(engine: Engine, messages: Sequence[Message], max_tokens: int, options: Mapping[str, Any]) -> Generator[Dict[str, Any], None, None]:
    """The chunks of a chat completion."""
    given = dict(options)
    asked = {name: given.pop(name) for name in ("tools", "thinking") if name in given}
    made = Chunks(engine)
    yield made.first()
    pieces = engine.stream(engine.chat_tokens(messages, **asked), max_tokens, **given)
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            yield made.last(end.value)
            return
        yield made.piece(piece)


def _head(engine: Engine, kind: str) -> Dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": engine.name}


def _usage(answer: Answer) -> Dict[str, int]:
    prompt, answered = answer.prompt_tokens, len(answer.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": answered, "total_tokens": prompt + answered}


def _logprob(engine: Engine, score: Score) -> Dict[str, Any]:
    def said(token: int, logprob: float) -> Dict[str, Any]:
        text = engine.tokenizer.decode(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    best: List[Dict[str, Any]] = [said(token, logprob) for token, logprob in score.best]
    return {**said(score.token, score.logprob), "top_logprobs": best}
