//! `POST /slots/{id}?action=save|restore|erase`: the conversation that a slot has had, in a file and back. Its pages serve any request that begins alike,
//! whichever slot that runs in.

use std::{
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Instant,
};

use axum::{
    Json,
    extract::{Path, RawQuery, State},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use yuan::session::Session;

use crate::{
    asked::Asked,
    problem::Problem,
    server::{Loaded, Shared},
    work::as_sequence,
};

/// Bytes of the longest name of a file.
const LONGEST_NAME: usize = 128;

/// The body of a request.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(rename = "SlotFile")]
pub struct Request {
    /// In the folder of `--sessions`.
    filename: Option<String>,
}

/// What was done, as llama-server tells it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "SlotAction")]
pub enum Done {
    Saved { id_slot: usize, filename: String, n_saved: usize, n_written: u64, timings: SaveTime },
    Restored { id_slot: usize, filename: String, n_restored: usize, n_read: u64, timings: RestoreTime },
    Erased { id_slot: usize, n_erased: usize },
}

/// How long it took.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SaveTime {
    save_ms: f64,
}

/// How long it took.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RestoreTime {
    restore_ms: f64,
}

/// Does what the address says.
///
/// # Errors
/// What cannot be done.
pub async fn act(
    State(server): State<Shared>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    Asked(model, request): Asked<Request>,
) -> Result<Json<Done>, Problem> {
    let places = usize::try_from(server.options.sequences).unwrap_or(usize::MAX);
    let id = id.parse().ok().filter(|id| *id < places).ok_or_else(|| {
        let message = format!("there is no slot {id:?}; give a number from 0 to {}", places - 1);
        Problem { message, ..Problem::not_found() }
    })?;
    let action =
        query.as_deref().unwrap_or_default().split('&').find_map(|field| field.strip_prefix("action="));
    let file = || file(&server, request.filename.as_deref());
    match action {
        Some("save") => {
            let (path, tokens) = (file()?, said(&server, id)?);
            inside(&server, &model, move |model| save(model, id, &path, &tokens)).await
        }
        Some("restore") => {
            let path = file()?;
            let slots = server.clone();
            inside(&server, &model, move |model| {
                let (reply, tokens) = restore(model, id, &path)?;
                slots.slots.said(id, tokens);
                Ok(reply)
            })
            .await
        }
        Some("erase") => {
            let tokens = said(&server, id)?;
            server.slots.said(id, Vec::new());
            inside(&server, &model, move |model| {
                model.served.session()?.forget(&tokens);
                Ok(Done::Erased { id_slot: id, n_erased: tokens.len() })
            })
            .await
        }
        _ => Err(Problem::field(
            "action",
            "give the action save, restore or erase, as in /slots/0?action=save",
        )),
    }
}

/// Does something with the memory of a sequence, when there is room for one.
async fn inside(
    server: &Shared,
    model: &Arc<Loaded>,
    act: impl FnOnce(&Loaded) -> Result<Done, Problem> + Send + 'static,
) -> Result<Json<Done>, Problem> {
    as_sequence(server, model, server.gate.enter()?, act).await.map(Json)
}

/// The tokens of the last conversation of a slot.
fn said(server: &Shared, id: usize) -> Result<Vec<u32>, Problem> {
    server.slots.last(id).ok_or_else(|| {
        Problem::field("id", format!("slot {id} has had no conversation, or has one now; look at /slots"))
    })
}

/// A file in the folder of sessions, and nowhere else.
fn file(server: &Shared, name: Option<&str>) -> Result<PathBuf, Problem> {
    let folder = server.options.sessions.as_deref().ok_or_else(|| {
        Problem::field("filename", "the server keeps no sessions; start it with --sessions FOLDER")
    })?;
    let allowed = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let name = name.unwrap_or_default();
    if name.is_empty() || name.len() > LONGEST_NAME || name.starts_with('.') || !name.chars().all(allowed) {
        let message = format!(
            "{name:?} is no name of a saved session: give letters, digits, _, - and ., up to {LONGEST_NAME} bytes"
        );
        return Err(Problem::field("filename", message));
    }
    Ok(folder.join(name))
}

fn save(model: &Loaded, id: usize, path: &FilePath, tokens: &[u32]) -> Result<Done, Problem> {
    let begun = Instant::now();
    let mut session = model.served.session()?;
    // What is not there any more is computed again.
    session.sync(tokens, |_| std::ops::ControlFlow::Continue(()))?;
    session.save(path, None)?;
    let bytes = path.metadata().map_or(0, |file| file.len());
    Ok(Done::Saved {
        id_slot: id,
        filename: name(path),
        n_saved: tokens.len(),
        n_written: bytes,
        timings: SaveTime { save_ms: begun.elapsed().as_secs_f64() * 1e3 },
    })
}

fn restore(model: &Loaded, id: usize, path: &FilePath) -> Result<(Done, Vec<u32>), Problem> {
    let begun = Instant::now();
    let bytes = path.metadata().map_or(0, |file| file.len());
    let served = &model.served;
    if !path.is_file() {
        return Err(Problem::field("filename", format!("no session is saved as {}", name(path))));
    }
    let restored = Session::restore(served.engine.clone(), path, Some(served.context))
        .map_err(|error| Problem::field("filename", error.to_string()))?;
    let (session, tokens) = (&restored.session, restored.session.tokens().to_vec());
    if session.kv_type() != served.kv {
        let message = format!(
            "{} has keys and values of the type {}, and the server {}: start it with --kv {}",
            name(path),
            session.kv_type().name(),
            served.kv.name(),
            session.kv_type().name()
        );
        return Err(Problem::field("filename", message));
    }
    served.engine.warm(&restored.hot);
    // As any session that ends, it leaves what it has to those that begin alike.
    drop(restored);
    let reply = Done::Restored {
        id_slot: id,
        filename: name(path),
        n_restored: tokens.len(),
        n_read: bytes,
        timings: RestoreTime { restore_ms: begun.elapsed().as_secs_f64() * 1e3 },
    };
    Ok((reply, tokens))
}

fn name(path: &FilePath) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
