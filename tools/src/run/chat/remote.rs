//! A conversation with a model that a server has: `yuan serve`, or any with OpenAI's chat.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::{Map, Value, json};
use ureq::{Agent, Body, RequestBuilder, http::Response};
use yuan::{Error, files, grammar::Grammar, session::Finish};
use yuan_tools::console::stopped;

use super::talk::{Show, Talk, Told, Turn};
use crate::{answer::finish_name, sampling::Sampling};

/// Where the key of a server stands.
const KEY: &str = "YUAN_API_KEY";
/// How often Ctrl-C is looked for while nothing comes.
const LOOK: Duration = Duration::from_millis(50);
/// Larger than any conversation.
const LARGEST: u64 = 1 << 28;
const SYSTEM: &str = "system";

/// Messages, and the server that answers them.
pub struct Remote {
    agent: Agent,
    /// Of the server, without a slash at its end.
    url: String,
    key: Option<String>,
    /// The fields of every request.
    request: Map<String, Value>,
    /// Those of them that say how tokens are chosen.
    sampling: Map<String, Value>,
    messages: Vec<Value>,
    /// What the server said of the last answer.
    last: Value,
}

impl Remote {
    /// A conversation with the model of the server at `url`, which is asked who it is.
    pub fn new(
        url: &str,
        sampling: &Sampling,
        form: Option<&Grammar>,
        thinking: Option<bool>,
    ) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/');
        let url = url.strip_suffix("/v1").unwrap_or(url);
        ensure!(
            url.starts_with("http://"),
            "--server {url}: give an address that begins with http://; another than that of this machine is reached through a tunnel"
        );
        let sampling = sampling.request();
        let mut request = sampling.clone();
        request.insert("stream".into(), json!(true));
        request.insert("stream_options".into(), json!({ "include_usage": true }));
        request.extend(form.map(asked));
        let chosen = thinking.map(|thinking| json!({ "enable_thinking": thinking }));
        request.extend(chosen.map(|chosen| ("chat_template_kwargs".to_owned(), chosen)));
        let agent = Agent::config_builder().http_status_as_error(false).build().into();
        let key = env::var(KEY).ok().filter(|key| !key.trim().is_empty());
        let (url, messages, last) = (url.to_owned(), Vec::new(), Value::Null);
        let mut remote = Self { agent, url, key, request, sampling, messages, last };
        let models: Value = serde_json::from_str(&read(remote.get("/v1/models")?)?)
            .with_context(|| format!("{} is no server of models", remote.url))?;
        let name = models["data"][0]["id"].as_str().unwrap_or("model").to_owned();
        remote.request.insert("model".into(), json!(name));
        Ok(remote)
    }

    /// What the server calls the model.
    pub fn model(&self) -> &str {
        self.request["model"].as_str().unwrap_or_default()
    }

    fn get(&self, path: &str) -> anyhow::Result<Response<Body>> {
        self.fine(self.keyed(self.agent.get(format!("{}{path}", self.url))).call())
    }

    fn post(&self, path: &str, body: &Value) -> anyhow::Result<Response<Body>> {
        let request = self.agent.post(format!("{}{path}", self.url)).content_type("application/json");
        self.fine(self.keyed(request).send(body.to_string()))
    }

    /// With the key, if there is one.
    fn keyed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    /// A reply that is none of a failure.
    fn fine(&self, response: Result<Response<Body>, ureq::Error>) -> anyhow::Result<Response<Body>> {
        let response =
            response.with_context(|| format!("cannot reach {}; is the server running?", self.url))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = read(response).unwrap_or_default();
        let said: Value = serde_json::from_str(&text).unwrap_or_default();
        let said = said["error"]["message"].as_str().unwrap_or(text.trim());
        let remedy = if status == 401 { format!("; put the key into {KEY}") } else { String::new() };
        bail!("the server says: {said} (status {}){remedy}", status.as_u16())
    }

    /// The answer to the messages.
    fn answer(&mut self, most: usize, show: Show<'_>) -> anyhow::Result<(String, Finish)> {
        let mut body = Value::from(self.request.clone());
        body["messages"] = json!(self.messages);
        if most < usize::MAX {
            body["max_tokens"] = json!(most);
        }
        let response = self.post("/v1/chat/completions", &body)?;
        // Reading waits for the server, and Ctrl-C does not. Without a receiver the thread ends with the next line, and the connection with it.
        let (sender, lines) = sync_channel(64);
        let read = move || {
            let lines = BufReader::new(response.into_body().into_reader()).lines();
            lines.map(|line| sender.send(line)).find(Result::is_err)
        };
        thread::Builder::new().spawn(read).context("cannot start a thread")?;
        let (mut text, mut finish, mut is_done) = (String::new(), None, false);
        self.last = Value::Null;
        loop {
            if stopped() {
                ensure!(!text.is_empty(), Error::Cancelled);
                return Ok((text, Finish::Cancelled));
            }
            let line = match lines.recv_timeout(LOOK) {
                Ok(line) => line.map_err(|e| anyhow!("the server's answer breaks off: {e}"))?,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                is_done = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(data).context("the server's answer is no JSON")?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                bail!("the server says: {message}");
            }
            let choice = &chunk["choices"][0];
            for name in ["reasoning_content", "content"] {
                if let Some(piece) = choice["delta"][name].as_str().filter(|piece| !piece.is_empty()) {
                    show(piece)?;
                    if name == "content" {
                        text.push_str(piece);
                    }
                }
            }
            finish = choice["finish_reason"].as_str().map(str::to_owned).or(finish);
            for name in ["usage", "timings"] {
                if !chunk[name].is_null() {
                    self.last[name] = chunk[name].clone();
                }
            }
        }
        ensure!(is_done, "the server's answer breaks off");
        Ok((text, if finish.as_deref() == Some("length") { Finish::Length } else { Finish::Stop }))
    }
}

