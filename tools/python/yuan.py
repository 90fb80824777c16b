"""Yuan2.0-M32 from Python: libyuan by ctypes, in one file that needs nothing but the standard library.

    import yuan

    engine = yuan.Engine("yuan2-m32.gguf")
    session = engine.session()
    session.eval(engine.chat([("user", "写一首关于秋天的诗")]))
    for text in session.stream(200, yuan.Sampler(temperature=0.6, seed=7)):
        print(text, end="", flush=True)

The library is the one that YUAN_LIBRARY names, or the one that the system finds. As a program it continues a prompt:
`python3 yuan.py MODEL PROMPT [TOKENS]`.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import ctypes.util
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

__all__ = ["Engine", "Error", "Sampler", "Score", "Session", "live_handles", "version"]

ABI_VERSION = 6
OK = 0
SIZE_MAX = c_size_t(-1).value
FINISHES = ("stop", "stop_text", "length", "cancelled")

_Progress = ctypes.CFUNCTYPE(c_int32, c_uint64, c_uint64, c_void_p)
# Hears how much is done of how much; False stops the call.
Progress = Callable[[int, int], "bool | None"]
_OnToken = ctypes.CFUNCTYPE(c_int32, c_uint32, c_void_p, c_size_t, c_void_p)
_OnScore = ctypes.CFUNCTYPE(c_int32, c_uint32, c_float, POINTER(c_uint32), POINTER(c_float), c_size_t, c_void_p)


class Error(Exception):
    """What a call of the library complains about; `status` is its name ("YUAN_ERROR_BAD_FILE")."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Score(NamedTuple):
    """How likely a token was in its place."""

    token: int
    logprob: float
    """The natural logarithm of its probability."""
    best: list[tuple[int, float]]
    """The likeliest tokens in its place with theirs."""


def _load() -> ctypes.CDLL:
    name = os.environ.get("YUAN_LIBRARY") or ctypes.util.find_library("yuan")
    if not name:
        raise ImportError("there is no libyuan: install it with `cargo cinstall`, or name it in YUAN_LIBRARY")
    library = ctypes.CDLL(name)
    for function in ("version", "last_error", "status_name"):
        getattr(library, f"yuan_{function}").restype = c_char_p
    library.yuan_live_handles.restype = c_size_t
    library.yuan_abi_version.restype = c_uint32
    if library.yuan_abi_version() != ABI_VERSION:
        raise ImportError(f"{name} has interface {library.yuan_abi_version()}, and this module is for {ABI_VERSION}")
    return library


_lib = _load()


def _call(function: str, *args: Any) -> None:
    status = getattr(_lib, f"yuan_{function}")(*args)
    if status != OK:
        raise Error(_lib.yuan_status_name(status).decode(), _lib.yuan_last_error().decode())


def _buffer(kind: Any, function: str, *args: Any) -> Any:
    """A list that the library fills: asked for its length first, and again when it has grown meanwhile."""
    needed = c_size_t()
    _call(function, *args, None, c_size_t(0), byref(needed))
    while True:
        array = (kind * needed.value)()
        try:
            _call(function, *args, array, needed, byref(needed))
        except Error as error:
            if error.status == "YUAN_ERROR_BUFFER_TOO_SMALL":
                continue
            raise
        return array[: needed.value]


def _text(function: str, *args: Any) -> str:
    return _buffer(ctypes.c_char, function, *args)[:-1].decode()


def _ids(tokens: Sequence[int]) -> Any:
    # An array refuses what is no number of 32 bits; ctypes would cut it.
    return (c_uint32 * len(tokens)).from_buffer(array.array("I", tokens))


def _size(what: str, number: int) -> c_size_t:
    """A number for the library, which ctypes would wrap where it is negative or too large."""
    if not 0 <= number <= SIZE_MAX:
        raise ValueError(f"{what} is {number}: give a number from 0 on")
    return c_size_t(number)


