//! What a hub says of a repository.

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow};
use serde::Deserialize;
use ureq::{Agent, Body, http::Response};

use crate::{
    names::{Kind, Repository},
    retry::{Failure, Patience},
};

/// Files of a repository.
const MOST_FILES: usize = 10_000;
/// Bytes of the longest answer about them.
const LONGEST_ANSWER: u64 = 64 << 20;
/// Until a connection stands, and until an answer begins.
const CONNECT: Duration = Duration::from_secs(30);
/// For as many bytes as come in that time; what has come counts.
const BODY: Duration = Duration::from_secs(120);

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// In the repository, with slashes.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// In hex, where the hub has it: of all large files.
    pub sha256: Option<String>,
}

/// A hub, with a repository of it.
#[derive(Clone, Debug)]
pub struct Hub {
    agent: Agent,
    kind: Kind,
    endpoint: String,
    id: String,
    revision: String,
    token: Option<String>,
    /// After a first failure.
    wait: Duration,
}

impl Hub {
    /// The repository on its hub, or on a mirror at `endpoint`. The token that the hub's own tools use is sent, to it alone.
    ///
    /// Without an address it is that of the environment (`HF_ENDPOINT`, `MODELSCOPE_DOMAIN`), or the hub's own.
    pub fn new(repository: &Repository, endpoint: Option<&str>) -> Self {
        let endpoint = endpoint.map(str::to_owned).or_else(|| named_endpoint(repository.kind));
        let endpoint = endpoint.unwrap_or_else(|| repository.kind.endpoint().to_owned());
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("yuan/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(CONNECT))
            .timeout_recv_body(Some(BODY));
        Self {
            agent: config.build().into(),
            kind: repository.kind,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            id: repository.id.clone(),
            revision: repository.revision.clone(),
            token: token(repository.kind),
            wait: Duration::from_secs(1),
        }
    }

    /// With another time to wait after a failure, and another to wait for bytes, for tests.
    pub fn hurried(mut self, wait: Duration, body: Duration) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_recv_response(Some(body));
        self.agent = config.timeout_recv_body(Some(body)).build().into();
        self.wait = wait;
        self
    }

    /// Counts failures in a row.
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(self.wait)
    }

    /// The files of the repository, and the commit that they are of, by which they are asked for from now on: a repository that changes meanwhile
    /// does not give files of two states.
    ///
    /// # Errors
    /// There is no such repository, it may not be had, or the hub cannot be reached.
    pub fn files(&mut self) -> anyhow::Result<Vec<Remote>> {
        let url = match self.kind {
            Kind::HuggingFace => format!(
                "{}/api/models/{}/revision/{}?blobs=true",
                self.endpoint,
                self.id,
                escaped(&self.revision)
            ),
            Kind::ModelScope => format!(
                "{}/api/v1/models/{}/repo/files?Revision={}&Recursive=true",
                self.endpoint,
                self.id,
                escaped(&self.revision)
            ),
        };
        let mut patience = self.patience();
        let text = loop {
            let answered = self.get(&url, None).and_then(|mut response| {
                let text = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string();
                text.map_err(|e| {
                    Failure::Later(format!("the list of files of {} breaks off: {e}", self.id), None)
                })
            });
            match answered {
                Ok(text) => break text,
                Err(failure) => patience.after(failure, || true)?,
            }
        };
        let strange = || format!("{url} does not answer with a list of files; check --endpoint");
        let files: Vec<Remote> = match self.kind {
            Kind::HuggingFace => {
                let answer: HuggingFace = serde_json::from_str(&text).with_context(strange)?;
                self.revision = answer.sha.clone().unwrap_or_else(|| self.revision.clone());
                answer.siblings.into_iter().map(Sibling::remote).collect::<anyhow::Result<_>>()?
            }
            Kind::ModelScope => {
                let answer: ModelScope = serde_json::from_str(&text).with_context(strange)?;
                let files = answer.data.files.into_iter().filter(|file| file.kind != "tree");
                files
                    .map(|f| Remote {
                        path: f.path,
                        size: f.size,
                        sha256: f.sha256.filter(|s| !s.is_empty()),
                    })
                    .collect()
            }
        };
        anyhow::ensure!(
            files.len() <= MOST_FILES,
            "{} has {} files, which no model has",
            self.id,
            files.len()
        );
        for file in &files {
            check_path(&file.path)?;
        }
        Ok(files)
    }

    /// A text that is the same as long as the file's contents are: its digest, or its address at the commit that was asked for.
    pub fn identity(&self, remote: &Remote) -> String {
        let digest = remote.sha256.clone().unwrap_or_else(|| self.url(&remote.path));
        format!("{digest} {}", remote.size)
    }

    /// Where a file is.
    pub(crate) fn url(&self, path: &str) -> String {
        match self.kind {
            Kind::HuggingFace => {
                format!("{}/{}/resolve/{}/{}", self.endpoint, self.id, escaped(&self.revision), escaped(path))
            }
            Kind::ModelScope => format!(
                "{}/api/v1/models/{}/repo?Revision={}&FilePath={}",
                self.endpoint,
                self.id,
                escaped(&self.revision),
                escaped(path)
            ),
        }
    }

    /// A reply that is none of a failure, to a request for all or for these bytes.
    pub(crate) fn get(
        &self,
        url: &str,
        bytes: Option<std::ops::Range<u64>>,
    ) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        // Where a reply leads to another host, the client sends no token there.
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(bytes) = bytes {
            request = request.header("Range", format!("bytes={}-{}", bytes.start, bytes.end - 1));
        }
        let response = request.call().map_err(|e| Failure::Later(format!("{url}: {e}"), None))?;
        let status = response.status().as_u16();
        let never = |what: &str| Err(Failure::Never(anyhow!("{url}: {what} (status {status})")));
        match status {
            200 | 206 => Ok(response),
            401 | 403 => never(
                "the hub wants to know who asks; accept the model's terms on its page, and put a token into HF_TOKEN",
            ),
            404 | 410 => never("there is none; check the name and the revision"),
            408 | 429 | 500..=599 => {
                let asked =
                    response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                Err(Failure::Later(
                    format!("{url}: the hub is busy (status {status})"),
                    asked.map(Duration::from_secs),
                ))
            }
            _ => never("the hub does not give it"),
        }
    }
}

