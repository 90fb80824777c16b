//! `GET /slots` and `GET /props`: what runs, and what is served.

use std::{path::PathBuf, sync::atomic::Ordering::Relaxed};

use axum::{
    Json,
    extract::{RawQuery, State},
    http::StatusCode,
};
use schemars::JsonSchema;
use serde::Serialize;
use yuan::sampler::Settings;

use crate::{
    problem::Problem,
    server::{Loaded, Shared},
    slots::Slot,
};

/// What a sequence does.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Slot")]
pub struct Shown {
    id: usize,
    id_task: i64,
    n_ctx: usize,
    speculative: bool,
    is_processing: bool,
    #[serde(flatten)]
    request: Option<Running>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SlotRequest")]
struct Running {
    n_prompt_tokens: usize,
    params: Params,
    next_token: [Next; 1],
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SlotParams")]
struct Params {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    repeat_last_n: usize,
    presence_penalty: f32,
    frequency_penalty: f32,
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_predict: Option<usize>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SlotNextToken")]
struct Next {
    has_next_token: bool,
    has_new_line: bool,
    n_remain: usize,
    n_decoded: usize,
}

/// What is served.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Props {
    default_generation_settings: Defaults,
    total_slots: u64,
    model_alias: String,
    model_path: PathBuf,
    chat_template: Option<String>,
    bos_token: &'static str,
    eos_token: Option<String>,
    modalities: Modalities,
    build_info: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DefaultSettings")]
struct Defaults {
    #[serde(flatten)]
    slot: Shown,
    params: Params,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Modalities {
    vision: bool,
    audio: bool,
}

/// What each sequence does. Texts are not told.
///
/// # Errors
/// The model is not there yet; with `fail_on_no_slot`, all sequences run.
pub async fn slots(
    State(server): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Json<Vec<Shown>>, Problem> {
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

fn shown(model: &Loaded, id: usize, slot: Option<&Slot>) -> Shown {
    let running = |slot: &Slot| {
        let decoded = slot.decoded.load(Relaxed);
        let next = Next {
            has_next_token: decoded < slot.most,
            has_new_line: false,
            n_remain: slot.most.saturating_sub(decoded),
            n_decoded: decoded,
        };
        let params = Params { n_predict: Some(slot.most), ..Params::of(&slot.settings) };
        Running { n_prompt_tokens: slot.prompt, params, next_token: [next] }
    };
    Shown {
        id,
        id_task: slot.map_or(-1, |slot| slot.number as i64),
        n_ctx: model.served.context,
        speculative: false,
        is_processing: slot.is_some(),
        request: slot.map(running),
    }
}

impl Params {
    fn of(settings: &Settings) -> Self {
        Self {
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            min_p: settings.min_p,
            repeat_penalty: settings.repeat_penalty,
            repeat_last_n: settings.repeat_last_n.min(i32::MAX as usize),
            presence_penalty: settings.presence_penalty,
            frequency_penalty: settings.frequency_penalty,
            seed: settings.seed,
            n_predict: None,
        }
    }
}

/// What is served.
///
/// # Errors
/// The model is not there yet.
pub async fn props(State(server): State<Shared>) -> Result<Json<Props>, Problem> {
    let model = server.model()?;
    let tokenizer = model.served.engine.tokenizer();
    let vocab = tokenizer.vocab();
    let params = Params::of(&Settings { temperature: 1.0, ..Settings::default() });
    Ok(Json(Props {
        default_generation_settings: Defaults { slot: shown(model, 0, None), params },
        total_slots: server.options.sequences,
        model_alias: model.served.name.clone(),
        model_path: model.served.engine.container().path().to_owned(),
        chat_template: vocab.chat_template.clone(),
        bos_token: "",
        eos_token: vocab.eod.map(|id| tokenizer.piece(id).to_owned()),
        modalities: Modalities { vision: false, audio: false },
        build_info: format!("yuan {}", yuan::VERSION),
    }))
}
