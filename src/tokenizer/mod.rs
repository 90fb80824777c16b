//! Text to ids and back, as `LlamaTokenizer` does it.
