//! A state that a session lends to the loop for a pass.

use std::ops::{Deref, DerefMut};

use crate::model::State;

/// A state at home; or nothing, while it is lent.
#[derive(Debug, Default)]
pub(super) struct Lent(Option<Box<State>>);

const AT_HOME: &str = "a session's state is at home between its calls of the loop";

impl Lent {
    pub fn new(state: State) -> Self {
        Self(Some(Box::new(state)))
    }

    /// The state, where it is at home.
    pub fn at_home(&self) -> Option<&State> {
        self.0.as_deref()
    }

    /// Moves it to whom it is lent.
    pub fn take(&mut self) -> Self {
        Self(self.0.take())
    }
}

impl Deref for Lent {
    type Target = State;

    fn deref(&self) -> &State {
        self.0.as_deref().expect(AT_HOME)
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut State {
        self.0.as_deref_mut().expect(AT_HOME)
    }
}
