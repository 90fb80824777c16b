//! The server, over a socket: sequences of requests to every address, and bytes that are no requests. It answers all of them, and lives.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{OnceLock, mpsc::channel},
    thread,
    time::Duration,
};

use arbitrary::{Arbitrary, Unstructured};
use serde_json::Value;
use yuan::{
    container::Container,
    model::{KvType, Options as RunOptions},
    pager::Paging,
    session::{Drafts, Engine, Hint},
};
use yuan_serve::{Bound, Options, Served};

use crate::{Seed, json, model};

const CONTEXT: usize = 48;
/// Longer than any of these answers takes, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(100);

#[derive(Arbitrary, Debug)]
enum Step {
    /// One of [`KNOWN`] with changes.
    Known(u8, Vec<json::Edit>),
    /// A body for an address.
    Body(u8, String),
    /// Any address and method.
    Other(u8, String, String),
    /// A header beside.
    Header(u8, String, String),
    /// Bytes in place of a request; the connection ends behind them.
    Bytes(Vec<u8>),
    /// A known request, of which some bytes are not sent.
    Cut(u8, u8),
}

/// Addresses with a request that they understand.
const KNOWN: [(&str, &str); 29] = [
    (
        "POST /v1/chat/completions",
        r#"{"model":"m","messages":[{"role":"system","content":"a"},{"role":"user","content":[{"type":"text","text":"w1 春"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},{"role":"tool","tool_call_id":"c","content":"2"}],"max_tokens":2,"temperature":0.7,"top_p":0.9,"seed":3,"n":2,"logprobs":true,"top_logprobs":2,"stop":["x"],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"x":{"type":"integer"}}}}}],"tool_choice":"auto","response_format":{"type":"text"},"stream":false,"logit_bias":{"5":1.5},"presence_penalty":0.5,"frequency_penalty":0.1}"#,
    ),
    (
        "POST /chat/completions",
        r#"{"messages":[{"role":"user","content":"a"}],"max_completion_tokens":2,"stream":true,"stream_options":{"include_usage":true},"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},"strict":true}}}"#,
    ),
    (
        "POST /v1/completions",
        r#"{"prompt":"a w1","max_tokens":2,"n":2,"best_of":2,"logprobs":2,"echo":true,"suffix":"","stop":"b","seed":1,"min_p":0.1,"top_k":5,"repeat_penalty":1.1,"grammar":"start: /[a-z]+/"}"#,
    ),
    (
        "POST /completions",
        r#"{"prompt":[[1,5,2],[3]],"max_tokens":0,"logprobs":1,"echo":true,"stream":true}"#,
    ),
    ("POST /v1/embeddings", r#"{"input":["a","b w1"],"encoding_format":"base64","dimensions":4}"#),
    (
        "POST /v1/responses",
        r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}],"instructions":"b","max_output_tokens":2,"store":true,"text":{"format":{"type":"json_object"}},"tools":[{"type":"function","name":"f","parameters":{}}],"stream":false}"#,
    ),
    (
        "POST /v1/responses",
        r#"{"input":"a","previous_response_id":"resp-1","max_output_tokens":1,"stream":true}"#,
    ),
    ("GET /v1/responses/resp-1", ""),
    ("DELETE /v1/responses/resp-1", ""),
    ("GET /v1/models/m", ""),
    (
        "POST /v1/messages",
        r#"{"model":"m","max_tokens":2,"system":[{"type":"text","text":"a"}],"messages":[{"role":"user","content":[{"type":"text","text":"b"},{"type":"tool_result","tool_use_id":"t","content":"c"}]},{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"f","input":{}}]}],"stop_sequences":["z"],"thinking":{"type":"disabled"},"tools":[{"name":"f","input_schema":{"type":"object"}}],"tool_choice":{"type":"auto"},"stream":true}"#,
    ),
    ("POST /v1/messages/count_tokens", r#"{"messages":[{"role":"user","content":"a"}],"system":"b"}"#),
    (
        "POST /api/chat",
        r#"{"model":"m","messages":[{"role":"user","content":"a"}],"options":{"num_predict":2,"temperature":0.5,"seed":1,"stop":["q"]},"format":"json","think":false,"keep_alive":"5m","stream":false}"#,
    ),
    (
        "POST /api/generate",
        r#"{"prompt":"a","suffix":"b","system":"s","template":"","raw":true,"options":{"num_predict":2},"format":{"type":"object"},"context":[1,2]}"#,
    ),
    ("POST /api/embed", r#"{"model":"m","input":["a","b"],"truncate":true,"dimensions":3}"#),
    ("POST /api/embeddings", r#"{"prompt":"a"}"#),
    ("GET /api/tags", ""),
    ("POST /api/show", r#"{"model":"m","verbose":true}"#),
    ("GET /api/ps", ""),
    ("POST /tokenize", r#"{"content":"a w1 春","add_special":true,"with_pieces":true}"#),
    ("POST /tokenize", r#"{"messages":[{"role":"user","content":"a"}],"add_generation_prompt":true}"#),
    ("POST /detokenize", r#"{"tokens":[1,5,2,260]}"#),
    ("GET /tokenizer_info", ""),
    (
        "POST /apply-template",
        r#"{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"enable_thinking":true}}"#,
    ),
    (
        "POST /infill",
        r#"{"input_prefix":"a","input_suffix":"b","input_extra":[{"text":"c","filename":"d"}],"prompt":"e","n_predict":2,"stream":true}"#,
    ),
    ("GET /slots", ""),
    ("POST /slots/0?action=save", r#"{"filename":"s"}"#),
    ("POST /slots/0?action=restore", r#"{"filename":"s"}"#),
    ("POST /slots/0?action=erase", "{}"),
];

/// Addresses without a body, and some that are none.
const OTHER: [&str; 14] = [
    "/props",
    "/metrics",
    "/health",
    "/experts",
    "/openapi.json",
    "/",
    "/app.js",
    "/api/version",
    "/v1/models",
    "/v1/models/%2e%2e%2f",
    "/slots/99999999999999999999?action=",
    "/slots/0?action=save&action=%ff",
    "/v1/responses/%00",
    "*",
];

/// The server of this process.
fn address() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let path = model::folder().join("served.gguf");
        let (config, options) = model::configs().swap_remove(0);
        model::write(&config, &options, &path);
        let options = RunOptions { context: 8 * CONTEXT, ..model::options(Paging::Auto) };
        let engine = Engine::new(Container::open(&path).expect("a container"), &options).expect("an engine");
        let served = Served {
            engine,
            name: "m".into(),
            context: CONTEXT,
            kv: KvType::F16,
            drafts: Drafts::Auto,
            hint: Hint::default(),
        };
        let sessions = Some(model::folder().join("sessions"));
        let bound = Bound::new(Options { port: 0, sessions, ..Options::default() }).expect("a free port");
        let (address, (say, hear)) = (bound.address(), channel());
        thread::spawn(move || {
            bound.run(|| Ok(served), move |_| drop(say.send(()))).expect("the server runs")
        });
        hear.recv().expect("the model is there");
        address
    })
}

/// A few requests, one after another, over one connection as long as it stays open.
pub fn run(data: &[u8]) {
    let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let address = address();
    let mut connection: Option<Connection> = None;
    for step in steps.iter().take(6) {
        let mut open = connection.take().unwrap_or_else(|| Connection::new(address));
        let sent = request(step);
        let ends = matches!(step, Step::Bytes(_) | Step::Cut(..));
        match open.ask(&sent, ends) {
            // A wait without an end is what is looked for.
            Err(problem) if problem.kind() == io::ErrorKind::WouldBlock => {
                panic!("no answer to {:?}", String::from_utf8_lossy(&sent))
            }
            Ok(true) if !ends => connection = Some(open),
            _ => {}
        }
    }
    drop(connection);
}

fn request(step: &Step) -> Vec<u8> {
    let post = |i: u8, body: &str, more: &str| {
        let place = KNOWN[usize::from(i) % KNOWN.len()].0;
        let body = body.as_bytes();
        let head = format!(
            "{place} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let known = |i: u8| KNOWN[usize::from(i) % KNOWN.len()].1;
    match step {
        Step::Known(i, edits) => {
            let body = match serde_json::from_str::<Value>(known(*i)) {
                Ok(body) => small(json::changed(&body, &edits[..edits.len().min(8)])).to_string(),
                Err(_) => String::new(),
            };
            post(*i, &body, "")
        }
        Step::Body(i, body) => post(*i, body, ""),
        Step::Other(method, place, query) => {
            let method = ["GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD"][usize::from(*method) % 6];
            let known = OTHER[usize::from(*place.as_bytes().first().unwrap_or(&0)) % OTHER.len()];
            // Events without an end are asked for by nobody here.
            let query: String = query.chars().filter(|c| c.is_ascii_graphic()).collect();
            let known = if known == "/experts" { "/experts".into() } else { format!("{known}{query}") };
            format!("{method} {known} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").into_bytes()
        }
        Step::Header(i, name, value) => {
            let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
            let (name, value) = (clean(name), clean(value));
            let body = serde_json::from_str::<Value>(known(*i)).map_or(String::new(), |v| v.to_string());
            post(*i, &body, &format!("{name}: {value}\r\n"))
        }
        Step::Bytes(bytes) => bytes.clone(),
        Step::Cut(i, by) => {
            let mut sent = post(*i, known(*i), "");
            sent.truncate(sent.len().saturating_sub(1 + usize::from(*by)));
            sent
        }
    }
}

/// Few tokens, since an answer of many takes as long as it takes.
fn small(mut body: Value) -> Value {
    for name in ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"] {
        if let Some(n) = body.get_mut(name)
            && n.as_u64().is_some_and(|n| n > 4)
        {
            *n = 4.into();
        }
    }
    body
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.set_nodelay(true).expect("a socket");
        // Closed at once: tens of thousands of connections would be remembered for a minute each.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket");
        Self { stream, read: Vec::new() }
    }

    /// Sends a request and reads the answer. Says whether the connection is still open.
    fn ask(&mut self, request: &[u8], ends: bool) -> io::Result<bool> {
        self.stream.write_all(request)?;
        if ends {
            self.stream.shutdown(std::net::Shutdown::Write)?;
            // All of it, whatever it is.
            self.stream.read_to_end(&mut self.read)?;
            return Ok(false);
        }
        let head_only = request.starts_with(b"HEAD ");
        self.read.clear();
        let head = loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more()? {
                return Ok(false);
            }
        };
        let text = String::from_utf8_lossy(&self.read[..head]).to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 "), "{text}");
        assert!(
            !text.starts_with("http/1.1 500"),
            "{:?} is a failure of the server: {text}",
            String::from_utf8_lossy(request)
        );
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        if field("connection") == Some("close") {
            self.stream.read_to_end(&mut self.read)?;
            return Ok(false);
        }
        if head_only {
            return Ok(true);
        }
        match field("content-length").and_then(|n| n.parse::<usize>().ok()) {
            Some(length) => {
                while self.read.len() < head + length {
                    if !self.more()? {
                        return Ok(false);
                    }
                }
            }
            None if field("transfer-encoding") == Some("chunked") => {
                while !self.read.ends_with(b"\r\n0\r\n\r\n") && !self.read[head..].eq(b"0\r\n\r\n") {
                    if !self.more()? {
                        return Ok(false);
                    }
                }
            }
            None => {}
        }
        Ok(true)
    }

    fn more(&mut self) -> io::Result<bool> {
        let mut piece = [0; 4096];
        let n = self.stream.read(&mut piece)?;
        self.read.extend(&piece[..n]);
        Ok(n > 0)
    }
}

/// Bytes that choose each of the known requests, and the others.
pub fn seeds() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = (0..KNOWN.len() as u8).map(|i| vec![1, 0, 0, 0, 0, i, 0]).collect();
    seeds.push(b"\x01\xff\xff\xff\xffGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec());
    seeds
}
