//! The library without the feature `grammar`: no constraint can be made.

use std::convert::Infallible;

use super::Grammar;
use crate::{
    error::{Error, Result},
    tokenizer::Tokenizer,
};

/// The words of a vocabulary.
#[derive(Debug)]
pub struct Words(());

impl Words {
    /// Those of this tokenizer.
    ///
    /// # Errors
    /// None here.
    pub fn new(_: &Tokenizer) -> Result<Self> {
        Ok(Self(()))
    }

    /// Refuses.
    ///
    /// # Errors
    /// [`Error::Argument`], always.
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint> {
        Err(Error::Argument(format!(
            "a {} is not supported by this build: build the library with the feature grammar",
            grammar.name()
        )))
    }
}

/// There is none.
#[derive(Clone, Debug)]
pub struct Constraint(Infallible);

impl Constraint {
    /// There is none.
    pub fn guide(&self, _: bool) -> Result<Guide> {
        match self.0 {}
    }
}

/// There is none.
#[derive(Debug)]
pub struct Guide(Infallible);

#[allow(missing_docs, clippy::missing_errors_doc)]
impl Guide {
    pub fn is_complete(&self) -> bool {
        match self.0 {}
    }

    pub fn forced(&mut self) -> Vec<u32> {
        match self.0 {}
    }

    pub fn mask(&mut self, _: &mut [f32], _: &[u32]) -> Result<()> {
        match self.0 {}
    }

    pub fn allows(&mut self, _: &[u32]) -> usize {
        match self.0 {}
    }

    pub fn push(&mut self, _: u32) -> Result<()> {
        match self.0 {}
    }
}
