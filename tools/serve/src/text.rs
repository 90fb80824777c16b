//! Texts and tokens: `/tokenize`, `/detokenize`, `/tokenizer_info`, `/apply-template`, in the forms of vLLM and of llama-server at once.

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use yuan::tokenizer::Special;

use crate::{
    asked::Asked,
    conversation::{Thinking, prompt},
    messages::{Said, turns},
    openai::tools::Tools,
    problem::Problem,
    server::Shared,
    tokens,
};

/// The body of a request to `/tokenize`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Tokenize {
    prompt: Option<String>,
    content: Option<String>,
    messages: Option<Vec<Said>>,
    add_generation_prompt: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
    return_token_strs: Option<bool>,
}

/// `POST /tokenize`: the ids of `prompt` or `content`, or of `messages` in the model's form.
///
/// # Errors
/// There is no text.
pub async fn tokenize(Asked(model, request): Asked<Tokenize>) -> Result<Json<Value>, Problem> {
    let tokenizer = model.served.engine.tokenizer();
    let special = if request.parse_special.unwrap_or(true) { Special::Parse } else { Special::AsText };
    let ids = match (request.prompt.or(request.content), &request.messages) {
        (Some(text), _) => tokenizer.encode(&text, special),
        (None, Some(said)) => {
            prompt(tokenizer, turns(said)?, None, None, request.add_generation_prompt.unwrap_or(true))?
        }
        (None, None) => {
            return Err(Problem::field("prompt", "there is no text; give prompt, content or messages"));
        }
    };
    let (count, most) = (ids.len(), model.served.context);
    let names = || ids.iter().map(|id| tokens::name(tokenizer, *id)).collect::<Vec<_>>();
    let strings = request.return_token_strs.unwrap_or(false).then(names);
    let listed = match request.with_pieces.unwrap_or(false) {
        true => ids.iter().zip(names()).map(|(id, piece)| json!({ "id": id, "piece": piece })).collect(),
        false => json!(ids),
    };
    Ok(Json(json!({ "tokens": listed, "count": count, "max_model_len": most, "token_strs": strings })))
}

/// The body of a request to `/detokenize`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Detokenize {
    tokens: Vec<u32>,
}

/// `POST /detokenize`: the text of ids.
///
/// # Errors
/// An id outside the vocabulary.
pub async fn detokenize(Asked(model, request): Asked<Detokenize>) -> Result<Json<Value>, Problem> {
    let vocab = model.served.engine.model().config().vocab;
    if let Some(id) = request.tokens.iter().find(|id| **id as usize >= vocab) {
        return Err(Problem::field("tokens", format!("there is no token {id}: the vocabulary has {vocab}")));
    }
    let text = model.served.engine.tokenizer().decode(&request.tokens);
    Ok(Json(json!({ "prompt": text, "content": text })))
}

/// `GET /tokenizer_info`: what a client needs to know of special tokens.
///
/// # Errors
/// The model is not there yet.
pub async fn tokenizer_info(State(server): State<Shared>) -> Result<Json<Value>, Problem> {
    let tokenizer = server.model()?.served.engine.tokenizer();
    let vocab = tokenizer.vocab();
    let text = |id: Option<u32>| id.map(|id| tokenizer.piece(id));
    Ok(Json(json!({
        "tokenizer_class": "LlamaTokenizer", "eos_token": text(vocab.eod), "pad_token": text(vocab.pad.or(vocab.eod)), "sep_token": text(vocab.sep),
        "bos_token": null, "add_bos_token": false, "add_eos_token": false, "chat_template": vocab.chat_template, "vocab_size": tokenizer.len(),
    })))
}

/// The body of a request to `/apply-template`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Template {
    messages: Vec<Said>,
    add_generation_prompt: Option<bool>,
    #[serde(flatten)]
    tools: Tools,
    #[serde(flatten)]
    thinking: Thinking,
}

/// `POST /apply-template`: messages as the prompt that the model reads. What a message quotes of special strings is then special, which it is not in
/// a chat: so its ids are here, too.
///
/// # Errors
/// The template refuses the messages.
pub async fn apply_template(Asked(model, request): Asked<Template>) -> Result<Json<Value>, Problem> {
    let tokenizer = model.served.engine.tokenizer();
    let (turns, calls) = (turns(&request.messages)?, request.tools.calls()?);
    let (thinking, close) = (request.thinking.wanted(), request.add_generation_prompt.unwrap_or(true));
    let ids = prompt(tokenizer, turns, calls.as_ref(), thinking, close)?;
    Ok(Json(json!({ "prompt": tokenizer.decode(&ids), "tokens": ids })))
}
