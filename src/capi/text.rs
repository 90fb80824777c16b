//! Text to tokens and back.

use std::ffi::c_char;

use super::{
    args::{self, Buffer, Out},
    border::call,
    engine::{ENGINES, yuan_engine},
    status::{Failure, yuan_status},
};
use crate::tokenizer::{Conversation, Message, Special};

/// The tokens of a text, UTF-8 of `length` bytes. With `parse_special` (not 0) special strings such as `<sep>` become special tokens:
/// for what a program composed; with 0 they are text: for what a person wrote. Nothing is added at either end. Writes up to
/// `capacity` tokens, and how many there are to `count`; with capacity 0 `tokens` may be NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_tokenize(
    engine: *const yuan_engine,
    text: *const c_char,
    length: usize,
    parse_special: i32,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let (text, buffer) =
            unsafe { (args::text("the text", text, length)?, Buffer::new(tokens, capacity, count)?) };
        let special = if parse_special != 0 { Special::Parse } else { Special::AsText };
        buffer.fill(&ENGINES.get(engine)?.tokenizer().encode(text, special))
    })
}

/// The text of tokens, special tokens as their strings, and what is no UTF-8 as U+FFFD. Tokens outside the vocabulary are nothing.
/// Writes up to `capacity` bytes with a NUL at the end, and the bytes that it needs, the NUL among them, to `needed`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_detokenize(
    engine: *const yuan_engine,
    tokens: *const u32,
    count: usize,
    text: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let (tokens, buffer) =
            unsafe { (args::array("the tokens", tokens, count)?, Buffer::new(text, capacity, needed)?) };
        buffer.fill_text(&ENGINES.get(engine)?.tokenizer().decode(tokens))
    })
}

/// The tokens of a conversation in the form of the model's own template: `count` turns, each with a role ("system", "user",
/// "assistant") and a content, NUL-terminated. Special strings in them stay text. With `add_generation_prompt` (not 0) the
/// conversation is closed so that the model answers. `tokens`, `capacity` and `needed` are as in yuan_tokenize. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_chat_tokenize(
    engine: *const yuan_engine,
    roles: *const *const c_char,
    contents: *const *const c_char,
    count: usize,
    add_generation_prompt: i32,
    tokens: *mut u32,
    capacity: usize,
    needed: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let (roles, contents, buffer) = unsafe {
            let roles = args::array("the roles", roles, count)?;
            let contents = args::array("the contents", contents, count)?;
            (roles, contents, Buffer::new(tokens, capacity, needed)?)
        };
        let message = |(&role, &content)| {
            // SAFETY: the contract of the header.
            let (role, content) =
                unsafe { (args::c_text("a role", role)?, args::c_text("a content", content)?) };
            Ok(Message::new(role, content))
        };
        let messages = roles.iter().zip(contents).map(message).collect::<Result<Vec<_>, Failure>>()?;
        buffer.fill(&ENGINES.get(engine)?.tokenizer().chat(&messages, add_generation_prompt != 0)?)
    })
}

/// The tokens of a conversation with all that a template can be told: `chat` is JSON as OpenAI's clients write it, NUL-terminated,
/// `{"messages": [{"role", "content", "reasoning_content", "tool_calls"}], "tools": […], "enable_thinking": true, "add_generation_prompt": true}`. Special
/// strings in it stay text. `tokens`, `capacity` and `needed` are as in yuan_tokenize. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_chat_tokenize_json(
    engine: *const yuan_engine,
    chat: *const c_char,
    tokens: *mut u32,
    capacity: usize,
    needed: *mut usize,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let (chat, buffer) =
            unsafe { (args::c_text("the conversation", chat)?, Buffer::new(tokens, capacity, needed)?) };
        let conversation = Conversation::parse(chat)?;
        buffer.fill(&ENGINES.get(engine)?.tokenizer().prompt(&conversation.chat())?)
    })
}

/// The id of a special token: "eod" (ends an answer), "sep" (ends a prompt) or "pad"; `YUAN_ERROR_ARGUMENT` where the model has none.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yuan_special_token(
    engine: *const yuan_engine,
    name: *const c_char,
    token: *mut u32,
) -> yuan_status {
    call(|| {
        // SAFETY: the contract of the header.
        let (name, out) =
            unsafe { (args::c_text("the name", name)?, Out::new("the place of the token", token)?) };
        let engine = ENGINES.get(engine)?;
        let vocab = engine.tokenizer().vocab();
        let found = match name {
            "eod" => vocab.eod,
            "sep" => vocab.sep,
            "pad" => vocab.pad,
            _ => None,
        };
        let id =
            found.ok_or_else(|| Failure::argument(format!("the model has no special token {name:?}")))?;
        out.write(id);
        Ok(())
    })
}
