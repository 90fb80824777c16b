//! A conversation: messages, and the session that holds as much of them as has been run.

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use yuan::{
    Error,
    model::KvType,
    sampler::Sampler,
    session::{Engine, Finish, Limits, Session},
    tokenizer::Message,
};

use crate::{
    answer::{Answer, answer},
    sampling::Sampling,
};

/// Messages with the session that has read them.
pub struct Conversation {
    engine: Arc<Engine>,
    sampling: Sampling,
    session: Session,
    sampler: Sampler,
    messages: Vec<Message>,
    /// What ends an answer, but for the number of its tokens.
    limits: Limits,
    /// Of the last answer.
    last: Option<Figures>,
}

/// What `/stats` tells of an answer.
struct Figures {
    reused: usize,
    computed: usize,
    tokens: usize,
    seed: Option<u64>,
    rates: (f64, f64),
}

/// An answer, and what a full context has done to it.
pub struct Reply {
    pub answer: Answer,
    pub prompt: Vec<u32>,
    /// It ended because the context was full.
    pub full: bool,
    /// Questions that were dropped, with their answers, to make room for this one.
    pub dropped: usize,
    /// Tokens were dropped while it was written.
    pub shifted: bool,
}

/// Messages as they stand in the note of a saved session.
#[derive(Serialize, Deserialize)]
struct Note {
    messages: Vec<(String, String)>,
}

const SYSTEM: &str = "system";

impl Conversation {
    /// An empty conversation with room for `context` tokens. With a shift among the limits of its answers, what does not fit any more is dropped from its
    /// beginning, but for so many tokens.
    pub fn new(
        engine: Arc<Engine>,
        context: usize,
        kv: KvType,
        sampling: Sampling,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let session = Session::new(engine.clone(), context, kv)?;
        let sampler = sampling.sampler(&engine)?;
        Ok(Self { engine, sampling, session, sampler, messages: Vec::new(), limits, last: None })
    }

