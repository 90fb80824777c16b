//! `GET /slots` and `GET /props`: what runs, and what is served.

use std::sync::atomic::Ordering::Relaxed;

use axum::{
    Json,
    extract::{RawQuery, State},
    http::StatusCode,
};
use serde_json::{Value, json};
use yuan::sampler::Settings;

use crate::{
    problem::Problem,
    server::{Loaded, Shared},
    slots::Slot,
};

/// What each sequence does. Texts are not told.
///
/// # Errors
/// The model is not there yet; with `fail_on_no_slot`, all sequences run.
pub async fn slots(State(server): State<Shared>, RawQuery(query): RawQuery) -> Result<Json<Value>, Problem> {
    let (model, all) = (server.model()?, server.slots.all());
    let asks = query.is_some_and(|query| query.split('&').any(|field| field == "fail_on_no_slot=1"));
    if asks && all.iter().all(Option::is_some) {
        return Err(Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            message: "all sequences run; try again soon".into(),
            ..Problem::busy(server.gate.inside())
        });
    }
    let slots = all.iter().enumerate().map(|(id, slot)| shown(model, id, slot.as_deref()));
    Ok(Json(slots.collect()))
}

fn shown(model: &Loaded, id: usize, slot: Option<&Slot>) -> Value {
    let mut shown = json!({
        "id": id, "id_task": -1, "n_ctx": model.served.context, "speculative": false, "is_processing": slot.is_some(),
    });
    if let Some(slot) = slot {
        let decoded = slot.decoded.load(Relaxed);
        shown["id_task"] = json!(slot.number);
        shown["n_prompt_tokens"] = json!(slot.prompt);
        shown["params"] = params(&slot.settings);
        shown["params"]["n_predict"] = json!(slot.most);
        shown["next_token"] = json!([{
            "has_next_token": decoded < slot.most, "has_new_line": false, "n_remain": slot.most.saturating_sub(decoded), "n_decoded": decoded,
        }]);
    }
    shown
}

fn params(settings: &Settings) -> Value {
    json!({
        "temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p, "min_p": settings.min_p,
        "repeat_penalty": settings.repeat_penalty, "repeat_last_n": settings.repeat_last_n.min(i32::MAX as usize),
        "presence_penalty": settings.presence_penalty, "frequency_penalty": settings.frequency_penalty, "seed": settings.seed,
    })
}

/// What is served.
///
/// # Errors
/// The model is not there yet.
pub async fn props(State(server): State<Shared>) -> Result<Json<Value>, Problem> {
    let model = server.model()?;
    let tokenizer = model.served.engine.tokenizer();
    let vocab = tokenizer.vocab();
    let mut defaults = shown(model, 0, None);
    defaults["params"] = params(&Settings { temperature: 1.0, ..Settings::default() });
    Ok(Json(json!({
        "default_generation_settings": defaults, "total_slots": server.options.sequences, "model_alias": model.served.name,
        "model_path": model.served.engine.container().path(), "chat_template": vocab.chat_template, "bos_token": "",
        "eos_token": vocab.eod.map(|id| tokenizer.piece(id)), "modalities": { "vision": false, "audio": false },
        "build_info": format!("yuan {}", yuan::VERSION),
    })))
}
