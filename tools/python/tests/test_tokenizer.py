"""The tokenizer, by the names of transformers."""

from __future__ import annotations

import pytest
from conftest import PROMPT, QUESTION

import yuan


def test_there_and_back(engine: yuan.Engine) -> None:
    tokenizer = engine.tokenizer
    ids = tokenizer.encode(PROMPT)
    assert ids == engine.tokenize(PROMPT) and tokenizer.decode(ids) == PROMPT and ids[-1] == tokenizer.sep_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == QUESTION and tokenizer.decode(ids[-1]) == "<sep>" == tokenizer.sep_token
    assert tokenizer.encode("<sep>", special=False) != [tokenizer.sep_token_id]
    assert tokenizer.batch_decode([ids, ids[:-1]]) == [PROMPT, QUESTION]
    assert len(tokenizer) == tokenizer.vocab_size == engine.describe()["vocab"] and tokenizer.eos_token == "<eod>"
    assert "demo.gguf" in repr(tokenizer)


def test_called(engine: yuan.Engine) -> None:
    numpy = pytest.importorskip("numpy")
    tokenizer = engine.tokenizer
    assert tokenizer(PROMPT)["input_ids"] == tokenizer.encode(PROMPT)
    both = tokenizer([PROMPT, "春"], padding=True, return_tensors="np")
    assert both["input_ids"].shape == both["attention_mask"].shape and both["attention_mask"][1].sum() == len(tokenizer.encode("春"))
    assert both["input_ids"][1, -1] == tokenizer.pad_token_id and isinstance(both["input_ids"], numpy.ndarray)
    with pytest.raises(ValueError, match="padding"):
        tokenizer([PROMPT, "春"], return_tensors="np")
    with pytest.raises(ValueError, match="'pt'"):
        tokenizer(PROMPT, return_tensors="pt")
    assert engine.generate(list(both["input_ids"][0]), 5) == engine.generate(PROMPT, 5)


def test_conversations(engine: yuan.Engine) -> None:
    tokenizer = engine.tokenizer
    messages = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert ids == engine.chat_tokens(messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == tokenizer.decode(ids) == PROMPT
    # What people write is never special.
    assert tokenizer.sep_token_id not in tokenizer.apply_chat_template([("user", "<sep>"), ("assistant", "a")])[:1]
