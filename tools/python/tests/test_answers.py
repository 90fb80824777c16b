"""One answer: whole, in pieces, to a conversation, with likelihoods, of a form, in time."""

from __future__ import annotations

import json
import threading
import time
from typing import Generator

import pytest
from conftest import PROMPT, QUESTION

import yuan

ENDLESS = {"max_tokens": -1, "ignore_eod": True}


def test_pieces_are_the_answer(engine: yuan.Engine) -> None:
    whole = engine.generate(PROMPT, 24)
    pieces = list(engine.stream(PROMPT, 24))
    assert "".join(pieces) == whole and len(pieces) > 10
    assert whole.finish == "length" and len(whole.tokens) == 24 and whole.scores is None
    assert whole.prompt_tokens == len(engine.tokenize(PROMPT)) and engine.detokenize(whole.tokens) == whole
    heard: list[str] = []
    assert engine.generate(PROMPT, 24, None, heard.append) == whole and heard == pieces

    def through() -> Generator[str, None, None]:
        answer = yield from engine.stream(PROMPT, 24)
        assert answer == whole and answer.tokens == whole.tokens
        yield "the end"

    assert list(through()) == [*pieces, "the end"]


def test_no_piece_ends_inside_a_character(engine: yuan.Engine) -> None:
    for seed in range(12):
        pieces = list(engine.stream(PROMPT, 60, temperature=1.8, seed=seed))
        whole = engine.generate(PROMPT, 60, temperature=1.8, seed=seed)
        assert "".join(pieces) == whole
        for piece in pieces:
            assert piece.encode().decode() == piece
            # Bytes that are no character come as one, and never as the half of one that is in the whole.
            assert piece.count("\ufffd") == 0 or "\ufffd" in whole
    assert any(len(piece.encode()) == 3 for piece in pieces)


def test_a_conversation_in_the_form_of_openai(engine: yuan.Engine) -> None:
    first = [{"role": "user", "content": QUESTION}]
    answer = engine.chat(messages=first, max_tokens=20)
    assert answer == engine.generate(first, 20) == engine.generate(engine.chat_tokens([("user", QUESTION)]), 20)
    with engine.session() as session:
        assert session.chat(first, 20) == answer
        going_on = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "杜甫"}]
        fresh = engine.chat(going_on, 20)
        before = engine.statistics()["loop"]["tokens"]
        assert session.chat(going_on, 20) == fresh
        # What it has in common with what was said is not read again.
        assert engine.statistics()["loop"]["tokens"] - before < len(engine.chat_tokens(going_on)) + 20


def test_completions_in_the_form_of_openai(engine: yuan.Engine) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    answer = engine.chat(messages, 12)
    done = engine.create_chat_completion(messages, max_tokens=12, logprobs=2)
    choice = done["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": answer} and choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["content"]) == done["usage"]["completion_tokens"] == 12
    assert all(len(token["top_logprobs"]) == 2 for token in choice["logprobs"]["content"])
    chunks = list(engine.create_chat_completion(messages, max_tokens=12, stream=True, tools=(), thinking=None))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == answer
    assert chunks[-1]["choices"][0]["finish_reason"] == "length" and chunks[-1]["usage"] == done["usage"]
    json.dumps([done, *chunks])


def test_likelihoods_are_those_of_the_scores(engine: yuan.Engine) -> None:
    answer = engine.generate(PROMPT, 12, logprobs=3, temperature=0.8, seed=5)
    assert answer == engine.generate(PROMPT, 12, temperature=0.8, seed=5)
    assert answer.scores is not None and [score.token for score in answer.scores] == answer.tokens
    prompt = engine.tokenize(PROMPT)
    assert answer.scores == engine.score(prompt + answer.tokens, start=len(prompt), top=3)
    assert all(len(score.best) == 3 and score.best[0][1] >= score.logprob for score in answer.scores)
    assert engine.generate(PROMPT, 3, logprobs=0).scores[0].best == []  # type: ignore[index]


def test_answers_of_a_form(engine: yuan.Engine) -> None:
    schema = {"type": "object", "properties": {"诗人": {"enum": ["李白", "杜甫"]}}, "required": ["诗人"], "additionalProperties": False}
    assert json.loads(engine.generate(PROMPT, 60, json_schema=schema))["诗人"] in ("李白", "杜甫")
    assert len("".join(engine.stream(PROMPT, regex="[0-9]{4}"))) == 4
    with pytest.raises(ValueError, match="one form"):
        engine.generate(PROMPT, regex="a", grammar="b")


