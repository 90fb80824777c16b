//! What the tests share: a server of the demo model on a free port, and a client.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock, mpsc::channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};
use ureq::{Agent, Body, http::Response};
use yuan::{
    checkpoint::{Checkpoint, vocab::read_vocab},
    container::Container,
    convert::Conversion,
    model::{KvType, Options as RunOptions},
    quantize::{Options as Types, Plan},
    session::{Drafts, Engine, Hint},
};
use yuan_serve::{Bound, Options, Served, Stopper};

pub const CONTEXT: usize = 1024;

/// The demo model, converted once for all tests.
pub fn engine() -> Arc<Engine> {
    static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
    ENGINE.get_or_init(demo).clone()
}

fn demo() -> Arc<Engine> {
    converted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo-model"))
}

/// The model of a checkpoint's folder. Its container is gone when it is open.
pub fn converted(checkpoint: &Path) -> Arc<Engine> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let checkpoint = Checkpoint::open(checkpoint).unwrap();
    let vocab = read_vocab(checkpoint.folder(), Some(checkpoint.config())).unwrap();
    let plan = Plan::new(checkpoint.config().clone(), &Types::default()).unwrap();
    let conversion = Conversion::of_checkpoint(plan, &checkpoint, &vocab, b"test", None).unwrap();
    conversion.write(&path, &|_| true).unwrap();
    let options = RunOptions { threads: 2, context: 16 * CONTEXT, ..RunOptions::default() };
    Engine::new(Container::open(&path).unwrap(), &options).unwrap()
}

pub fn served() -> Served {
    Served {
        engine: engine(),
        name: "demo".into(),
        context: CONTEXT,
        kv: KvType::F16,
        drafts: Drafts::Auto,
        hint: Hint::default(),
    }
}

/// A server that ends with the test.
pub struct Running {
    pub address: SocketAddr,
    pub stopper: Stopper,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Running {
    /// With usual options.
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    /// With a model that no other test uses, so that what it counts is this test's.
    pub fn alone() -> Self {
        Self::of(Options::default(), Served { engine: demo(), ..served() })
    }

    pub fn with(options: Options) -> Self {
        Self::of(options, served())
    }

    /// With this model, when it can answer.
    pub fn of(options: Options, served: Served) -> Self {
        let running = Self::loading(options, || Ok(served));
        while running.get("/health").0 == 503 {
            thread::sleep(Duration::from_millis(5));
        }
        running
    }

    /// With a model that is there later.
    pub fn loading(options: Options, load: impl FnOnce() -> anyhow::Result<Served> + Send + 'static) -> Self {
        let bound = Bound::new(Options { port: 0, ..options }).unwrap();
        let (address, stopper) = (bound.address(), bound.stopper());
        let (say, hear) = channel();
        let thread = thread::spawn(move || {
            say.send(()).unwrap();
            bound.run(load, |_| {})
        });
        hear.recv().unwrap();
        Self { address, stopper, thread: Some(thread) }
    }

    /// Tells it to stop, and waits until it has.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        read(agent().get(self.url(path)).call().unwrap())
    }

    /// Status and body of a request.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.post_text(path, &body.to_string())
    }

    pub fn post_text(&self, path: &str, body: &str) -> (u16, Value) {
        read(self.send(path, body))
    }

    pub fn send(&self, path: &str, body: &str) -> Response<Body> {
        agent().post(self.url(path)).content_type("application/json").send(body).unwrap()
    }

    /// The reply to a request that must succeed.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let (status, reply) = self.post(path, body);
        assert_eq!(status, 200, "{body}: {reply}");
        reply
    }

    /// The chunks of a request that streams and must succeed.
    pub fn chunks(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.send(path, &body.to_string());
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let lines = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap);
        let mut data: Vec<_> =
            lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).collect();
        assert_eq!(data.pop().as_deref(), Some("[DONE]"));
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// A counter of `/metrics`.
    pub fn counter(&self, name: &str) -> f64 {
        let [value] = self.counters([name]);
        value
    }

    /// Counters of one moment. The engine's count what other tests do, too.
    pub fn counters<const N: usize>(&self, names: [&str; N]) -> [f64; N] {
        let text = agent().get(self.url("/metrics")).call().unwrap().into_body().read_to_string().unwrap();
        names.map(|name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect(name);
            line.parse().unwrap()
        })
    }

    /// Waits until a counter has a value.
    pub fn wait_for(&self, name: &str, value: f64) {
        while self.counter(name) != value {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

/// Every request has a connection of its own.
pub fn agent() -> Agent {
    Agent::config_builder().http_status_as_error(false).max_idle_connections(0).build().into()
}

pub fn read(response: Response<Body>) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.into_body().read_to_string().unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text:?}")))
}

/// The message of a refusal, which must have this status and the form of all.
pub fn refused(reply: &(u16, Value), status: u16) -> String {
    assert_eq!(reply.0, status, "{}", reply.1);
    let error = &reply.1["error"];
    assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some());
    error["message"].as_str().unwrap().to_owned()
}

pub fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}