#[derive(Deserialize)]
struct HuggingFace {
    /// The commit.
    sha: Option<String>,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Sibling {
    fn remote(self) -> anyhow::Result<Remote> {
        let size = self.lfs.as_ref().map(|lfs| lfs.size).or(self.size);
        let size = size.with_context(|| format!("the hub does not say how large {} is", self.rfilename))?;
        Ok(Remote { path: self.rfilename, size, sha256: self.lfs.map(|lfs| lfs.sha256) })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModelScope {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    files: Vec<File>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    path: String,
    size: u64,
    sha256: Option<String>,
    #[serde(rename = "Type", default)]
    kind: String,
}

/// A path that stays in its folder, on every system.
fn check_path(path: &str) -> anyhow::Result<()> {
    let fine =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    anyhow::ensure!(
        path.split('/').all(fine),
        "the hub names a file {path:?}, which would not lie in the model's folder"
    );
    Ok(())
}

/// As it stands in an address; slashes stay.
fn escaped(text: &str) -> String {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    text.bytes()
        .map(|byte| if fine(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The address of a mirror that the environment names, as the hub's own tools understand it.
fn named_endpoint(kind: Kind) -> Option<String> {
    let of = |name: &str| env::var(name).ok().filter(|text| !text.trim().is_empty());
    match kind {
        Kind::HuggingFace => of("HF_ENDPOINT"),
        Kind::ModelScope => of("MODELSCOPE_DOMAIN").map(|domain| match domain.contains("://") {
            true => domain,
            false => format!("https://{domain}"),
        }),
    }
}

/// The token of the hub's own tools: in the environment, or in a file.
fn token(kind: Kind) -> Option<String> {
    let is_some = |text: &String| !text.trim().is_empty();
    let trimmed = |text: String| text.trim().to_owned();
    if kind == Kind::ModelScope {
        return env::var("MODELSCOPE_API_TOKEN").ok().filter(is_some).map(trimmed);
    }
    let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(is_some));
    let home = || env::var_os("HOME").or_else(|| env::var_os("USERPROFILE")).map(PathBuf::from);
    let cache = || env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cache")));
    let folder = || env::var_os("HF_HOME").map(PathBuf::from).or_else(|| Some(cache()?.join("huggingface")));
    let file = || env::var_os("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(folder()?.join("token")));
    named.or_else(|| fs::read_to_string(file()?).ok()).filter(is_some).map(trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_in_their_folder() {
        for path in ["a", "a/b.c", "春/a b"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
        for path in ["", "/a", "a/", "a//b", "../a", "a/../b", "a/.", "C:a", "a\\b", "a\0"] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
        assert_eq!(escaped("a b/春?#%"), "a%20b/%E6%98%A5%3F%23%25");
    }
}
