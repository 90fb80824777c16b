//! `GET /experts`: what the experts do, and what that costs, as events or once.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::stream::unfold;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use yuan::session::Place;

use crate::{
    problem::Problem,
    server::{Loaded, Server, Shared},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// While nothing changes for so long, a comment shows that the connection lives.
const PING: Duration = Duration::from_secs(5);

/// An event with all figures now and whenever one has changed; the figures alone where a client accepts `application/json`.
///
/// # Errors
/// The model is not there yet.
pub async fn experts(State(server): State<Shared>, headers: HeaderMap) -> Result<Response, Problem> {
    let model = server.model()?.clone();
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepts.contains("application/json") && !accepts.contains("text/event-stream") {
        return Ok(Json(Figures::of(&server, &model)).into_response());
    }
    let ending = server.ending.subscribe();
    let state = (server, model, ending, None, Instant::now());
    let events = unfold(state, |(server, model, mut ending, last, looked)| async move {
        let mut pause = PAUSE.saturating_sub(looked.elapsed());
        if last.is_none() {
            pause = Duration::ZERO;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // A page that looks on does not keep the server.
                _ = ending.wait_for(|ending| *ending) => return None,
            }
            let now = Some(Figures::of(&server, &model));
            if now != last {
                let event = sse::Event::default().data(json!(now).to_string());
                return Some((Ok::<_, Infallible>(event), (server, model, ending, now, Instant::now())));
            }
            pause = PAUSE;
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(PING).text("ping")).into_response())
}

/// All figures now. Lists have an entry for each layer.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "Experts")]
pub struct Figures {
    model: String,
    mode: &'static str,
    layers: usize,
    experts: usize,
    experts_per_token: usize,
    /// Tokens that went to each expert.
    chosen: Vec<Vec<u64>>,
    /// A letter for the place of each: on the drive (d), in memory (m), on the GPU (g).
    places: Vec<String>,
    tokens: usize,
    expert_hits: u64,
    expert_misses: u64,
    bytes_read: u64,
    expert_bytes: u64,
    memory: Memory,
    /// Running and waiting.
    requests: usize,
    sequences: usize,
    sequences_most: u64,
    queue: usize,
    queue_most: u64,
}

/// Bytes.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct Memory {
    budget: u64,
    trunk: u64,
    experts: u64,
    keys_and_values: u64,
    scratch: u64,
}

impl Figures {
    fn of(server: &Server, model: &Loaded) -> Self {
        let engine = &model.served.engine;
        let (experts, placement) = (engine.experts(), engine.model().placement());
        let (usage, work, pool) =
            (engine.model().pager().usage(), engine.model().work(), engine.model().pool_use());
        let letter = |place: &Place| match place {
            Place::Drive => 'd',
            Place::Memory => 'm',
            Place::Gpu => 'g',
        };
        let per_layer = experts.per_layer.max(1);
        let in_memory = experts.places.iter().filter(|place| **place == Place::Memory).count() as u64;
        let (requests, sequences) = (server.gate.inside(), server.gate.running());
        Self {
            model: model.served.name.clone(),
            mode: engine.model().pager().mode().name(),
            layers: experts.layers,
            experts: experts.per_layer,
            experts_per_token: experts.per_token,
            chosen: experts.chosen.chunks(per_layer).map(<[_]>::to_vec).collect(),
            places: experts.places.chunks(per_layer).map(|row| row.iter().map(letter).collect()).collect(),
            tokens: work.prefill.tokens + work.decode.tokens,
            expert_hits: usage.prefill.hits + usage.decode.hits,
            expert_misses: usage.prefill.misses + usage.decode.misses,
            bytes_read: usage.bytes_read,
            expert_bytes: placement.expert_bytes,
            memory: Memory {
                budget: placement.budget.bytes,
                trunk: placement.trunk,
                experts: in_memory * placement.expert_bytes,
                keys_and_values: pool.bytes,
                scratch: placement.scratch,
            },
            requests,
            sequences,
            sequences_most: server.options.sequences,
            queue: requests.saturating_sub(sequences),
            queue_most: server.options.queue,
        }
    }
}
