"""What sessions, samplers and engines promise, without any package beside ours: check.py MODEL FILE CHAT, where CHAT is what `yuan generate --chat` says with the settings below."""

import json
import math
import sys
import threading

import yuan

model, file, expected = sys.argv[1:]
QUESTION, PROMPT = "春日山中 李白", "Psalms 151:1-4<sep>"


def sampler() -> yuan.Sampler:
    return yuan.Sampler(temperature=0.9, top_k=50, min_p=0.02, repeat_penalty=1.1, seed=3)


def fails(status: str, function, *args) -> str:
    try:
        function(*args)
    except yuan.Error as e:
        assert e.status == status, e
        return str(e)
    raise AssertionError(f"{function} {args} does not fail")


# Opening tells how far it is, and can be stopped.
heard: list[tuple[int, int]] = []
yuan.Engine(model, paging="streamed", progress=lambda *how_far: heard.append(how_far)).close()
assert len(heard) > 10 and heard == sorted(heard) and heard[-1][0] == heard[-1][1]
try:
    yuan.Engine(model, progress=lambda done, total: False)
    raise AssertionError("it was stopped")
except yuan.Error as error:
    assert error.status == "YUAN_ERROR_CANCELLED"
try:
    yuan.Engine(model, progress=lambda done, total: 1 // 0)
    raise AssertionError("it has failed")
except ZeroDivisionError:
    pass

with yuan.Engine(model, threads=2, memory="4G", paging="streamed", context=256) as engine:
    # Text to tokens and back, and the chat form with sampling.
    ids = engine.tokenize(PROMPT)
    assert engine.detokenize(ids) == PROMPT and ids[-1] == engine.special_token("sep")
    assert engine.tokenize("<sep>", special=False) != engine.tokenize("<sep>")
    session = engine.session(context=256)
    prompt = engine.chat_tokens([("user", QUESTION)])
    assert prompt == engine.chat_tokens([{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], thinking=False)
    session.eval(prompt)
    pieces = list(session.stream(24, sampler()))
    assert "".join(pieces) + "\n" == expected, (pieces, expected)
    assert len(pieces) > 1 and session.finish == "length"
    assert engine.describe()["layers"] > 0
    statistics = engine.statistics()
    assert statistics["mode"] == "streamed" and statistics["bytes_read"] > 0 and statistics["decode"]["tokens"] == 23

    # Answers of a form, which is for one answer only.
    session.sync(ids)
    schema = {"type": "object", "properties": {"诗人": {"enum": ["李白", "杜甫"]}}, "required": ["诗人"], "additionalProperties": False}
    poet = json.loads(session.generate(99, sampler(), json_schema=schema))
    assert poet["诗人"] in ("李白", "杜甫") and session.finish == "stop", poet
    session.sync(ids)
    assert len("".join(session.stream(99, sampler(), regex="[0-9]{4}"))) == 4
    session.sync(ids)
    assert session.generate(99, sampler(), grammar='start: "yes" | "no"') in ("yes", "no")
    session.sync(ids)
    session.generate(99)
    assert session.finish == "stop" or len(session.tokens) - len(ids) == 99, "it has no form any more"
    fails("YUAN_ERROR_ARGUMENT", lambda: session.generate(9, json_schema={"type": "nothing"}))
    fails("YUAN_ERROR_ARGUMENT", lambda: session.generate(9, grammar='root ::= "yes"'))
    try:
        session.generate(9, json_schema=True, regex="a")
        raise AssertionError("two forms at once")
    except ValueError:
        pass

    # Token by token is the same as an answer at once.
    session.sync(ids)
    whole = session.generate(12)
    session.rewind(len(ids))
    for _ in range(12):
        session.eval([session.sample(yuan.Sampler())])
    assert engine.detokenize(session.tokens[len(ids) :]) == whole
    assert len(session.logits_list()) == engine.describe()["vocab"]
    assert len(session.embedding_list()) == engine.describe()["hidden"]

    # How likely tokens are: the best ones of an answer without chance, and the numbers of the logits.
    prompt, answered = len(ids), session.tokens
    scores = session.score(answered, start=prompt, top=2)
    assert [score.token for score in scores] == answered[prompt:]
    assert all(score.best[0] == (score.token, score.logprob) and len(score.best) == 2 for score in scores)
    assert session.score(answered, top=2)[prompt - 1 :] == scores
    session.return_to([prompt])
    session.sync(ids)
    logits = session.logits_list()
    largest = max(logits)
    total = math.log(sum(math.exp(logit - largest) for logit in logits))
    assert abs(logits[answered[prompt]] - largest - total - scores[0].logprob) < 1e-5
    fails("YUAN_ERROR_ARGUMENT", lambda: session.score(answered, start=0))

    # Drafts change nothing but the number of passes.
    with engine.session(context=64, draft="off") as plain:
        plain.sync(ids)
        wanted, quoted = plain.generate(40, sampler()), plain.tokens[len(ids) :]
        assert plain.drafted == (0, 0)
    with engine.session(context=64, draft=3) as drafted:
        drafted.draft_from(quoted)
        drafted.sync(ids)
        assert drafted.generate(40, sampler()) == wanted
        assert 0 < drafted.drafted[1] <= drafted.drafted[0], drafted.drafted
    fails("YUAN_ERROR_ARGUMENT", lambda: engine.session(draft="often"))

    # Saved in the middle of an answer, it goes on as if nothing had happened.
    chooser = sampler()
    session.sync(ids)
    session.generate(6, chooser)
    session.note = "第一回"
    session.save(file, chooser)
    rest = session.generate(10, chooser)
    other = yuan.Sampler()
    with engine.restore(file, other) as restored:
        assert restored.note == "第一回"
        assert restored.generate(10, other) == rest

    # Choices are random unless a seed is given, and can be had again by it.
    def text_of(chooser: yuan.Sampler) -> str:
        session.sync(ids)
        return session.generate(24, chooser)

    warm = [yuan.Sampler(temperature=2.0) for _ in range(4)]
    texts = [text_of(chooser) for chooser in warm]
    assert len(set(texts)) > 1, texts
    assert text_of(yuan.Sampler(temperature=2.0, seed=warm[0].seed)) == texts[0]
    del warm

    # Stops, and leaving a stream early.
    session.sync(ids)
    stop = whole[3:8]
    assert session.generate(12, yuan.Sampler(stop=[stop])) == whole[: whole.index(stop)]
    assert session.finish == "stop_text"
    session.sync(ids)
    for _ in session.stream(200):
        break
    assert session.finish == "cancelled"
    session.sync(ids)

    def cancel_elsewhere(_: str) -> None:
        thread = threading.Thread(target=session.cancel)
        thread.start()
        thread.join()

    session.generate(200, on_text=cancel_elsewhere)
    assert session.finish == "cancelled"

    # Progress, and exceptions out of callbacks.
    heard: list[tuple[int, int]] = []
    session.sync([])
    session.eval(ids, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (len(ids), len(ids))

    def raises(_: str) -> None:
        raise KeyError("mine")

    try:
        session.generate(5, on_text=raises)
        raise AssertionError("the exception is lost")
    except KeyError:
        pass

    # Errors.
    assert "outside the vocabulary" in fails("YUAN_ERROR_ARGUMENT", session.eval, [2**32 - 1])
    assert "tokens" in fails("YUAN_ERROR_CONTEXT_FULL", session.eval, ids * 100)
    fails("YUAN_ERROR_ARGUMENT", lambda: yuan.Sampler(temperature=-1.0))
    assert "this machine takes" in fails("YUAN_ERROR_ARGUMENT", lambda: yuan.Engine(model, threads=100_000))
    assert "too large" in fails("YUAN_ERROR_ARGUMENT", lambda: engine.session(context=1 << 40))
    # Numbers that C has no room for are not cut.
    for wrong, error in [
        (lambda: yuan.Engine(model, threads=-1), ValueError),
        (lambda: engine.session(context=-5), ValueError),
        (lambda: session.generate(-2), ValueError),
        (lambda: session.eval([2**32 + 5]), OverflowError),
        (lambda: session.eval([-1]), OverflowError),
    ]:
        try:
            wrong()
            raise AssertionError("it is taken")
        except error:
            pass
    fails("YUAN_ERROR_FILE", engine.restore, file + ".no")
    fails("YUAN_ERROR_BAD_FILE", engine.restore, model)
    session.close()
    fails("YUAN_ERROR_HANDLE", session.generate, 1)

fails("YUAN_ERROR_FILE", yuan.Engine, file + ".no")
del chooser, other, restored, engine, session
assert yuan.live_handles() == 0, yuan.live_handles()
print(json.dumps({"version": yuan.version()}))
