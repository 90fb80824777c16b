//! A conversation: messages, and the session that holds as much of them as has been run.

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use yuan::{
    Error,
    model::KvType,
    sampler::Sampler,
    session::{Drafted, Engine, Finish, Limits, Session},
    tokenizer::{Chat, Message},
};
use yuan_tools::{draft::Drafting, stats::describe_drafts};

use super::talk::{Show, Talk, Told, Turn};
use crate::{
    answer::{answer, to_json},
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
    /// Whether the model thinks before it answers, where that is chosen.
    thinking: Option<bool>,
    /// Whether answers are drafted, and from what.
    drafting: Drafting,
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
    drafted: Drafted,
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
        thinking: Option<bool>,
    ) -> anyhow::Result<Self> {
        let session = Session::new(engine.clone(), context, kv)?;
        let sampler = sampling.sampler(&engine)?;
        let (messages, drafting) = (Vec::new(), Drafting::default());
        Ok(Self { engine, sampling, session, sampler, messages, limits, thinking, drafting, last: None })
    }

    /// Its answers are drafted so.
    pub fn drafted(mut self, drafting: Drafting) -> anyhow::Result<Self> {
        drafting.apply(&mut self.session)?;
        self.drafting = drafting;
        Ok(self)
    }

    /// The text of the answer to the messages, and what is told of it.
    fn reply(&mut self, most: usize, show: Show<'_>) -> anyhow::Result<(String, Told)> {
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
            drafted: answer.drafted,
        });
        // Without either limit an answer has its end from the context.
        let full = answer.finish == Finish::Length && room <= most && self.limits.shift.is_none();
        let shifted = self.session.position() < prompt.len() + answer.tokens.len();
        let json = to_json(&answer, &prompt, self.engine.model());
        Ok((answer.text, Told { json, finish: answer.finish, full, dropped, shifted }))
    }

    /// The tokens of these messages.
    fn tokens(&self, messages: &[Message], add_generation_prompt: bool) -> yuan::Result<Vec<u32>> {
        let chat = Chat { messages, add_generation_prompt, thinking: self.thinking, ..Chat::default() };
        self.engine.tokenizer().prompt(&chat)
    }

    /// The tokens of the conversation, and how many questions were dropped from it for that: where it does not fit and that is wanted, the oldest ones
    /// until half of what may go is free, but for those among the tokens that stay.
    fn prompt(&mut self, capacity: usize) -> anyhow::Result<(Vec<u32>, usize)> {
        let mut prompt = self.tokens(&self.messages, true)?;
        let Some(keep) = self.limits.shift.filter(|_| prompt.len() > capacity) else {
            return Ok((prompt, 0));
        };
        let is_question = |m: &Message| m.role == "user";
        let mut first = self.messages.iter().take_while(|m| m.role == SYSTEM).count();
        let stays = |end: usize| Ok::<_, Error>(self.tokens(&self.messages[..end], false)?.len() <= keep);
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
            prompt = self.tokens(&messages, true)?;
        }
        if prompt.len() <= capacity {
            self.messages = messages;
        }
        Ok((prompt, dropped))
    }
}

impl Talk for Conversation {
    fn ask(&mut self, question: &str, most: usize, show: Show<'_>) -> anyhow::Result<Told> {
        self.messages.push(Message::new("user", question));
        let reply = self.reply(most, show);
        if reply.is_err() {
            self.messages.pop();
        }
        let (text, told) = reply?;
        self.messages.push(Message::new("assistant", text));
        Ok(told)
    }

    fn set_system(&mut self, text: &str) {
        self.messages.retain(|m| m.role != SYSTEM);
        if !text.is_empty() {
            self.messages.insert(0, Message::new(SYSTEM, text));
        }
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        self.messages.retain(|m| m.role == SYSTEM);
        self.sampler = self.sampling.sampler(&self.engine)?;
        self.last = None;
        Ok(())
    }

    fn undo(&mut self) -> Option<Turn> {
        let question = self.messages.iter().rposition(|m| m.role == "user")?;
        Some(Turn(self.messages.drain(question..).map(|m| (m.role, m.content)).collect()))
    }

    fn redo(&mut self, turn: Turn) {
        self.messages.extend(turn.0.into_iter().map(|(role, content)| Message::new(role, content)));
    }

    fn set(&mut self, sampling: &Sampling) -> anyhow::Result<()> {
        sampling.change(&self.engine, &mut self.sampler)?;
        let of_sampling = sampling.limits(0);
        (self.limits.stop_texts, self.limits.ignore_eod) = (of_sampling.stop_texts, of_sampling.ignore_eod);
        self.sampling = sampling.clone();
        Ok(())
    }

    fn save(&mut self, file: &Path) -> anyhow::Result<()> {
        let messages = self.messages.iter().map(|m| (m.role.clone(), m.content.clone())).collect();
        self.session.note = serde_json::to_string(&Note { messages })?;
        Ok(self.session.save(file, Some(&self.sampler))?)
    }

    fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        let restored = Session::restore(self.engine.clone(), file, None)?;
        let mut session = restored.session;
        let Ok(note) = serde_json::from_str::<Note>(&session.note) else {
            bail!(
                "{} holds a session without a conversation: continue it with yuan generate --load",
                file.display()
            );
        };
        session.reserve(self.session.capacity())?;
        self.drafting.apply(&mut session)?;
        self.sampler = self.sampling.resume(&self.engine, restored.sampler)?;
        self.engine.warm(&restored.hot);
        self.session = session;
        self.messages =
            note.messages.into_iter().map(|(role, content)| Message::new(role, content)).collect();
        self.last = None;
        Ok(())
    }

    fn questions(&self) -> usize {
        self.messages.iter().filter(|m| m.role == "user").count()
    }

    fn stats(&self) -> Vec<String> {
        let (used, room) = (self.session.position(), self.session.capacity());
        let usage = self.engine.model().pager().usage();
        let touched = usage.uses.iter().filter(|&&n| n > 0).count();
        let mut lines = vec![format!(
            "{} questions; {used} of {room} tokens of context in use; key-value cache in {}",
            self.questions(),
            self.session.kv_type().name()
        )];
        if let Some(Figures { reused, computed, tokens, seed, rates: (prefill, decode), drafted }) =
            &self.last
        {
            lines.push(format!(
                "last answer: {reused} tokens reused, {computed} read at {prefill:.1} tok/s, {tokens} written at {decode:.1} tok/s{}{}",
                describe_drafts(*drafted),
                seed.map_or_else(String::new, |seed| format!(", seed {seed}"))
            ));
        }
        if !usage.uses.is_empty() {
            lines.push(format!("{touched} of {} experts used so far", usage.uses.len()));
        }
        lines
    }
}