def test_settings_have_their_usual_names(engine: yuan.Engine) -> None:
    by_name = engine.generate(PROMPT, 20, temperature=0.9, top_k=40, top_p=0.95, repeat_penalty=1.1, seed=3)
    sampler = yuan.Sampler(temperature=0.9, top_k=40, top_p=0.95, repeat_penalty=1.1, seed=3)
    assert by_name == engine.generate(PROMPT, 20, sampler) and "top_k=40" in repr(sampler)
    stopped = engine.generate(PROMPT, 20, stop=by_name[4:6], temperature=0.9, top_k=40, top_p=0.95, repeat_penalty=1.1, seed=3)
    assert stopped == by_name[:4] and stopped.finish == "stop_text"
    with pytest.raises(TypeError, match="'repeat_penalty'"):
        engine.generate(PROMPT, repetition_penalty=1.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="sampler"):
        engine.generate(PROMPT, 5, sampler, temperature=0.5)


def test_leaving_a_stream_keeps_what_was_shown(session: yuan.Session) -> None:
    engine, shown = session.engine, ""
    for piece in session.stream(prompt=PROMPT, **ENDLESS):  # type: ignore[arg-type]
        shown += piece
        if len(shown) > 20:
            break
    assert session.finish == "cancelled" and engine.detokenize(session.tokens[len(engine.tokenize(PROMPT)) :]) == shown
    rest = session.generate(10)
    assert engine.generate(PROMPT, len(session.tokens) - len(engine.tokenize(PROMPT)), ignore_eod=True) == shown + rest


def test_a_time_limit(session: yuan.Session) -> None:
    begin = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        session.generate(prompt=PROMPT, timeout=0.2, **ENDLESS)  # type: ignore[arg-type]
    assert isinstance(caught.value, yuan.TimeLimitError) and len(caught.value.partial) > 5
    assert 0.1 < time.monotonic() - begin < 5
    with pytest.raises(TimeoutError):
        for _ in session.stream(prompt=PROMPT, timeout=0.2, **ENDLESS):  # type: ignore[arg-type]
            pass
    assert session.generate(5, prompt=PROMPT, timeout=60).finish == "length"


def test_callbacks_come_on_the_thread_of_the_call(session: yuan.Session) -> None:
    threads = set()
    session.generate(5, None, lambda _: threads.add(threading.current_thread()), prompt=PROMPT)
    session.sync([], None)
    session.eval(session.engine.tokenize(PROMPT), lambda done, total: threads.add(threading.current_thread()))
    assert threads == {threading.current_thread()}


def test_one_session_and_two_threads(session: yuan.Session) -> None:
    pieces = session.stream(prompt=PROMPT, **ENDLESS)  # type: ignore[arg-type]
    next(pieces)
    with pytest.raises(yuan.BusyError, match="in use"):
        session.generate(3)
    with pytest.raises(RuntimeError):
        session.tokens
    assert "in use" in repr(session)
    pieces.close()
    assert session.generate(3).finish == "length"

    def inside(_: str) -> None:
        session.eval([1])

    with pytest.raises(yuan.BusyError):
        session.generate(3, None, inside)

    found: list[object] = []

    def other() -> None:
        try:
            found.append(session.generate(prompt=PROMPT, **ENDLESS))  # type: ignore[arg-type]
        except yuan.YuanError as error:
            found.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    while session._halt is None:
        time.sleep(0.001)
    with pytest.raises(yuan.BusyError):
        session.generate(3)
    session.cancel()
    thread.join(10)
    assert isinstance(found[0], yuan.Answer) and found[0].finish == "cancelled"


def test_saved_and_restored(engine: yuan.Engine, tmp_path: object) -> None:
    path = f"{tmp_path}/会话.session"
    sampler = yuan.Sampler(temperature=0.9, seed=3)
    with engine.session() as session:
        session.generate(6, sampler, prompt=PROMPT)
        session.note = "第一回"
        session.save(path, sampler)
        rest = session.generate(10, sampler)
    other = yuan.Sampler()
    with engine.restore(path, other) as restored:
        assert restored.note == "第一回" and restored.generate(10, other) == rest


def test_arrays_stay_when_their_session_is_closed(engine: yuan.Engine) -> None:
    numpy = pytest.importorskip("numpy")
    with engine.session() as session:
        session.eval(engine.tokenize(PROMPT))
        logits, embedding = session.logits(), session.embedding()
        assert logits.shape == (engine.tokenizer.vocab_size,) and logits.dtype == numpy.float32 and logits.flags.owndata
        assert logits.tolist() == session.logits_list() and embedding.tolist() == session.embedding_list()
        kept = logits.copy(), embedding.copy()
        best = int(logits.argmax())
        assert best == session.sample(yuan.Sampler())
        session.eval([best])
        assert (session.logits() != logits).any()
    assert (logits == kept[0]).all() and (embedding == kept[1]).all()
    rows = engine.embed([QUESTION, "杜甫", "In the beginning"])
    assert rows.shape == (3, engine.hidden_size) and (rows[1] == engine.embed("杜甫")).all()
    assert numpy.allclose(numpy.linalg.norm(engine.embed([QUESTION, "杜甫"], normalize=True), axis=1), 1)
    assert engine.embed([]).shape == (0, engine.hidden_size)