def _or_all(what: str, number: int) -> c_size_t:
    """As `_size`, and -1 is all that there are."""
    return c_size_t(SIZE_MAX) if number == -1 else _size(what, number)


@contextlib.contextmanager
def _heard(progress: Progress | None) -> Iterator[Any]:
    """A callback of the library that calls `progress`, whose exceptions come out of the call."""
    failure: list[BaseException] = []

    def hear(done: int, total: int, _data: int) -> int:
        try:
            return int(progress is not None and progress(done, total) is False)
        except BaseException as e:  # No exception may pass through C.
            failure.append(e)
            return 1

    try:
        yield _Progress(hear) if progress else _Progress()
    except Error:
        if failure:
            raise failure.pop() from None
        raise


def version() -> str:
    """The version of the library."""
    return _lib.yuan_version().decode()


def live_handles() -> int:
    """How many engines, sessions, samplers and options are open in this process."""
    return _lib.yuan_live_handles()


class _Handle:
    """Something of the library, freed with the Python object, by `close()`, or at the end of a `with`."""

    _kind = ""

    def __init__(self, maker: str, *args: Any) -> None:
        handle = c_void_p()
        _call(maker, *args, byref(handle))
        self._handle: c_void_p = handle

    def close(self) -> None:
        """Frees it. Calls that still use it end first."""
        handle, self._handle = self.__dict__.get("_handle"), c_void_p()
        if handle:
            _call(f"{self._kind}_free", handle)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # The interpreter may be half gone.
            pass


class _EngineOptions(_Handle):
    _kind = "engine_options"


class _SessionOptions(_Handle):
    _kind = "session_options"


def _optional(thing: _Handle | None) -> c_void_p | None:
    return thing._handle if thing else None


