"""What answers can be asked for by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Dict, Mapping, NamedTuple, Optional, Tuple, Union

from ._library import c_text
from .sampler import Sampler, Sampling, chosen_by

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Options"]


class Options(Sampling, total=False):
    """The settings of a sampler, and what an answer has to be.

    It is JSON of `json_schema` (True: any), a text of `grammar` in Lark's notation, or one that `regex` matches as a whole. `logprobs` is how many of the likeliest
    tokens `Answer.scores` has in each place beside the chosen one. After `timeout` seconds it is a `TimeLimitError`."""

    json_schema: Union[Mapping[str, Any], bool, str, None]
    grammar: Optional[str]
    regex: Optional[str]
    logprobs: Optional[int]
    timeout: Optional[float]


class Wanted(NamedTuple):
    """An answer that is asked for."""

    sampler: Sampler
    is_ours: bool
    """Whether the sampler was made for it."""
    form: Optional[Tuple[str, bytes]]
    logprobs: Optional[int]
    timeout: Optional[float]

    @classmethod
    def of(cls, sampler: Optional[Sampler], **options: Unpack[Options]) -> "Wanted":
        """What a caller has asked for."""
        asked: Dict[str, Any] = dict(options)
        forms = {name: asked.pop(name, None) for name in ("json_schema", "grammar", "regex")}
        logprobs, timeout = asked.pop("logprobs", None), asked.pop("timeout", None)
        schema = forms["json_schema"]
        if schema is not None and not isinstance(schema, str):
            forms["json_schema"] = json.dumps(schema, ensure_ascii=False)
        given = [(name, c_text(name, text)) for name, text in forms.items() if text is not None]
        if len(given) > 1:
            raise ValueError(f"an answer has one form: {given[0][0]} or {given[1][0]}")
        if logprobs is not None and logprobs < 0:
            raise ValueError(f"logprobs is {logprobs}: give a number from 0 on")
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout is {timeout}: give seconds")
        form = (given[0][0], given[0][1] or b"") if given else None
        return cls(chosen_by(sampler, asked), sampler is None, form, logprobs, timeout)

    def done(self) -> None:
        """Gives back what was made for it."""
        if self.is_ours:
            self.sampler.close()