    /// Asks `question`, and streams the answer to `show`. A question that does not fit, or whose reading is stopped, is as if it
    /// had not been asked.
    pub fn ask(
        &mut self,
        question: &str,
        most: usize,
        show: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Reply> {
        self.messages.push(Message::new("user", question));
        let reply = self.reply(most, show);
        match &reply {
            Ok(reply) => self.messages.push(Message::new("assistant", reply.answer.text.as_str())),
            Err(_) => {
                self.messages.pop();
            }
        }
        reply
    }

    fn reply(&mut self, most: usize, show: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<Reply> {
        let capacity = self.session.capacity();
        let (prompt, dropped) = self.prompt(capacity)?;
        if prompt.len() > capacity {
            let wanted = prompt.len();
            return Err(Error::ContextFull { capacity, wanted }).context(
                "the conversation has become too long: /undo the last questions, /reset it, shorten the question, or start again with \
                 --context-shift 0, which drops what is oldest",
            );
        }
        // The last token of an answer is not run, so it needs no room.
        let room = if self.limits.shift.is_some() { usize::MAX } else { capacity - prompt.len() + 1 };
        let limits = Limits { most: most.min(room), ..self.limits.clone() };
        let answer = answer(&mut self.session, &prompt, &limits, &mut self.sampler, show)?;
        self.last = Some(Figures {
            reused: answer.synced.reused,
            computed: answer.synced.computed,
            tokens: answer.tokens.len(),
            seed: answer.seed,
            rates: answer.rates(),
        });
        // Without either limit an answer has its end from the context.
        let full = answer.finish == Finish::Length && room <= most && self.limits.shift.is_none();
        let shifted = self.session.position() < prompt.len() + answer.tokens.len();
        Ok(Reply { answer, prompt, full, dropped, shifted })
    }

    /// The tokens of the conversation, and how many questions were dropped from it for that: where it does not fit and that is wanted, the oldest ones
    /// until half of what may go is free, but for those among the tokens that stay.
    fn prompt(&mut self, capacity: usize) -> anyhow::Result<(Vec<u32>, usize)> {
        let tokenizer = self.engine.tokenizer();
        let mut prompt = tokenizer.chat(&self.messages, true)?;
        let Some(keep) = self.limits.shift.filter(|_| prompt.len() > capacity) else {
            return Ok((prompt, 0));
        };
        let is_question = |m: &Message| m.role == "user";
        let mut first = self.messages.iter().take_while(|m| m.role == SYSTEM).count();
        let stays = |end: usize| Ok::<_, Error>(tokenizer.chat(&self.messages[..end], false)?.len() <= keep);
        while first + 2 < self.messages.len() && stays(first + 2)? {
            first += 2;
        }
        let (mut messages, mut dropped) = (self.messages.clone(), 0);
        while messages[first..].iter().filter(|m| is_question(m)).count() > 1
            && prompt.len() > keep + capacity.saturating_sub(keep) / 2
        {
            let next = messages[first + 1..].iter().position(is_question).expect("another question");
            messages.drain(first..first + 1 + next);
            dropped += 1;
            prompt = tokenizer.chat(&messages, true)?;
        }
        if prompt.len() <= capacity {
            self.messages = messages;
        }
        Ok((prompt, dropped))
    }

    /// Sets the text that stands before all questions; none when it is empty.
    pub fn set_system(&mut self, text: &str) {
        self.messages.retain(|m| m.role != SYSTEM);
        if !text.is_empty() {
            self.messages.insert(0, Message::new(SYSTEM, text));
        }
    }

    /// Forgets all questions and answers.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        self.messages.retain(|m| m.role == SYSTEM);
        self.sampler = self.sampling.sampler(&self.engine)?;
        self.last = None;
        Ok(())
    }

    /// Takes the last question back, with its answer, and returns it.
    pub fn undo(&mut self) -> Option<String> {
        let question = self.messages.iter().rposition(|m| m.role == "user")?;
        let undone = self.messages.drain(question..).next();
        undone.map(|m| m.content)
    }

    /// Writes the conversation to a file.
    pub fn save(&mut self, file: &Path) -> anyhow::Result<()> {
        let messages = self.messages.iter().map(|m| (m.role.clone(), m.content.clone())).collect();
        self.session.note = serde_json::to_string(&Note { messages })?;
        Ok(self.session.save(file, Some(&self.sampler))?)
    }

    /// Goes on with the conversation of a file; when that fails, with this one.
    pub fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        let restored = Session::restore(self.engine.clone(), file, None)?;
        let mut session = restored.session;
        let Ok(note) = serde_json::from_str::<Note>(&session.note) else {
            bail!(
                "{} holds a session without a conversation: continue it with yuan generate --load",
                file.display()
            );
        };
        session.reserve(self.session.capacity())?;
        self.sampler = self.sampling.resume(&self.engine, restored.sampler)?;
        self.engine.warm(&restored.hot);
        self.session = session;
        self.messages =
            note.messages.into_iter().map(|(role, content)| Message::new(role, content)).collect();
        self.last = None;
        Ok(())
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Number of questions.
    pub fn questions(&self) -> usize {
        self.messages.iter().filter(|m| m.role == "user").count()
    }

    /// Figures for people, a line each.
    pub fn stats(&self) -> Vec<String> {
        let (used, room) = (self.session.position(), self.session.capacity());
        let usage = self.engine.model().pager().usage();
        let touched = usage.uses.iter().filter(|&&n| n > 0).count();
        let mut lines = vec![format!(
            "{} questions; {used} of {room} tokens of context in use; key-value cache in {}",
            self.questions(),
            self.session.kv_type().name()
        )];
        if let Some(Figures { reused, computed, tokens, seed, rates: (prefill, decode) }) = &self.last {
            lines.push(format!(
                "last answer: {reused} tokens reused, {computed} read at {prefill:.1} tok/s, {tokens} written at {decode:.1} tok/s{}",
                seed.map_or_else(String::new, |seed| format!(", seed {seed}"))
            ));
        }
        if !usage.uses.is_empty() {
            lines.push(format!("{touched} of {} experts used so far", usage.uses.len()));
        }
        lines
    }
}
