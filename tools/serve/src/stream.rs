//! Answers as server-sent events, or collected.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{self, KeepAlive, Sse},
};
use futures_util::stream::unfold;
use serde_json::Value;
use yuan::session::{Finish, Score};

use crate::{
    piece::Scored,
    problem::Problem,
    work::{Answers, Event, Figures},
};

/// While nothing is said for so long, a comment shows that the connection lives.
const PING: Duration = Duration::from_secs(5);

/// How an endpoint writes what its sequences say.
pub trait Writer: Send + 'static {
    /// The chunks of an event.
    fn chunks(&mut self, place: usize, event: Event) -> Vec<Value>;
    /// The chunks behind the last event.
    fn end(&mut self) -> Vec<Value>;
}

/// The answers as `data: {…}` chunks with `data: [DONE]` at the end. An error is a chunk with `error`, and the end.
pub fn stream(answers: Answers, writer: impl Writer) -> Response {
    struct State<W> {
        answers: Option<Answers>,
        writer: W,
        ready: VecDeque<sse::Event>,
    }
    let data = |value: &Value| sse::Event::default().data(value.to_string());
    let state = State { answers: Some(answers), writer, ready: VecDeque::new() };
    let events = unfold(state, move |mut state| async move {
        while state.ready.is_empty() {
            let answers = state.answers.as_mut()?;
            let chunks = match answers.next().await {
                Some((_, Event::Failed(problem))) => {
                    state.answers = None;
                    vec![problem.json()]
                }
                Some((place, event)) => state.writer.chunks(place, event),
                None => {
                    state.answers = None;
                    let mut end: VecDeque<_> = state.writer.end().iter().map(data).collect();
                    end.push_back(sse::Event::default().data("[DONE]"));
                    state.ready = end;
                    continue;
                }
            };
            state.ready.extend(chunks.iter().map(data));
        }
        let event = state.ready.pop_front()?;
        Some((Ok::<_, Infallible>(event), state))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(PING).text("ping")).into_response()
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