impl Talk for Remote {
    fn ask(&mut self, question: &str, most: usize, show: Show<'_>) -> anyhow::Result<Told> {
        self.messages.push(json!({ "role": "user", "content": question }));
        let answered = self.answer(most, show);
        if answered.is_err() {
            self.messages.pop();
        }
        let (text, finish) = answered?;
        self.messages.push(json!({ "role": "assistant", "content": text }));
        let json = json!({
            "text": text, "finish": finish_name(finish), "usage": self.last["usage"], "timings": self.last["timings"],
        });
        // As many tokens as the context has room for.
        let full = finish == Finish::Length && most == usize::MAX;
        Ok(Told { json, finish, full, dropped: 0, shifted: false })
    }

    fn set_system(&mut self, text: &str) {
        self.messages.retain(|message| message["role"] != SYSTEM);
        if !text.is_empty() {
            self.messages.insert(0, json!({ "role": SYSTEM, "content": text }));
        }
    }

    fn reset(&mut self) -> anyhow::Result<()> {
        self.messages.retain(|message| message["role"] == SYSTEM);
        self.last = Value::Null;
        Ok(())
    }

    fn undo(&mut self) -> Option<Turn> {
        let question = self.messages.iter().rposition(|message| message["role"] == "user")?;
        let text = |message: &Value, name: &str| message[name].as_str().unwrap_or_default().to_owned();
        let undone = self.messages.drain(question..);
        Some(Turn(undone.map(|message| (text(&message, "role"), text(&message, "content"))).collect()))
    }

    fn redo(&mut self, turn: Turn) {
        let messages = turn.0.into_iter().map(|(role, content)| json!({ "role": role, "content": content }));
        self.messages.extend(messages);
    }

    fn set(&mut self, sampling: &Sampling) -> anyhow::Result<()> {
        for name in self.sampling.keys() {
            self.request.remove(name);
        }
        self.sampling = sampling.request();
        self.request.extend(self.sampling.clone());
        Ok(())
    }

    fn save(&mut self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&json!({ "messages": self.messages }))?;
        Ok(files::write_whole(file, text.len() as u64, |out| out.write_all(text.as_bytes()))?)
    }

    fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        let other = || format!("{} is no conversation that /save has written with --server", file.display());
        ensure!(fs::metadata(file).map_err(Error::io("read", file))?.len() <= LARGEST, other());
        let text = fs::read_to_string(file).map_err(Error::io("read", file))?;
        let saved: Value = serde_json::from_str(&text).unwrap_or_default();
        let messages = saved["messages"].as_array().filter(|list| {
            list.iter().all(|message| message["role"].is_string() && message["content"].is_string())
        });
        self.messages = messages.with_context(other)?.clone();
        self.last = Value::Null;
        Ok(())
    }

    fn questions(&self) -> usize {
        self.messages.iter().filter(|message| message["role"] == "user").count()
    }

    fn stats(&self) -> Vec<String> {
        let mut lines = vec![format!("{} questions to {} at {}", self.questions(), self.model(), self.url)];
        let number = |of: &str, name: &str| self.last[of][name].as_f64();
        if let (Some(reused), Some(read), Some(written)) =
            (number("timings", "cache_n"), number("timings", "prompt_n"), number("timings", "predicted_n"))
        {
            let rate = |name: &str| number("timings", name).unwrap_or_default();
            lines.push(format!(
                "last answer: {reused} tokens reused, {read} read at {:.1} tok/s, {written} written at {:.1} tok/s",
                rate("prompt_per_second"),
                rate("predicted_per_second")
            ));
        }
        lines
    }
}

/// The field that asks for a form.
fn asked(form: &Grammar) -> (String, Value) {
    let (name, value) = match form {
        Grammar::JsonObject => ("response_format", json!({ "type": "json_object" })),
        Grammar::JsonSchema(schema) => ("json_schema", schema.clone()),
        Grammar::Lark(text) => ("grammar", json!(text)),
        Grammar::Regex(regex) => ("grammar", json!(format!("start: /{}/", regex.replace('/', "\\/")))),
    };
    (name.to_owned(), value)
}

fn read(response: Response<Body>) -> anyhow::Result<String> {
    response.into_body().read_to_string().context("the server's answer breaks off")
}
