"""What the model says, and how likely it was."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

__all__ = ["Answer", "Score"]


class Score(NamedTuple):
    """How likely a token was in its place."""

    token: int
    logprob: float
    """The natural logarithm of its probability, before any setting of a sampler."""
    best: List[Tuple[int, float]]
    """The likeliest tokens in its place with theirs, best first."""


class Answer(str):
    """The text of an answer, which knows how it came about."""

    finish: Optional[str]
    """Why it ended: "stop", "stop_text", "length" or "cancelled"."""
    tokens: List[int]
    """Its tokens."""
    prompt_tokens: int
    """How many tokens stood before it."""
    scores: Optional[List[Score]]
    """How likely each token was, where `logprobs` asked for it."""

    @classmethod
    def of(cls, text: str, finish: Optional[str], tokens: List[int], prompt_tokens: int, scores: Optional[List[Score]]) -> "Answer":
        """An answer of these parts."""
        answer = cls(text)
        answer.finish, answer.tokens, answer.prompt_tokens, answer.scores = finish, tokens, prompt_tokens, scores
        return answer