class Engine(_Handle):
    """An open model with its tokenizer. Threads may share it."""

    _kind = "engine"

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int = 0, threads_batch: int = 0, batch_tokens: int = 0, rope: str | None = None,
        memory: str | None = None, paging: str = "auto", gpu: str | int = "auto", gpu_memory: str | None = None,
        look_ahead: bool = False, context: int = 0, kv: str = "f16", progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """`memory` is all that may be used ("8G", "50%"), `gpu_memory` the same of the GPU ("auto", "off" or its number); `context` and `kv` are
        what sessions will take of both (`kv`: "f16", "q8_0", "q4_0", "f32", or "q8_0:q4_0" for keys and values); `batch_tokens` go through the model together at most (0: the usual number).
        `progress` hears how many bytes are there of how many that are read first; False stops it."""
        with _EngineOptions("engine_options_new") as options, _heard(progress) as callback:
            _call("engine_options_set_threads", options._handle, _size("threads", threads))
            _call("engine_options_set_threads_batch", options._handle, _size("threads_batch", threads_batch))
            _call("engine_options_set_batch_tokens", options._handle, _size("batch_tokens", batch_tokens))
            _call("engine_options_set_rope", options._handle, rope.encode() if rope else None)
            _call("engine_options_set_memory", options._handle, memory.encode() if memory else None)
            _call("engine_options_set_paging", options._handle, paging.encode())
            _call("engine_options_set_gpu", options._handle, str(gpu).encode())
            _call("engine_options_set_gpu_memory", options._handle, gpu_memory.encode() if gpu_memory else None)
            _call("engine_options_set_look_ahead", options._handle, c_int32(look_ahead))
            _call("engine_options_set_sessions", options._handle, _size("context", context), kv.encode())
            _call("engine_options_set_progress", options._handle, callback, None)
            super().__init__("engine_open", os.fsencode(path), options._handle)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; with `special=False` strings such as `<sep>` stay text."""
        data = text.encode()
        return _buffer(c_uint32, "tokenize", self._handle, data, c_size_t(len(data)), c_int32(special))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return _text("detokenize", self._handle, _ids(tokens), c_size_t(len(tokens)))

    def chat(
        self, messages: Sequence[tuple[str, str] | dict[str, Any]], *, answer: bool = True, tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
    ) -> list[int]:  # fmt: skip
        """The tokens of a conversation, closed so that the model answers. A message is (role, content), or a dictionary as OpenAI's clients have it
        (`reasoning_content`, `tool_calls`); `tools` are functions that the model may call, where its template knows of them."""
        said = [dict(zip(("role", "content"), m)) if isinstance(m, tuple) else m for m in messages]
        chat = {"messages": said, "tools": list(tools), "add_generation_prompt": answer, "enable_thinking": thinking}
        return _buffer(c_uint32, "chat_tokenize_json", self._handle, json.dumps(chat, ensure_ascii=False).encode())

    def special_token(self, name: str) -> int:
        """The id of "eod", "sep" or "pad"."""
        token = c_uint32()
        _call("special_token", self._handle, name.encode(), byref(token))
        return token.value

    def describe(self) -> dict[str, Any]:
        """What the model is and how it runs."""
        return json.loads(_text("engine_describe", self._handle))

    def statistics(self) -> dict[str, Any]:
        """What the engine did so far: the keys are listed in yuan.h at yuan_engine_statistics."""
        return json.loads(_text("engine_statistics", self._handle))

    def session(
        self, *, context: int = 0, kv: str = "f16", shift: int | None = None, draft: str | int = "auto",
    ) -> Session:  # fmt: skip
        """An empty session with room for `context` tokens (0: what the model was made for). With `shift`, an answer that fills the
        context drops old tokens, but for the first `shift`. `draft` is "auto", "off" or 1 to 3: whether the next tokens of an answer are guessed and
        checked together, which changes how long it takes, and nothing of it."""
        with _SessionOptions("session_options_new") as options:
            _call("session_options_set_context", options._handle, _size("context", context))
            _call("session_options_set_kv_type", options._handle, kv.encode())
            _call("session_options_set_draft", options._handle, str(draft).encode())
            if shift is not None:
                _call("session_options_set_context_shift", options._handle, c_int32(1), _size("shift", shift))
            return Session("session_new", self._handle, options._handle)

    def restore(self, path: str | os.PathLike[str], sampler: Sampler | None = None) -> Session:
        """A session that was saved; `sampler` becomes the one that was saved with it."""
        return Session("session_restore", self._handle, os.fsencode(path), None, _optional(sampler))


class Sampler(_Handle):
    """How the next token is chosen; by default always the best. A `repeat_last_n` of -1 looks back at all tokens. Without a
    `seed`, or with -1, it is a random one. One call at a time."""

    _kind = "sampler"

    def __init__(
        self, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
        repeat_penalty: float = 1.0, presence_penalty: float = 0.0, frequency_penalty: float = 0.0,
        repeat_last_n: int = 64, logit_bias: dict[int, float] | None = None, seed: int | None = None,
        stop: Sequence[str] = (), stop_tokens: Sequence[int] = (), ignore_eod: bool = False,
    ) -> None:  # fmt: skip
        super().__init__("sampler_new")
        settings: dict[str, Any] = {
            "temperature": c_float(temperature), "top_k": _size("top_k", top_k), "top_p": c_float(top_p),
            "min_p": c_float(min_p), "repeat_penalty": c_float(repeat_penalty),
            "presence_penalty": c_float(presence_penalty), "frequency_penalty": c_float(frequency_penalty),
            "repeat_last_n": _or_all("repeat_last_n", repeat_last_n),
            "ignore_eod": c_int32(ignore_eod),
        }  # fmt: skip
        if seed not in (None, -1):
            settings["seed"] = c_uint64(_size("seed", seed).value)
        for name, value in settings.items():
            _call(f"sampler_set_{name}", self._handle, value)
        for token, bias in (logit_bias or {}).items():
            _call("sampler_set_logit_bias", self._handle, c_uint32(token), c_float(bias))
        for text in stop:
            _call("sampler_add_stop_text", self._handle, text.encode())
        for token in stop_tokens:
            _call("sampler_add_stop_token", self._handle, c_uint32(token))

    @property
    def seed(self) -> int:
        """The seed of the random choices, by which they can be had again."""
        seed = c_uint64()
        _call("sampler_seed", self._handle, byref(seed))
        return seed.value


class Session(_Handle):
    """One sequence of tokens. One call at a time; `cancel` from any thread."""

    _kind = "session"

    def __init__(self, maker: str, *args: Any) -> None:
        super().__init__(maker, *args)
        self.finish: str | None = None
        """Why the last answer ended: "stop", "stop_text", "length" or "cancelled"."""

    @property
    def tokens(self) -> list[int]:
        """The tokens that the session holds."""
        return _buffer(c_uint32, "session_tokens", self._handle)

    @property
    def note(self) -> str:
        """A text of the program's own that is saved with the session."""
        return _text("session_note", self._handle)

    @note.setter
    def note(self, text: str) -> None:
        data = text.encode()
        _call("session_set_note", self._handle, data, c_size_t(len(data)))

    def eval(self, tokens: Sequence[int], progress: Progress | None = None) -> None:
        """Adds tokens. `progress` hears how many are done, and of how many; it stops the call with False."""
        self._run("session_eval", tokens, progress)

    def sync(self, tokens: Sequence[int], progress: Progress | None = None) -> None:
        """Makes the session hold these tokens; what it has in common with them at the beginning is not run again."""
        self._run("session_sync", tokens, progress)

    def score(self, tokens: Sequence[int], *, start: int = 1, top: int = 0) -> list[Score]:
        """Makes the session hold these tokens, and says of each from the place `start` on how likely it was behind those before it, with the `top` likeliest in
        its place. The first has nothing before it. What lists have in common at their beginning is not run again."""
        scores: list[Score] = []

        def hear(token: int, logprob: float, best: Any, logprobs: Any, count: int, _data: int) -> int:
            scores.append(Score(token, logprob, list(zip(best[:count], logprobs[:count]))))
            return 0

        callback = _OnScore(hear)
        start_at, most = _size("start", start), _size("top", top)
        _call("session_score", self._handle, _ids(tokens), c_size_t(len(tokens)), start_at, most, callback, None)
        return scores

    def return_to(self, places: Sequence[int]) -> None:
        """Keeps what it takes to go back to these places exactly, 15 at most, as `sync` and `score` pass them."""
        numbers = (c_size_t * len(places))(*(_size("a place", place).value for place in places))
        _call("session_return_to", self._handle, numbers, c_size_t(len(places)))

    def draft_from(self, tokens: Sequence[int]) -> None:
        """Drafts answers from these tokens, too, in place of earlier ones: a text that they will probably quote, or begin with."""
        _call("session_draft_from", self._handle, _ids(tokens), c_size_t(len(tokens)))

    @property
    def drafted(self) -> tuple[int, int]:
        """How many tokens of answers were guessed and run so far, and how many of them were the next tokens."""
        drafted, accepted = c_uint64(), c_uint64()
        _call("session_drafted", self._handle, byref(drafted), byref(accepted))
        return drafted.value, accepted.value

    def rewind(self, position: int) -> None:
        """Keeps the first `position` tokens."""
        _call("session_rewind", self._handle, _size("position", position))

    def logits(self) -> list[float]:
        """One for each token of the vocabulary, behind the last token of the session."""
        return _buffer(c_float, "session_logits", self._handle)

    def embedding(self) -> list[float]:
        """The last hidden state of the last token."""
        return _buffer(c_float, "session_embedding", self._handle)

    def sample(self, sampler: Sampler) -> int:
        """The next token, which is not added."""
        token = c_uint32()
        _call("session_sample", self._handle, sampler._handle, byref(token))
        return token.value

    def generate(
        self,
        most: int,
        sampler: Sampler | None = None,
        on_text: Callable[[str], bool | None] | None = None,
        *,
        json_schema: dict[str, Any] | bool | str | None = None,
        grammar: str | None = None,
        regex: str | None = None,
    ) -> str:
        """An answer of up to `most` tokens, -1 for no limit. `on_text` hears it piece by piece; it ends the answer with False.

        The answer is JSON of `json_schema`, a text of `grammar` in Lark's notation, or one that `regex` matches as a whole."""
        pieces: list[str] = []
        failure: list[BaseException] = []

        def hear(_token: int, text: int, length: int, _data: int) -> int:
            try:
                piece = ctypes.string_at(text, length).decode()
                pieces.append(piece)
                return int(bool(piece) and on_text is not None and on_text(piece) is False)
            except BaseException as e:  # No exception may pass through C.
                failure.append(e)
                return 1

        finish = c_int32()
        sampler = sampler or Sampler()
        callback = _OnToken(hear)
        with self._form(json_schema, grammar, regex):
            _call("session_generate", self._handle, sampler._handle, _or_all("most", most), callback, None, byref(finish))
        if failure:
            raise failure.pop()
        self.finish = FINISHES[finish.value]
        return "".join(pieces)

    def stream(self, most: int, sampler: Sampler | None = None, **form: Any) -> Iterator[str]:
        """The pieces of an answer as they come; `form` is what `generate` takes by name. The answer is computed in another thread; leaving the loop
        ends it."""
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        left = threading.Event()

        def on_text(piece: str) -> bool:
            pieces.put(piece)
            return not left.is_set()

        def work() -> None:
            try:
                self.generate(most, sampler, on_text, **form)
                pieces.put(None)
            except BaseException as e:
                pieces.put(e)

        thread = threading.Thread(target=work, name="yuan-stream", daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            left.set()
            thread.join()

    def cancel(self) -> None:
        """Stops the call that is running on the session; where none is, nothing happens. Any thread."""
        _call("session_cancel", self._handle)

    def save(self, path: str | os.PathLike[str], sampler: Sampler | None = None) -> None:
        """Writes the session, and where the sampler's choices stand, to a file; `Engine.restore` reads it."""
        _call("session_save", self._handle, _optional(sampler), os.fsencode(path))

    @contextlib.contextmanager
    def _form(self, json_schema: Any, grammar: str | None, regex: str | None) -> Iterator[None]:
        """What an answer has to be, while it is made."""
        if json_schema is not None and not isinstance(json_schema, str):
            json_schema = json.dumps(json_schema, ensure_ascii=False)
        forms = [("json_schema", json_schema), ("grammar", grammar), ("regex", regex)]
        given = [(name, text) for name, text in forms if text is not None]
        if len(given) > 1:
            raise ValueError(f"an answer has one form: {given[0][0]} or {given[1][0]}")
        for name, text in given:
            # C texts end at the first NUL.
            if "\0" in text:
                raise ValueError(f"{name} contains a NUL")
            _call(f"session_set_{name}", self._handle, text.encode())
        try:
            yield
        finally:
            for name, _text in given:
                _call(f"session_set_{name}", self._handle, None)

    def _run(self, function: str, tokens: Sequence[int], progress: Progress | None) -> None:
        with _heard(progress) as callback:
            _call(function, self._handle, _ids(tokens), c_size_t(len(tokens)), callback, None)


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: {sys.argv[0]} MODEL PROMPT [TOKENS]")
    most = int(sys.argv[3]) if len(sys.argv) == 4 else 64
    try:
        with Engine(sys.argv[1]) as engine, engine.session() as session:
            session.eval(engine.tokenize(sys.argv[2]))
            for text in session.stream(most):
                print(text, end="", flush=True)
            print()
    except Error as e:
        sys.exit(f"error: {e} ({e.status})")


if __name__ == "__main__":
    main()
