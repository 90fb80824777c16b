//! Answers as server-sent events, as lines, or collected.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::{
    future::ready,
    stream::{StreamExt, unfold},
};
use serde_json::{Value, json};
use yuan::session::{Finish, Score};

use crate::{
    piece::Scored,
    problem::Problem,
    work::{Answers, Event, Figures},
};

/// While nothing is said for so long, a comment shows that the connection lives.
const PING: Duration = Duration::from_secs(5);

/// How chunks lie in the body of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Server-sent events, `data: {…}`.
    Data {
        /// With `data: [DONE]` at the end.
        done: bool,
    },
    /// Server-sent events whose names are the chunks' `type`.
    Events {
        /// The name of an event without data that shows that the connection lives; a comment does where there is none.
        ping: Option<&'static str>,
    },
    /// One JSON a line.
    Lines,
}

/// How an endpoint writes what its sequences say.
pub trait Writer: Send + 'static {
    /// How its chunks lie in the body.
    const FORM: Form = Form::Data { done: true };
    /// The chunks before the first event.
    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }
    /// The chunks of an event.
    fn chunks(&mut self, place: usize, event: Event) -> Vec<Value>;
    /// The chunks behind the last event.
    fn end(&mut self) -> Vec<Value>;
    /// The chunks of a failure, behind which nothing comes.
    fn failed(&mut self, problem: &Problem) -> Vec<Value> {
        vec![json!(problem.failure())]
    }
}

/// The answers in the writer's form.
pub fn stream<W: Writer>(answers: Answers, mut writer: W) -> Response {
    struct State<W> {
        answers: Option<Answers>,
        writer: W,
        /// `None` is the mark of the end.
        ready: VecDeque<Option<Value>>,
    }
    let begin = writer.begin().into_iter().map(Some).collect();
    let state = State { answers: Some(answers), writer, ready: begin };
    let chunks = unfold(state, move |mut state| async move {
        while state.ready.is_empty() {
            let event = state.answers.as_mut()?.next().await;
            let done = event.is_none();
            if matches!(event, None | Some((_, Event::Failed(_)))) {
                state.answers = None;
            }
            let chunks = match event {
                Some((_, Event::Failed(problem))) => state.writer.failed(&problem),
                Some((place, event)) => state.writer.chunks(place, event),
                None => state.writer.end(),
            };
            state.ready.extend(chunks.into_iter().map(Some));
            state.ready.extend(done.then_some(None));
        }
        Some((state.ready.pop_front()?, state))
    });
    let alive = KeepAlive::new().interval(PING);
    match W::FORM {
        Form::Data { done } => {
            let data = move |chunk: Option<Value>| match chunk {
                Some(chunk) => Some(chunk.to_string()),
                None => done.then(|| "[DONE]".to_owned()),
            };
            let event = |data: String| fine(sse::Event::default().data(data));
            let events = chunks.filter_map(move |chunk| ready(data(chunk).map(event)));
            Sse::new(events).keep_alive(alive.text("ping")).into_response()
        }
        Form::Events { ping } => {
            let event = |chunk: Value| {
                sse::Event::default()
                    .event(chunk["type"].as_str().unwrap_or_default())
                    .data(chunk.to_string())
            };
            let events = chunks.filter_map(move |chunk| ready(chunk.map(event).map(fine)));
            let named = |name| sse::Event::default().event(name).data(json!({ "type": name }).to_string());
            let alive =
                ping.map_or_else(|| alive.clone().text("ping"), |name| alive.clone().event(named(name)));
            Sse::new(events).keep_alive(alive).into_response()
        }
        Form::Lines => {
            let lines = chunks.filter_map(|chunk| ready(chunk.map(|chunk| fine(format!("{chunk}\n")))));
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
        }
    }
}

fn fine<T>(chunk: T) -> Result<T, Infallible> {
    Ok(chunk)
}

/// What one sequence has said.
#[derive(Debug, Default)]
pub struct Collected {
    /// Of the prompt, where they were asked for.
    pub prompt: Vec<Score>,
    /// The answer.
    pub text: String,
    /// Its tokens, where they were asked for.
    pub tokens: Vec<Scored>,
    /// Why it ended.
    pub finish: Option<Finish>,
    /// Its figures.
    pub figures: Figures,
}

/// All that one sequence says.
///
/// # Errors
/// Its own.
pub async fn collect_one(answers: Answers) -> Result<Collected, Problem> {
    collect(answers, 1).await.map(|mut all| all.swap_remove(0))
}

/// All that so many sequences say.
///
/// # Errors
/// That of the first sequence that fails.
pub async fn collect(mut answers: Answers, sequences: usize) -> Result<Vec<Collected>, Problem> {
    let mut all: Vec<Collected> = (0..sequences).map(|_| Collected::default()).collect();
    while let Some((place, event)) = answers.next().await {
        let one = &mut all[place];
        match event {
            Event::Reading { .. } => {}
            Event::Prompt(scores) => one.prompt = scores,
            Event::Piece(piece) => {
                one.text.push_str(&piece.text);
                one.tokens.extend(piece.tokens);
            }
            Event::End(finish, figures) => (one.finish, one.figures) = (Some(finish), figures),
            Event::Failed(problem) => return Err(problem),
        }
    }
    Ok(all)
}
