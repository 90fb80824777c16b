//! Responses that clients may come back to: kept in memory, so many and so many bytes of them, and the oldest go first.

use std::collections::VecDeque;

use serde_json::json;

use super::output::Response;
use crate::messages::Turn;

/// Responses that are kept.
const MOST: usize = 1024;
/// Bytes of all of them.
const MOST_BYTES: usize = 64 << 20;

/// All that are kept.
#[derive(Debug, Default)]
pub struct Responses {
    /// The oldest first.
    kept: VecDeque<Kept>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    id: String,
    response: Response,
    said: Vec<Turn>,
    bytes: usize,
}

impl Responses {
    /// Keeps one: what the client is told of it, and all that was said up to its end.
    pub fn keep(&mut self, id: String, response: Response, said: Vec<Turn>) {
        let text: usize = said.iter().map(Turn::bytes).sum();
        let bytes = json!(response).to_string().len() + text;
        self.bytes += bytes;
        self.kept.push_back(Kept { id, response, said, bytes });
        while self.kept.len() > MOST || self.bytes > MOST_BYTES {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.bytes;
        }
    }

    /// What the client is told of this one, if it is there.
    pub fn response(&self, id: &str) -> Option<&Response> {
        self.find(id).map(|place| &self.kept[place].response)
    }

    /// What was said up to its end.
    pub fn said(&self, id: &str) -> Option<&[Turn]> {
        self.find(id).map(|place| &self.kept[place].said[..])
    }

    /// Forgets it. Whether it was there.
    pub fn forget(&mut self, id: &str) -> bool {
        let gone = self.find(id).and_then(|place| self.kept.remove(place));
        self.bytes -= gone.as_ref().map_or(0, |kept| kept.bytes);
        gone.is_some()
    }

    /// The newest are asked for most.
    fn find(&self, id: &str) -> Option<usize> {
        self.kept.iter().rposition(|kept| kept.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(responses: &mut Responses, name: usize, bytes: usize) {
        responses.keep(name.to_string(), Response::default(), vec![Turn::new("user", "a".repeat(bytes))]);
    }

    #[test]
    fn the_oldest_go_first() {
        let mut responses = Responses::default();
        (0..=MOST).for_each(|name| keep(&mut responses, name, 1));
        assert!(responses.response("0").is_none() && responses.response("1").is_some());
        keep(&mut responses, MOST + 1, MOST_BYTES / 2);
        keep(&mut responses, MOST + 2, MOST_BYTES / 2);
        assert_eq!(responses.kept.len(), 1, "two halves and their roles are too many bytes");
        assert!(responses.said(&(MOST + 2).to_string()).is_some());
        keep(&mut responses, MOST + 3, MOST_BYTES);
        assert_eq!((responses.kept.len(), responses.bytes), (0, 0), "one that is too large is not kept");
    }

    #[test]
    fn what_is_forgotten_takes_no_room() {
        let mut responses = Responses::default();
        keep(&mut responses, 1, 100);
        assert_eq!(responses.said("1").unwrap()[0].content.len(), 100);
        assert!(responses.forget("1") && !responses.forget("1"));
        assert!(responses.bytes == 0 && responses.response("1").is_none());
    }
}
