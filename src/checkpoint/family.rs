//! What differs between the families of models: the names of their tensors, the keys and defaults of their configs, and what their
//! tokenizers add. Everything else in this room is the same for all of them.

use crate::config::Family;

/// A family, as its checkpoints and the authors' code have it.
#[derive(Debug)]
pub(super) struct Description {
    /// Tensors of a layer that have the rows of several others, one after another: its name, and those of its parts in Yuan 2.0.
    pub fused: &'static [(&'static str, &'static [&'static str])],
    /// Name in its layer of the matrix `w1` or `w2` of an expert.
    pub expert: fn(&str, usize) -> String,
}

impl Description {
    /// The fused tensor that has `name`, which part of it that is, and of how many.
    pub fn fused(&self, name: &str) -> Option<(&'static str, usize, usize)> {
        self.fused.iter().find_map(|(tensor, parts)| {
            let part = parts.iter().position(|part| *part == name)?;
            Some((*tensor, part, parts.len()))
        })
    }
}

/// The description of `family`.
pub(super) const fn describe(family: Family) -> &'static Description {
    match family {
        Family::Yuan2 => &YUAN2,
    }
}

static YUAN2: Description =
    Description { fused: &[], expert: |matrix, expert| format!("mlp.experts.{expert}.{matrix}.weight") };
