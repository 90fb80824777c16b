"""Text to tokens and back, by the names that transformers has."""

from __future__ import annotations

import json
from ctypes import byref, c_int32, c_size_t, c_uint32
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union, overload

from ._library import c_text, call, filled, ids, text

if TYPE_CHECKING:
    from typing_extensions import Literal

    from .engine import Engine

__all__ = ["Message", "Prompt", "Tokenizer"]

Message = Union[Mapping[str, Any], Tuple[str, str]]
"""A message as OpenAI's clients have it ({"role": "user", "content": "你好"}), or (role, content)."""
Prompt = Union[str, Sequence[int], Sequence[Message]]
"""A text, tokens, or a conversation."""


class Tokenizer:
    """The tokenizer of a model. What transformers' `AutoTokenizer` does for a prompt and an answer is here under the same names.

    >>> engine.tokenizer.decode(engine.tokenizer.encode("春日山中"))
    '春日山中'
    >>> sorted(engine.tokenizer(["In the beginning", "春"]))
    ['attention_mask', 'input_ids']
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __repr__(self) -> str:
        return f"<yuan.Tokenizer of {self._engine!r}>"

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        size = c_size_t()
        call("engine_vocab_size", self._engine._handle, byref(size))
        return size.value

    def encode(self, text: str, add_special_tokens: bool = True, *, special: bool = True) -> List[int]:
        """The tokens of a text. With `special=False` strings such as `<sep>` stay text. No token is added at the beginning or at the end, as the
        model's own tokenizer adds none, whatever `add_special_tokens` says."""
        data = text.encode()
        return list(filled(c_uint32, "tokenize", self._engine._handle, data, c_size_t(len(data)), c_int32(special)))

    def decode(self, token_ids: Union[int, Sequence[int]], skip_special_tokens: bool = False) -> str:
        """The text of tokens."""
        tokens = [token_ids] if isinstance(token_ids, int) else [int(token) for token in token_ids]
        if skip_special_tokens:
            left_out = set(self.all_special_ids)
            tokens = [token for token in tokens if token not in left_out]
        return text("detokenize", self._engine._handle, ids(tokens), c_size_t(len(tokens)))

    def batch_decode(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> List[str]:
        """The texts of several lists of tokens."""
        return [self.decode(sequence, skip_special_tokens) for sequence in sequences]

    def __call__(
        self, text: Union[str, Sequence[str]], *, padding: bool = False, return_tensors: Optional[str] = None, add_special_tokens: bool = True,
    ) -> Dict[str, Any]:  # fmt: skip
        """`input_ids` and `attention_mask` of a text, or lists of them for several. `return_tensors="np"` makes NumPy arrays, which have a row for each
        text; texts of several lengths are padded on the right with `padding=True`."""
        if return_tensors not in (None, "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}: give None for lists, or 'np' for NumPy arrays")
        rows = [self.encode(one) for one in ([text] if isinstance(text, str) else text)]
        masks = [[1] * len(row) for row in rows]
        if padding:
            longest = max(map(len, rows), default=0)
            pad = self.pad_token_id
            masks = [mask + [0] * (longest - len(mask)) for mask in masks]
            rows = [row + [pad] * (longest - len(row)) for row in rows]
        if return_tensors == "np":
            from .arrays import numpy

            if len({len(row) for row in rows}) > 1:
                raise ValueError("texts of several lengths make no array: give padding=True")
            return {"input_ids": numpy().array(rows, dtype="int64"), "attention_mask": numpy().array(masks, dtype="int64")}
        if isinstance(text, str):
            return {"input_ids": rows[0], "attention_mask": masks[0]}
        return {"input_ids": rows, "attention_mask": masks}

    @overload
    def apply_chat_template(
        self, conversation: Sequence[Message], tools: Optional[Sequence[Mapping[str, Any]]] = ..., *, add_generation_prompt: bool = ...,
        tokenize: Literal[True] = ..., enable_thinking: Optional[bool] = ...,
    ) -> List[int]: ...  # fmt: skip

    @overload
    def apply_chat_template(
        self, conversation: Sequence[Message], tools: Optional[Sequence[Mapping[str, Any]]] = ..., *, add_generation_prompt: bool = ...,
        tokenize: Literal[False], enable_thinking: Optional[bool] = ...,
    ) -> str: ...  # fmt: skip

    def apply_chat_template(
        self, conversation: Sequence[Message], tools: Optional[Sequence[Mapping[str, Any]]] = None, *, add_generation_prompt: bool = False,
        tokenize: bool = True, enable_thinking: Optional[bool] = None,
    ) -> Union[List[int], str]:  # fmt: skip
        """The tokens of a conversation, or its text. `tools` are functions that the model may call, where its template knows of them. With
        `add_generation_prompt=True` it is closed so that the model answers."""
        said = [dict(zip(("role", "content"), message)) if isinstance(message, tuple) else dict(message) for message in conversation]
        chat = {
            "messages": said, "tools": [dict(tool) for tool in tools or ()], "add_generation_prompt": add_generation_prompt,
            "enable_thinking": enable_thinking,
        }  # fmt: skip
        data = c_text("the conversation", json.dumps(chat, ensure_ascii=False))
        tokens = list(filled(c_uint32, "chat_tokenize_json", self._engine._handle, data))
        return tokens if tokenize else self.decode(tokens)

    def tokens_of(self, prompt: Prompt) -> List[int]:
        """The tokens of a text, of tokens, or of a conversation, closed so that the model answers."""
        if isinstance(prompt, str):
            return self.encode(prompt)
        if len(prompt) and isinstance(prompt[0], (Mapping, tuple)):
            return self.apply_chat_template(prompt, add_generation_prompt=True)  # type: ignore[arg-type]
        return [int(token) for token in prompt]  # type: ignore[arg-type]

    def special_token(self, name: str) -> int:
        """The id of "eod", "sep" or "pad"."""
        token = c_uint32()
        call("special_token", self._engine._handle, c_text("the name", name), byref(token))
        return token.value

    @property
    def eos_token_id(self) -> int:
        """The token by which the model ends an answer."""
        return self.special_token("eod")

    @property
    def sep_token_id(self) -> int:
        """The token between a question and its answer."""
        return self.special_token("sep")

    @property
    def pad_token_id(self) -> int:
        """The token that fills rows up."""
        return self.special_token("pad")

    @property
    def eos_token(self) -> str:
        """The text of the token by which the model ends an answer."""
        return self.decode(self.eos_token_id)

    @property
    def sep_token(self) -> str:
        """The text of the token between a question and its answer."""
        return self.decode(self.sep_token_id)

    @property
    def pad_token(self) -> str:
        """The text of the token that fills rows up."""
        return self.decode(self.pad_token_id)

    @property
    def all_special_ids(self) -> List[int]:
        """The tokens above."""
        return sorted({self.eos_token_id, self.sep_token_id, self.pad_token_id})
