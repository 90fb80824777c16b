"""How the next token is chosen."""

from __future__ import annotations

from ctypes import byref, c_float, c_int32, c_uint32, c_uint64
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, TypedDict, Union

from ._handle import Handle
from ._library import c_text, call, size, size_or_all

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Sampler", "Sampling"]


class Sampling(TypedDict, total=False):
    """The settings of a sampler, which `generate` and its kin take by name."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    repeat_last_n: int
    logit_bias: Optional[Mapping[int, float]]
    seed: Optional[int]
    stop: Union[str, Sequence[str], None]
    stop_tokens: Sequence[int]
    ignore_eod: bool


# What they are called elsewhere.
_ELSEWHERE = {
    "repetition_penalty": "repeat_penalty", "max_new_tokens": "max_tokens", "n_predict": "max_tokens", "num_predict": "max_tokens", "temp": "temperature",
    "do_sample": "temperature", "eos_token_id": "stop_tokens", "stop_strings": "stop", "ignore_eos": "ignore_eod",
}  # fmt: skip


class Sampler(Handle):
    """How the next token is chosen; by default always the best.

    `temperature` divides the logits (0: always the best token), `top_k`, `top_p` and `min_p` keep the best tokens, the penalties look back at
    the last `repeat_last_n` tokens (-1: all). `logit_bias` adds to the logits of tokens. `stop` has texts that end an answer, `stop_tokens`
    tokens. Without a `seed`, or with -1, it is a random one. One call at a time.

    >>> Sampler(temperature=0.6, top_p=0.95, seed=7).seed
    7
    """

    _kind = "sampler"

    def __init__(self, **settings: Unpack[Sampling]) -> None:
        wanted: Dict[str, Any] = dict(settings)
        for name in wanted:
            if name not in Sampling.__annotations__:
                hint = _ELSEWHERE.get(name)
                raise TypeError(f"there is no setting {name!r}" + (f"; it is called {hint!r} here" if hint else f": there are {', '.join(Sampling.__annotations__)}"))
        self._open("sampler_new")
        self._said = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        for name in ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"):
            if wanted.get(name) is not None:
                call(f"sampler_set_{name}", self._handle, c_float(wanted[name]))
        if wanted.get("top_k") is not None:
            call("sampler_set_top_k", self._handle, size("top_k", wanted["top_k"]))
        if wanted.get("repeat_last_n") is not None:
            call("sampler_set_repeat_last_n", self._handle, size_or_all("repeat_last_n", wanted["repeat_last_n"]))
        call("sampler_set_ignore_eod", self._handle, c_int32(bool(wanted.get("ignore_eod"))))
        seed = wanted.get("seed")
        if seed is not None and seed != -1:
            call("sampler_set_seed", self._handle, c_uint64(size("seed", seed).value))
        for token, bias in (wanted.get("logit_bias") or {}).items():
            call("sampler_set_logit_bias", self._handle, c_uint32(size("a token", token).value), c_float(bias))
        stop = wanted.get("stop") or ()
        for text in (stop,) if isinstance(stop, str) else stop:
            call("sampler_add_stop_text", self._handle, c_text("a stop text", text))
        for token in wanted.get("stop_tokens") or ():
            call("sampler_add_stop_token", self._handle, c_uint32(size("a token", token).value))

    @property
    def seed(self) -> int:
        """The seed of the random choices, by which they can be had again."""
        seed = c_uint64()
        call("sampler_seed", self._handle, byref(seed))
        return seed.value

    def reset(self) -> None:
        """Begins the random choices anew."""
        call("sampler_reset", self._handle)

    def __repr__(self) -> str:
        return "<yuan.Sampler: closed>" if self.closed else f"yuan.Sampler({self._said})"


def chosen_by(sampler: Optional[Sampler], settings: Mapping[str, Any]) -> Sampler:
    """The sampler that a caller gives, or one of the settings that it gives in its place."""
    if sampler is None:
        return Sampler(**settings)
    if settings:
        raise TypeError(f"give a sampler, or its settings ({', '.join(settings)}) in its place")
    return sampler
