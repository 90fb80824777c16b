//! What all requests share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use yuan::{
    model::KvType,
    session::{Drafts, Engine, Hint, Session},
};

use crate::{
    crew::Crew, gate::Gate, metrics::Metrics, openai::stored::Responses, options::Options, problem::Problem,
    slots::Slots, work::Stop,
};

/// A model that is ready, and what is said of it.
#[derive(Clone, Debug)]
pub struct Served {
    /// The model.
    pub engine: Arc<Engine>,
    /// What clients call it. They may call it otherwise: there is one.
    pub name: String,
    /// Tokens of one sequence, prompt and answer together.
    pub context: usize,
    /// The type of keys and values.
    pub kv: KvType,
    /// Whether answers are drafted.
    pub drafts: Drafts,
    /// What they are drafted from, too, unless a request has a text of its own.
    pub hint: Hint,
}

impl Served {
    /// An empty timeline.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(&self) -> yuan::Result<Session> {
        let mut session = Session::new(self.engine.clone(), self.context, self.kv)?;
        session.set_drafts(self.drafts);
        session.draft_from(self.hint.clone());
        Ok(session)
    }
}

/// A model that was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub served: Served,
    /// By which clients notice that answers may have become others: of the model and of the program.
    pub fingerprint: String,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
}

impl Loaded {
    /// The name that a client gives the model, or else its own.
    pub fn name(&self, asked: Option<&str>) -> String {
        asked.filter(|name| !name.is_empty()).unwrap_or(&self.served.name).to_owned()
    }
}

/// The server.
#[derive(Debug)]
pub struct Server {
    /// What it was told.
    pub options: Options,
    /// Who is let in.
    pub gate: Gate,
    /// Who runs sequences.
    pub crew: Crew,
    /// What runs.
    pub slots: Slots,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether only programs of this machine reach it.
    pub is_local: bool,
    /// Digests of the keys that open it; none where it is open.
    pub keys: Vec<blake3::Hash>,
    /// True when the server is to take no more requests.
    pub ending: watch::Sender<bool>,
    model: OnceLock<Arc<Loaded>>,
    requests: AtomicU64,
    responses: Mutex<Responses>,
    running: Mutex<Vec<Weak<Stop>>>,
}

/// As requests hold it.
pub type Shared = Arc<Server>;

impl Server {
    /// A server that has no model yet, and is reached from this machine alone or not.
    ///
    /// # Errors
    /// As [`Options::keys`].
    pub fn new(options: Options, is_local: bool) -> anyhow::Result<Shared> {
        let keys = options.keys()?.iter().map(|key| blake3::hash(key.as_bytes())).collect();
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            gate: Gate::new(number(options.sequences), number(options.queue)),
            crew: Crew::default(),
            slots: Slots::new(number(options.sequences)),
            options,
            is_local,
            metrics: Metrics::default(),
            keys,
            ending: watch::Sender::new(false),
            model: OnceLock::new(),
            requests: AtomicU64::new(now().as_micros() as u64),
            responses: Mutex::default(),
            running: Mutex::default(),
        }))
    }

    /// From now on there is a model.
    ///
    /// # Errors
    /// As [`Container::fingerprint`](yuan::container::Container::fingerprint).
    pub fn loaded(&self, served: Served) -> yuan::Result<()> {
        let mut digest = blake3::Hasher::new();
        digest.update(&served.engine.container().fingerprint()?);
        digest.update(yuan::VERSION.as_bytes());
        digest.update(format!("{:?} {:?}", served.engine.model().arithmetic(), served.kv).as_bytes());
        let fingerprint = format!("yuan-{:.16}", digest.finalize().to_hex());
        let _ = self.model.set(Arc::new(Loaded { served, fingerprint, created: now().as_secs() }));
        Ok(())
    }

    /// The model.
    ///
    /// # Errors
    /// Status 503 while it is being loaded.
    pub fn model(&self) -> Result<&Arc<Loaded>, Problem> {
        self.model.get().ok_or_else(Problem::loading)
    }

    /// A name for one more request.
    pub fn request(&self, kind: &str) -> String {
        format!("{kind}-{:016x}", self.requests.fetch_add(1, Relaxed))
    }

    /// Responses that clients may come back to.
    pub fn responses(&self) -> MutexGuard<'_, Responses> {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something to stop a request by, which the server knows too.
    pub fn stop(&self) -> Arc<Stop> {
        let stop = Arc::default();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|stop| stop.strong_count() > 0);
        running.push(Arc::downgrade(&stop));
        stop
    }

    /// Stops all requests.
    pub fn stop_all(&self) {
        self.gate.close();
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().filter_map(Weak::upgrade).for_each(|stop| stop.stop());
    }
}

/// Since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A time in seconds since 1970, as RFC 3339 writes it.
pub fn time(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}
