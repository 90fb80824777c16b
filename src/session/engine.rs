//! An open model: what sessions share.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, OnceLock},
};

use super::{passes::Passes, scored::Scored, stats::Counts};
use crate::{
    container::Container,
    error::Result,
    grammar::{Constraint, Grammar, Words},
    model::{Model, Options, Progress},
    tokenizer::Tokenizer,
};

/// A model that is ready to run, with its tokenizer and the container that it came from. Threads share it.
#[derive(Debug)]
pub struct Engine {
    /// Before the model: its thread ends first.
    passes: Passes,
    container: Container,
    model: Arc<Model>,
    tokenizer: Tokenizer,
    /// Made for the first grammar.
    words: OnceLock<Words>,
    scored: Scored,
}

impl Engine {
    /// Opens a container and makes its model and its tokenizer.
    ///
    /// # Errors
    /// As [`Container::open`], [`Model::load`], [`Container::vocab`] and [`Tokenizer::new`].
    pub fn open(path: &Path, options: &Options) -> Result<Arc<Self>> {
        Self::new(Container::open(path)?, options)
    }

    /// [`Engine::open`] with a container that is open.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn new(container: Container, options: &Options) -> Result<Arc<Self>> {
        let tokenizer = Tokenizer::new(container.vocab()?)?;
        Self::with_tokenizer(container, tokenizer, options, &mut |_, _| ControlFlow::Continue(()))
    }

    /// [`Engine::open`] that tells `progress` of what it brings in, and ends when that breaks off.
    ///
    /// # Errors
    /// As [`Engine::open`] and [`Model::load_watched`].
    pub fn open_watched(path: &Path, options: &Options, progress: Progress<'_>) -> Result<Arc<Self>> {
        let container = Container::open(path)?;
        let tokenizer = Tokenizer::new(container.vocab()?)?;
        Self::with_tokenizer(container, tokenizer, options, progress)
    }

    /// [`Engine::open_watched`] with a container that is open and its tokenizer, for callers that must tokenize before loading, to size the context.
    ///
    /// # Errors
    /// As [`Model::load_watched`]; [`Error::Memory`](crate::Error::Memory) when the thread of the loop cannot be started.
    pub fn with_tokenizer(
        container: Container,
        tokenizer: Tokenizer,
        options: &Options,
        progress: Progress<'_>,
    ) -> Result<Arc<Self>> {
        let model = Model::load_watched(&container, options, progress)?;
        Self::with_model(container, tokenizer, model)
    }

    /// An engine of a container, its tokenizer and its model.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) when the thread of the loop cannot be started.
    pub fn with_model(container: Container, tokenizer: Tokenizer, model: Model) -> Result<Arc<Self>> {
        let model = Arc::new(model);
        let passes = Passes::of(&model)?;
        Ok(Arc::new(Self {
            passes,
            container,
            model,
            tokenizer,
            words: OnceLock::new(),
            scored: Scored::default(),
        }))
    }

    /// Brings in the experts that a saved session used ([`super::Restored`]), where they are kept in memory. Without them it is slower
    /// to begin, and nothing else. Those of a container that is still coming are not waited for.
    pub fn warm(&self, hot: &[(usize, usize)]) {
        if self.container.arriving().is_some() {
            return;
        }
        if let Err(error) = self.model.pager().warm(hot) {
            tracing::warn!("the experts of the saved session are not read ahead: {error}");
        }
    }

    /// The container.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The weights, ready to run. Sessions run them in the engine's loop; a call of the model itself takes its threads beside that.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The loop that runs what sessions want.
    pub(super) fn passes(&self) -> &Passes {
        &self.passes
    }

    /// Scores of lists, for those who ask for the same.
    pub(super) fn scored(&self) -> &Scored {
        &self.scored
    }

    /// What the loop has run so far for all sessions.
    pub fn counts(&self) -> Counts {
        self.passes.counts()
    }

    /// A grammar, ready for answers of this model ([`Limits::constraint`](super::Limits::constraint)). The first one takes longer: the vocabulary is put in order for it.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) with what is wrong and where, when it cannot be read, has parts that are not supported, or is met by no text.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint> {
        let words = match self.words.get() {
            Some(words) => words,
            None => {
                // Two that come at once both make them; one is kept.
                let words = Words::new(&self.tokenizer)?;
                self.words.get_or_init(|| words)
            }
        };
        words.constraint(grammar)
    }

    /// The container's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}
