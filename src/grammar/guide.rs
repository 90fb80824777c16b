//! Grammars at work: what may come next.

use std::{fmt, sync::Arc};

use llguidance::{
    Matcher, ParserFactory,
    api::{GrammarWithLexer, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::InferenceCapabilities,
};
use serde_json::json;

use super::{Grammar, place, trie::Env};
use crate::{
    error::{Error, Result},
    tokenizer::Tokenizer,
};

/// States of the automaton of one answer: a few kilobytes each.
const STATES: usize = 50_000;

/// The words of a vocabulary, by which grammars are made ready for it. Any number of threads use them.
#[derive(Clone)]
pub struct Words {
    env: Arc<Env>,
    factory: Arc<ParserFactory>,
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words").finish_non_exhaustive()
    }
}

impl Words {
    /// Those of this tokenizer.
    ///
    /// # Errors
    /// [`Error::Argument`] for a vocabulary that is too large.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let env = Arc::new(Env::new(tokenizer)?);
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&(env.clone() as _), InferenceCapabilities::default(), &slices)
            .map_err(|e| Error::Internal(format!("the vocabulary cannot be used for grammars: {e}")))?;
        factory.quiet();
        let limits = factory.limits_mut();
        (limits.max_lexer_states, limits.verbose_errors) = (STATES, false);
        Ok(Self { env, factory: Arc::new(factory) })
    }

    /// A grammar, ready for answers.
    ///
    /// # Errors
    /// [`Error::Argument`] with what is wrong and where, when it cannot be read, has parts that are not supported, or is met by no text.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint> {
        let name = grammar.name();
        let fail = |why: &str| Error::Argument(format!("the {name} cannot be used: {}", shorten(why)));
        let mut answer = match grammar {
            Grammar::JsonSchema(schema) => GrammarWithLexer::from_json_schema(Grammar::spaced(schema)),
            Grammar::JsonObject => {
                GrammarWithLexer::from_json_schema(Grammar::spaced(&json!({ "type": "object" })))
            }
            Grammar::Lark(text) if text.contains("::=") => {
                return Err(fail(
                    "it looks like GBNF, and is read as Lark: write rule: \"text\" | other for rule ::= \"text\" | other, names with _ for -, and start for root",
                ));
            }
            Grammar::Lark(text) => GrammarWithLexer::from_lark(text.clone()),
            Grammar::Regex(text) => GrammarWithLexer::from_regex(text),
        };
        answer.name = Some("answer".into());
        // A text begins with a dummy prefix, where it begins with the answer.
        let whole = GrammarWithLexer::from_lark("start: \" \" @answer".into());
        let grammars = TopLevelGrammar { grammars: vec![whole, answer], max_tokens: None };
        let matcher = Matcher::new(self.factory.create_parser(grammars));
        if let Some(why) = matcher.get_error() {
            return Err(fail(&(why.clone() + &place(grammar, &why))));
        }
        let constraint = Constraint { words: self.clone(), name, matcher: Arc::new(matcher) };
        // What no text meets is found here, and not by the first answer.
        let mut guide = constraint.guide(false)?;
        let forced = guide.forced();
        guide.matcher.consume_tokens(&forced).map_err(|e| fail(&e.to_string()))?;
        if !guide.is_complete() {
            guide.matcher.compute_mask().map_err(|e| fail(&e.to_string()))?;
        }
        Ok(constraint)
    }
}

/// Where the keywords stand that the library complains about, which it does not say.
fn place(grammar: &Grammar, why: &str) -> String {
    let Grammar::JsonSchema(schema) = grammar else { return String::new() };
    let keywords = why.strip_prefix("Unimplemented keys: [").and_then(|rest| rest.split_once(']'));
    let keywords = keywords.map(|(list, _)| list.split(", ").map(|word| word.trim_matches('"')));
    let places = keywords.into_iter().flatten().filter_map(|word| place::of_keyword(schema, word));
    places.map(|place| format!(", at {place}")).collect()
}

/// A message of the library without the state of its parser, and without the ends of long lines: it quotes what it complains about.
fn shorten(message: &str) -> String {
    const LINES: usize = 8;
    const LONGEST: usize = 160;
    let end = ["<non-verbose", "<state>", "<backtrace>"].iter().filter_map(|mark| message.find(mark)).min();
    let lines = message[..end.unwrap_or(message.len())].trim().lines().take(LINES);
    let cut = |line: &str| match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", line[..at].trim_end()),
        None => line.to_owned(),
    };
    lines.map(cut).collect::<Vec<_>>().join("\n")
}

/// A grammar that is ready for the answers of one model. Copies share it.
#[derive(Clone)]
pub struct Constraint {
    words: Words,
    name: &'static str,
    /// At the beginning of a text, before its dummy prefix.
    matcher: Arc<Matcher>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Constraint {
    /// A guide for one answer; `begins` says whether a text begins with it, as behind a special token. What other guides do changes nothing for it.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn guide(&self, begins: bool) -> Result<Guide> {
        let env = &self.words.env;
        let mut guide =
            Guide { matcher: self.matcher.deep_clone(), name: self.name, end: env.end() as usize };
        if !(begins && env.has_prefix) {
            guide.push(env.space())?;
        }
        Ok(guide)
    }
}

/// Where an answer stands in its grammar.
pub struct Guide {
    matcher: Matcher,
    name: &'static str,
    /// The token that stands for the end: behind all that a model has.
    end: usize,
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Guide {
    /// Whether nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// The tokens that follow in any case; none where there is a choice, or where [`mask`](Self::mask) fails.
    pub fn forced(&mut self) -> Vec<u32> {
        self.matcher.compute_ff_tokens()
    }

    /// Makes the logits of all tokens that cannot follow minus infinity. `ends` are tokens that end the answer: they can follow where it is complete.
    ///
    /// # Errors
    /// [`Error::Argument`] when the grammar has become too complex, or no token can follow.
    pub fn mask(&mut self, logits: &mut [f32], ends: &[u32]) -> Result<()> {
        let mask = self.matcher.compute_mask();
        let mask = mask.map_err(|e| fail(self.name, &e.to_string()))?;
        let may_end = mask.get(self.end);
        let allowed = |id: usize| {
            (id < self.end && mask.get(id)) || (may_end && ends.iter().any(|end| *end as usize == id))
        };
        let mut any = false;
        for (id, logit) in logits.iter_mut().enumerate() {
            match allowed(id) {
                true => any = true,
                false => *logit = f32::NEG_INFINITY,
            }
        }
        match any {
            true => Ok(()),
            false => Err(fail(self.name, "no token of the vocabulary can follow")),
        }
    }

    /// How many of the first of these tokens can follow, one behind the other.
    pub fn allows(&mut self, tokens: &[u32]) -> usize {
        self.matcher.validate_tokens(tokens).unwrap_or(0)
    }

    /// Goes on with a token, which can follow.
    ///
    /// # Errors
    /// [`Error::Argument`] when it cannot.
    pub fn push(&mut self, token: u32) -> Result<()> {
        self.matcher.consume_token(token).map_err(|e| fail(self.name, &e.to_string()))
    }
}

fn fail(name: &str, why: &str) -> Error {
    Error::Argument(format!("the answer cannot go on by its {name}: {}", shorten(why)))
}
