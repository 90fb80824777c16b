//! A model over HTTP. [`Bound`] is a server that listens; [`Bound::run`] loads its model and serves it until it is told to stop.
//!
//! Requests are read and answers written by a few asynchronous tasks; each sequence of a request runs on a thread of its own, with a
//! [`Session`](yuan::session::Session), and says what it has over a bounded channel.

mod addresses;
mod anthropic;
mod asked;
mod calls;
mod chains;
mod constraint;
mod conversation;
mod crew;
mod dialect;
mod drafting;
mod experts;
mod fim;
mod gate;
mod llama;
mod messages;
mod metrics;
mod ollama;
mod openai;
mod options;
mod page;
mod parts;
mod piece;
mod problem;
mod router;
mod sampling;
mod server;
mod slots;
mod stream;
mod text;
mod tokens;
mod visitors;
mod wanted;
mod work;

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use listenfd::ListenFd;
use tokio::sync::{oneshot, watch};

pub use options::Options;
pub use server::Served;
use server::{Server, Shared};

/// Time that connections have to end, once all requests have.
const GOODBYE: Duration = Duration::from_secs(2);

/// A server that listens and has no model yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    server: Shared,
}

/// Tells a server to stop: from any thread.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// The server takes no more requests, ends those that run, and returns.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// The socket that systemd has given the process.
fn given() -> anyhow::Result<Option<TcpListener>> {
    let mut sockets = ListenFd::from_env();
    let count = sockets.len();
    ensure!(count <= 1, "systemd has given {count} sockets; give one, a stream of TCP");
    match count {
        0 => Ok(None),
        _ => sockets.take_tcp_listener(0).context("systemd has given a socket that is no stream of TCP"),
    }
}

impl Bound {
    /// Listens: on the socket that systemd has given the process, if it has (LISTEN_FDS), and else where the options say.
    ///
    /// # Errors
    /// The address is taken or none of this machine's, the keys cannot be read, or there cannot be a folder for sessions.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        if let Some(folder) = &options.sessions {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("--sessions: cannot make the folder {}", folder.display()))?;
        }
        let listener = match given()? {
            Some(listener) => listener,
            None => {
                let place = (options.host.as_str(), options.port);
                TcpListener::bind(place).with_context(|| {
                    format!("cannot listen on {}:{}; choose others with --host and --port", place.0, place.1)
                })?
            }
        };
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, server: Server::new(options, address.ip().is_loopback())? })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// By which it is told to stop.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.server.ending.clone())
    }

    /// Loads the model, tells `ready` of it, and serves it until it is told to stop. Requests that come before the model is there get status 503.
    ///
    /// # Errors
    /// That of `load`, or of the system.
    pub fn run(
        self,
        load: impl FnOnce() -> anyhow::Result<Served> + Send + 'static,
        ready: impl FnOnce(&Served) + Send + 'static,
    ) -> anyhow::Result<()> {
        let router = router::router(self.server.clone())?;
        let runtime = crew::runtime()?;
        let crew = self.server.crew.clone();
        let stop = self.server.ending.subscribe();
        let server = self.server;
        let served = runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            let mut stopped = stop.clone();
            let until = async move { drop(stopped.wait_for(|stop| *stop).await) };
            let serving = axum::serve(listener, router).with_graceful_shutdown(until).into_future();
            let serving = tokio::spawn(serving);
            let (sender, loaded) = oneshot::channel();
            let loading = {
                let server = server.clone();
                move || {
                    let served = load()?;
                    server.loaded(served.clone())?;
                    ready(&served);
                    anyhow::Ok(())
                }
            };
            // Nobody waits for it any more where the server has failed.
            let begin = move || drop(sender.send(loading()));
            server.crew.run(begin).context("cannot start a thread")?;
            loaded.await.map_err(|_| anyhow!("loading the model has failed"))??;
            end(&server, stop, serving).await
        });
        // Threads of sequences end with their next token.
        runtime.shutdown_timeout(GOODBYE);
        crew.end(GOODBYE);
        served
    }
}

/// Waits until the server is told to stop, and then until its requests have ended, or are cut off.
async fn end(
    server: &Shared,
    mut stop: watch::Receiver<bool>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
) -> anyhow::Result<()> {
    // The sender is there as long as the server.
    let _ = stop.wait_for(|stop| *stop).await;
    let drain = Duration::from_secs(server.options.drain);
    let mut serving = std::pin::pin!(serving);
    let ended = match tokio::time::timeout(drain, &mut serving).await {
        Ok(ended) => Ok(ended),
        Err(_) => {
            server.stop_all();
            tokio::time::timeout(GOODBYE, &mut serving).await
        }
    };
    match ended {
        Ok(ended) => Ok(ended.context("the server has failed")??),
        // A client that keeps its connection does not keep the program.
        Err(_) => Ok(()),
    }
}
