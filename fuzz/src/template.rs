//! Chat templates from files, and conversations in JSON: a prompt or an error, in bounded time and memory.

use yuan::{
    config::Family,
    tokenizer::{Conversation, Tokenizer},
    vocab::{CHAT_TEMPLATE, Vocab, YUAN3_CHAT_TEMPLATE},
};

use crate::{Seed, model::letters};

/// What stands before a zero is a template, what stands behind it a conversation; the first byte takes a usual one for either.
pub fn run(data: &[u8]) {
    let Some((form, data)) = data.split_first() else { return };
    let at = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let template = String::from_utf8_lossy(&data[..at]).into_owned();
    let conversation = String::from_utf8_lossy(data.get(at + 1..).unwrap_or_default());
    let family = [Family::Yuan2, Family::Yuan3][usize::from(form / 4 % 2)];
    let template = match form % 4 {
        0 => CHAT_TEMPLATE.to_owned(),
        1 => YUAN3_CHAT_TEMPLATE.to_owned(),
        _ => template,
    };
    let vocab = Vocab { chat_template: Some(template), ..letters(family, 280) };
    let tokenizer = Tokenizer::new(vocab).expect("a vocabulary");
    let conversation = Conversation::parse(if form & 8 == 0 { &conversation } else { CONVERSATION });
    if let Ok(conversation) = conversation
        && let Ok(prompt) = tokenizer.prompt(&conversation.chat())
    {
        assert!(prompt.iter().all(|id| (*id as usize) < tokenizer.len()));
    }
    let _ = (tokenizer.has_tools(), tokenizer.has_thinking());
}

const CONVERSATION: &str = r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"weather? <sep> s"},{"role":"assistant",
"content":"<think>a</think>b","reasoning_content":"r","tool_calls":[{"name":"f","arguments":{"x":[1.5,"y"]}}]},{"role":"tool","content":"21"}],
"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}}],"enable_thinking":true}"#;

/// The templates that there are, and what stands in those of others.
pub fn seeds() -> Vec<Seed> {
    let of =
        |form: u8, template: &str| [&[form], template.as_bytes(), &[0], CONVERSATION.as_bytes()].concat();
    let others = "{% macro f(x) %}{{ x }}{% endmacro %}{% set ns = namespace(a=1) %}{% for m in messages %}{% set ns.a = ns.a + loop.index %}{{ f(m['role'])|trim }}\
        {{ m.content.split('</think>')[-1].strip() }}{{ tools|tojson }}{{ messages[-1:]|length }}{% endfor %}{{ raise_exception('no') if ns.a is none }}";
    vec![of(2, CHAT_TEMPLATE), of(6, YUAN3_CHAT_TEMPLATE), of(10, others), of(0, ""), of(5, "")]
}
