//! What the server is told when it starts.

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;

/// Where a key may stand instead of a file.
const KEY: &str = "YUAN_API_KEY";
/// Sequences that may run together.
const MOST_SEQUENCES: u64 = 1024;
/// Requests that may wait.
const MOST_QUEUE: u64 = 1 << 20;
/// Seconds of any time.
const MOST_SECONDS: u64 = 1 << 20;

// What stands where nothing is said, for the command line and for programs.
const HOST: &str = "127.0.0.1";
const PORT: u16 = 8080;
const SEQUENCES: u64 = 8;
const QUEUE: u64 = 64;
const TIMEOUT: u64 = 60;
const DRAIN: u64 = 30;
const BODY: u64 = 32;

/// Options of the server. Each can stand in the environment.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct Options {
    /// Address to listen on; 0.0.0.0 for all of the machine's
    #[arg(long, value_name = "ADDRESS", env = "YUAN_HOST", default_value = HOST)]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", env = "YUAN_PORT", default_value_t = PORT)]
    pub port: u16,
    /// File with the keys that clients may send as `Authorization: Bearer KEY`, one a line; YUAN_API_KEY may hold one instead
    #[arg(long, value_name = "FILE", env = "YUAN_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Web pages of this origin may use the server, such as `https://example.org`; * for all; can be repeated
    #[arg(long, value_name = "ORIGIN", env = "YUAN_CORS", value_delimiter = ',')]
    pub cors: Vec<String>,
    /// Name by which a server that listens on this machine alone may be called, beside localhost and addresses: that of a proxy before it; * for all; can be repeated
    #[arg(long, value_name = "NAME", env = "YUAN_ALLOWED_HOST", value_delimiter = ',')]
    pub allowed_host: Vec<String>,
    /// Sequences that run together
    #[arg(long, value_name = "N", env = "YUAN_SEQUENCES", default_value_t = SEQUENCES,
          value_parser = clap::value_parser!(u64).range(1..=MOST_SEQUENCES))]
    pub sequences: u64,
    /// Requests that may wait for a sequence; further ones are refused with status 429
    #[arg(long, value_name = "N", env = "YUAN_QUEUE", default_value_t = QUEUE,
          value_parser = clap::value_parser!(u64).range(0..=MOST_QUEUE))]
    pub queue: u64,
    /// Folder of the sessions that clients save and restore (`/slots/0?action=save`)
    #[arg(long, value_name = "FOLDER", env = "YUAN_SESSIONS")]
    pub sessions: Option<PathBuf>,
    /// Seconds after which a client that does not read its answer is cut off
    #[arg(long, value_name = "SECONDS", env = "YUAN_TIMEOUT", default_value_t = TIMEOUT,
          value_parser = clap::value_parser!(u64).range(1..=MOST_SECONDS))]
    pub timeout: u64,
    /// Seconds that running requests may take after SIGTERM or Ctrl-C
    #[arg(long, value_name = "SECONDS", env = "YUAN_DRAIN", default_value_t = DRAIN,
          value_parser = clap::value_parser!(u64).range(0..=MOST_SECONDS))]
    pub drain: u64,
    /// MB that the body of a request may have
    #[arg(long, value_name = "MB", env = "YUAN_BODY", default_value_t = BODY,
          value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub body: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: HOST.into(),
            port: PORT,
            api_key_file: None,
            cors: Vec::new(),
            allowed_host: Vec::new(),
            sequences: SEQUENCES,
            queue: QUEUE,
            sessions: None,
            timeout: TIMEOUT,
            drain: DRAIN,
            body: BODY,
        }
    }
}

impl Options {
    /// The keys of the file and of the environment. Where there are none, every client is served.
    ///
    /// # Errors
    /// When the file cannot be read, or has no key: a server that seems to be locked would be open.
    pub fn keys(&self) -> anyhow::Result<Vec<String>> {
        let mut keys = Vec::new();
        if let Some(file) = &self.api_key_file {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read the keys of {}", file.display()))?;
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
            ensure!(!keys.is_empty(), "{} has no key; write one a line", file.display());
        }
        if let Some(key) = env::var_os(KEY) {
            let key = key.into_string().ok().filter(|key| !key.trim().is_empty());
            let key =
                key.with_context(|| format!("{KEY} is empty or no text; give it a key, or unset it"))?;
            keys.push(key.trim().to_owned());
        }
        Ok(keys)
    }

    /// How long a client may keep an answer waiting.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}
