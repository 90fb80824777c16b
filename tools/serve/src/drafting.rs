//! What the fields of a request say of drafts.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use yuan::{
    session::{Drafts, Hint, Session},
    tokenizer::Special,
};

use crate::{messages::Content, problem::Problem, server::Loaded};

/// Fields of requests whose answers can be predicted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct Fields {
    /// As OpenAI has it: what most of the answer will probably be.
    prediction: Option<Prediction>,
    /// `auto`, `off`, or a number of tokens.
    draft: Option<Value>,
}

/// A text that an answer probably quotes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
struct Prediction {
    #[serde(rename = "type")]
    kind: Option<String>,
    content: Content,
}

/// What an answer is drafted from, and whether it is, where that is not as for all others.
#[derive(Clone, Debug, Default)]
pub struct Drafting {
    drafts: Option<Drafts>,
    hint: Option<Hint>,
}

impl Fields {
    /// What they say.
    ///
    /// # Errors
    /// A prediction that is no text, or is too long; drafts that are none.
    pub fn drafting(&self, model: &Loaded) -> Result<Drafting, Problem> {
        let hint = self.prediction.as_ref().map(|prediction| prediction.hint(model)).transpose()?;
        let drafts = match &self.draft {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.parse()),
            Some(other) => Some(other.to_string().parse()),
        };
        let drafts = drafts.transpose().map_err(|e: yuan::Error| Problem::field("draft", e.to_string()))?;
        Ok(Drafting { drafts, hint })
    }
}

impl Prediction {
    fn hint(&self, model: &Loaded) -> Result<Hint, Problem> {
        if let Some(kind) = self.kind.as_ref().filter(|kind| *kind != "content") {
            let message = format!("a prediction is of the type \"content\", and not {kind:?}");
            return Err(Problem::field("prediction", message));
        }
        let text = self.content.clone().text("prediction")?;
        let tokens = model.served.engine.tokenizer().encode(&text, Special::AsText);
        Hint::new(&tokens).map_err(|e| Problem::field("prediction", e.to_string()))
    }
}

impl Drafting {
    /// Makes a session draft so.
    pub fn apply(&self, session: &mut Session) {
        if let Some(drafts) = self.drafts {
            session.set_drafts(drafts);
        }
        if let Some(hint) = &self.hint {
            session.draft_from(hint.clone());
        }
    }
}
