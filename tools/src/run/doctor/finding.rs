//! What the doctor finds, and how it is said.

use serde::Serialize;
use serde_json::{Value, json};
use yuan_tools::say;

/// How good or bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Fine.
    Ok,
    /// Worth knowing; models run.
    Note,
    /// Something does not work, or not as it should.
    Wrong,
}

impl Mark {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Wrong => "WRONG",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What it is about, in one word.
    pub about: &'static str,
    /// How good it is.
    pub mark: Mark,
    /// What was found.
    pub says: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// The same for programs.
    pub facts: Value,
}

impl Finding {
    /// It is fine.
    pub fn ok(about: &'static str, says: impl Into<String>) -> Self {
        Self { about, mark: Mark::Ok, says: says.into(), remedy: None, facts: json!({}) }
    }

    /// It is worth knowing.
    pub fn note(about: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { mark: Mark::Note, remedy: Some(remedy.into()), ..Self::ok(about, says) }
    }

    /// It is wrong.
    pub fn wrong(about: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { mark: Mark::Wrong, remedy: Some(remedy.into()), ..Self::ok(about, says) }
    }

    /// With what programs may want to know.
    pub fn with(self, facts: Value) -> Self {
        Self { facts, ..self }
    }
}

/// All that is found. People hear of it at once, programs at the end.
#[derive(Debug, Default)]
pub struct Report {
    json: bool,
    findings: Vec<Finding>,
}

impl Report {
    pub fn new(json: bool) -> Self {
        Self { json, findings: Vec::new() }
    }

    /// # Errors
    /// Standard output is closed.
    pub fn add(&mut self, finding: Finding) -> anyhow::Result<()> {
        if !self.json {
            say!("{:<5}  {:<12} {}", finding.mark.name(), finding.about, finding.says)?;
            if let Some(remedy) = &finding.remedy {
                say!("{:20}-> {remedy}", "")?;
            }
        }
        self.findings.push(finding);
        Ok(())
    }

    /// The end of it. Returns how many things are wrong.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn finish(self) -> anyhow::Result<usize> {
        let count = |mark| self.findings.iter().filter(|finding| finding.mark == mark).count();
        let (notes, wrong) = (count(Mark::Note), count(Mark::Wrong));
        if self.json {
            let object = json!({
                "version": yuan::VERSION, "system": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
                "fine": wrong == 0, "notes": notes, "wrong": wrong, "findings": self.findings,
            });
            say!("{object}")?;
        } else if wrong == 0 {
            let notes = match notes {
                0 => String::new(),
                1 => "; one thing is worth knowing".into(),
                n => format!("; {n} things are worth knowing"),
            };
            say!("\nAll is fine{notes}.")?;
        }
        Ok(wrong)
    }
}
