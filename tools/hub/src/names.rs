//! Names of models, and where they are.

use anyhow::{bail, ensure};

/// A published model that has a short name.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What people type.
    pub name: &'static str,
    /// `OWNER/NAME` on Hugging Face.
    pub repository: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// The base of the rotary frequencies, where its config does not name the one that it was tuned with.
    pub rope_base: Option<f32>,
}

/// The published text models of the family. The names of their repositories are those of the authors' pages.
pub const KNOWN: [Known; 4] = [
    Known {
        name: "m32",
        repository: "IEITYuan/Yuan2-M32-hf",
        what: "Yuan2.0-M32, bf16",
        rope_base: Some(40_890.0),
    },
    Known {
        name: "m32-int4",
        repository: "IEITYuan/Yuan2-M32-hf-int4",
        what: "Yuan2.0-M32, GPTQ of 4 bits",
        rope_base: Some(40_890.0),
    },
    Known { name: "2b", repository: "IEITYuan/Yuan2-2B-hf", what: "Yuan2.0-2B, dense", rope_base: None },
    Known {
        name: "3-flash",
        repository: "YuanLabAI/Yuan3.0-Flash",
        what: "the text model of Yuan3.0 Flash, bf16",
        rope_base: None,
    },
];

/// Which hub a repository is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// huggingface.co, or a mirror with its interface.
    HuggingFace,
    /// modelscope.cn.
    ModelScope,
}

impl Kind {
    /// The address where nothing else is said.
    pub const fn endpoint(self) -> &'static str {
        match self {
            Self::HuggingFace => "https://huggingface.co",
            Self::ModelScope => "https://modelscope.cn",
        }
    }

    /// The revision where nothing else is said.
    const fn revision(self) -> &'static str {
        match self {
            Self::HuggingFace => "main",
            Self::ModelScope => "master",
        }
    }
}

/// A repository of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Which hub.
    pub kind: Kind,
    /// `OWNER/NAME`.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl Repository {
    /// Reads a short name, or `[hf:]OWNER/NAME[@REVISION]`, or `ms:OWNER/NAME[@REVISION]`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let known = KNOWN.iter().find(|known| known.name == text);
        let (kind, rest) = match (known, text.split_once(':')) {
            (Some(known), _) => (Kind::HuggingFace, known.repository),
            (None, Some(("hf", rest))) => (Kind::HuggingFace, rest),
            (None, Some(("ms", rest))) => (Kind::ModelScope, rest),
            (None, None) if text.contains('/') => (Kind::HuggingFace, text),
            _ => {
                let names: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
                bail!(
                    "there is no model {text:?}; give {}, or OWNER/NAME as on Hugging Face, or ms:OWNER/NAME as on ModelScope",
                    names.join(", ")
                );
            }
        };
        let (id, revision) = rest.split_once('@').unwrap_or((rest, kind.revision()));
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = |name: &str| !name.is_empty() && name.chars().all(allowed) && !name.starts_with('.');
        ensure!(
            id.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name)),
            "{text:?} is no repository; give OWNER/NAME, as IEITYuan/Yuan2-M32-hf"
        );
        ensure!(
            revision.split('/').all(is_name),
            "{revision:?} is no revision; give a branch, a tag or a commit behind the @"
        );
        Ok(Self { kind, id: id.to_owned(), revision: revision.to_owned() })
    }

    /// The model with a short name that this is.
    pub fn known(&self) -> Option<&'static Known> {
        let is = |known: &&Known| self.kind == Kind::HuggingFace && known.repository == self.id;
        KNOWN.iter().find(is)
    }

    /// Its name on this machine, which is that of a file: `m32`, or `OWNER--NAME`, with `@REVISION` where another than the usual one is meant.
    pub fn name(&self) -> String {
        let is_usual = self.revision == self.kind.revision();
        match self.known() {
            Some(known) if is_usual => known.name.to_owned(),
            _ if is_usual => self.id.replace('/', "--"),
            _ => format!("{}@{}", self.id, self.revision).replace('/', "--"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_or_those_of_repositories() {
        for known in KNOWN {
            let found = Repository::parse(known.name).unwrap();
            assert_eq!((&*found.id, found.name()), (known.repository, known.name.to_owned()));
            assert_eq!(Repository::parse(known.repository).unwrap(), found);
        }
        let of = |text| Repository::parse(text).unwrap();
        let found = of("hf:a/b.c-d@refs/pr/1");
        assert_eq!((found.kind, &*found.id, &*found.revision), (Kind::HuggingFace, "a/b.c-d", "refs/pr/1"));
        assert_eq!((of("ms:a/b").kind, &*of("ms:a/b").revision), (Kind::ModelScope, "master"));
        assert_eq!((of("hf:a/b").name(), of("a/b@v1").name()), ("a--b".into(), "a--b@v1".into()));
        assert_eq!(of("hf:a/b@refs/pr/1").name(), "a--b@refs--pr--1");
        for wrong in [
            "",
            "m33",
            "hf:a",
            "a\\b",
            "/b",
            "a/b/c",
            "./a",
            "../a",
            "hf:/b",
            "hf:a/",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/b@",
            "hf:a/b@../c",
            "xx:a/b",
            "hf:a/b?c",
        ] {
            assert!(Repository::parse(wrong).is_err(), "{wrong}");
        }
    }
}
