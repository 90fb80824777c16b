//! Texts and tokens: `/tokenize`, `/detokenize`, `/tokenizer_info`, `/apply-template`, in the forms of vLLM and of llama-server at once.

use axum::{Json, extract::State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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

/// The tokens of a text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Tokens {
    tokens: Listed,
    count: usize,
    max_model_len: usize,
    token_strs: Option<Vec<String>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "TokenList")]
enum Listed {
    Ids(Vec<u32>),
    Pieces(Vec<Piece>),
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TokenPiece")]
struct Piece {
    id: u32,
    piece: String,
}

/// `POST /tokenize`: the ids of `prompt` or `content`, or of `messages` in the model's form.
///
/// # Errors
/// There is no text.
pub async fn tokenize(Asked(model, request): Asked<Tokenize>) -> Result<Json<Tokens>, Problem> {
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
    let (count, max_model_len) = (ids.len(), model.served.context);
    let names = || ids.iter().map(|id| tokens::name(tokenizer, *id)).collect::<Vec<_>>();
    let token_strs = request.return_token_strs.unwrap_or(false).then(names);
    let tokens = match request.with_pieces.unwrap_or(false) {
        true => Listed::Pieces(ids.iter().zip(names()).map(|(&id, piece)| Piece { id, piece }).collect()),
        false => Listed::Ids(ids),
    };
    Ok(Json(Tokens { tokens, count, max_model_len, token_strs }))
}

/// The body of a request to `/detokenize`.
#[derive(Debug, Deserialize, JsonSchema)]
pub struct Detokenize {
    tokens: Vec<u32>,
}

/// The text of ids.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Text {
    prompt: String,
    content: String,
}

/// `POST /detokenize`: the text of ids.
///
/// # Errors
/// An id outside the vocabulary.
pub async fn detokenize(Asked(model, request): Asked<Detokenize>) -> Result<Json<Text>, Problem> {
    let vocab = model.served.engine.model().config().vocab;
    if let Some(id) = request.tokens.iter().find(|id| **id as usize >= vocab) {
        return Err(Problem::field("tokens", format!("there is no token {id}: the vocabulary has {vocab}")));
    }
    let text = model.served.engine.tokenizer().decode(&request.tokens);
    Ok(Json(Text { prompt: text.clone(), content: text }))
}

/// Special tokens.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TokenizerInfo")]
pub struct Info {
    tokenizer_class: &'static str,
    eos_token: Option<String>,
    pad_token: Option<String>,
    sep_token: Option<String>,
    bos_token: Option<String>,
    add_bos_token: bool,
    add_eos_token: bool,
    chat_template: Option<String>,
    vocab_size: usize,
}

/// `GET /tokenizer_info`: what a client needs to know of special tokens.
///
/// # Errors
/// The model is not there yet.
pub async fn tokenizer_info(State(server): State<Shared>) -> Result<Json<Info>, Problem> {
    let tokenizer = server.model()?.served.engine.tokenizer();
    let vocab = tokenizer.vocab();
    let text = |id: Option<u32>| id.map(|id| tokenizer.piece(id).to_owned());
    Ok(Json(Info {
        tokenizer_class: "LlamaTokenizer",
        eos_token: text(vocab.eod),
        pad_token: text(vocab.pad.or(vocab.eod)),
        sep_token: text(vocab.sep),
        bos_token: None,
        add_bos_token: false,
        add_eos_token: false,
        chat_template: vocab.chat_template.clone(),
        vocab_size: tokenizer.len(),
    }))
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

/// A prompt.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Prompt {
    prompt: String,
    tokens: Vec<u32>,
}

/// `POST /apply-template`: messages as the prompt that the model reads. What a message quotes of special strings is then special, which it is not in
/// a chat: so its ids are here, too.
///
/// # Errors
/// The template refuses the messages.
pub async fn apply_template(Asked(model, request): Asked<Template>) -> Result<Json<Prompt>, Problem> {
    let tokenizer = model.served.engine.tokenizer();
    let (turns, calls) = (turns(&request.messages)?, request.tools.calls()?);
    let (thinking, close) = (request.thinking.wanted(), request.add_generation_prompt.unwrap_or(true));
    let ids = prompt(tokenizer, turns, calls.as_ref(), thinking, close)?;
    Ok(Json(Prompt { prompt: tokenizer.decode(&ids), tokens: ids }))
}
