//! A container that is used while it comes (`--while-pulling`): its file is the one of `yuan pull`, which goes on where this has stopped, and the other
//! way round.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use yuan::{
    container::{Arrival, Container},
    quantize::Wishes,
};
use yuan_hub::{Coming, Remote, Repository, download::Watch};

use super::{Chosen, DONE, Hub, Pull, choose, keep_what_is_the_same, room::check_room};
use crate::{
    console::{size, stopped},
    models::{COMING, Model, file_of, folder, lock},
    tell,
};

/// Parts of the file that come side by side.
const CONNECTIONS: u8 = 4;
/// How long the end of the program waits for connections. What they lose is a block of each.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether a model is fetched while it is used.
#[derive(Args, Clone, Debug, Default)]
pub struct WhilePulling {
    /// Fetch the model, whose name is that of a repository with a container, and answer as soon as there is what the answer needs; the rest comes
    /// meanwhile
    #[arg(help_heading = "Hub", long)]
    pub while_pulling: bool,
    /// With --while-pulling: address of a mirror in place of the hub's own; by default what HF_ENDPOINT or MODELSCOPE_DOMAIN names
    #[arg(help_heading = "Hub", long, value_name = "URL", requires = "while_pulling")]
    pub endpoint: Option<String>,
    /// With --while-pulling: the file to take of a repository that has several GGUF files
    #[arg(help_heading = "Hub", long, value_name = "FILE", requires = "while_pulling")]
    pub gguf: Option<String>,
}

impl WhilePulling {
    /// Opens a model, which is fetched meanwhile if that is asked for and it is not there, and does something with it; says in the end how much has come.
    ///
    /// # Errors
    /// Those of `work`; there is no such model; the hub has it as a checkpoint only.
    pub fn with(
        &self,
        model: &Model,
        work: impl FnOnce(Container) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self.begin(model)? {
            Begun::There(path) => work(Container::open(&path)?),
            Begun::Coming(pulling) => {
                let arrival = Arc::new(FromHub(pulling.coming.clone()));
                let opened = Container::open_arriving(pulling.coming.part(), arrival);
                let done = opened.map_err(Into::into).and_then(work);
                let ended = pulling.end();
                done.and(ended)
            }
        }
    }

    fn begin(&self, model: &Model) -> anyhow::Result<Begun> {
        let there = model.path();
        let (Err(none), true) = (&there, self.while_pulling) else { return there.map(Begun::There) };
        let Some(name) = model.named() else { bail!("{none:#}") };
        let repository = Repository::parse(name)?;
        let folder = folder()?;
        let output = file_of(&repository.name(), &folder)
            .with_context(|| format!("{:?} is no name of a model", repository.name()))?;
        let id = repository.id.clone();
        let hub = Hub {
            endpoint: self.endpoint.clone(),
            connections: CONNECTIONS,
            file: self.gguf.clone(),
            keep: false,
        };
        let pull = Pull { repository, hub, output: &output, wishes: Wishes::default() };
        let mut hub = yuan_hub::Hub::new(&pull.repository, self.endpoint.as_deref());
        let chosen = choose(&hub.files()?, self.gguf.as_deref()).with_context(|| format!("in {id}"))?;
        let Chosen::Container(file) = &chosen else {
            bail!(
                "{id} has a checkpoint, which has to be converted before it can be run: `yuan pull {name}` does that while it comes, and `yuan chat {name}` \
                 talks with it then"
            );
        };
        let coming = output.with_added_extension(COMING);
        fs::create_dir_all(&coming)
            .with_context(|| format!("cannot make the folder {}", coming.display()))?;
        let lock = lock(&coming)?;
        keep_what_is_the_same(&hub, &coming, &chosen)?;
        if pull.is_done(&coming) || coming.join(&file.path).exists() {
            // A run that was killed behind the last byte has left the rest to this one.
            drop(lock);
            pull.run()?;
            return Ok(Begun::There(output));
        }
        check_room(&output, &coming, file.size)?;
        Ok(Begun::Coming(Pulling::begin(name, &hub, file, &coming, &output, lock)?))
    }
}

enum Begun {
    There(PathBuf),
    Coming(Pulling),
}

/// A container that comes in a thread of its own.
struct Pulling {
    name: String,
    coming: Arc<Coming>,
    stop: Arc<AtomicBool>,
    done: Receiver<anyhow::Result<()>>,
    folder: PathBuf,
    output: PathBuf,
    /// Of the folder.
    lock: File,
}

impl Pulling {
    fn begin(
        name: &str,
        hub: &yuan_hub::Hub,
        file: &Remote,
        folder: &Path,
        output: &Path,
        lock: File,
    ) -> anyhow::Result<Self> {
        let come = folder.join(&file.path);
        let coming = Arc::new(Coming::begin(hub, file, &come)?);
        tell!(
            "{name}: {} of {} are here; an answer begins when what it needs is there",
            size(coming.there()),
            size(file.size)
        );
        let stop = Arc::new(AtomicBool::new(false));
        let (tell_end, done) = channel();
        let (fetched, is_stopped) = (coming.clone(), stop.clone());
        let (place, target) = (folder.to_owned(), output.to_owned());
        let fetch = move || {
            let fetched = fetched.run_on(CONNECTIONS.into(), &Until(is_stopped));
            let named = fetched.and_then(|()| {
                fs::write(place.join(DONE), "")?;
                fs::rename(&come, &target)
                    .with_context(|| format!("cannot give {} its name", target.display()))
            });
            // Nobody hears it where the program has ended.
            let _ = tell_end.send(named);
        };
        thread::Builder::new().name("yuan-pull".into()).spawn(fetch).context("cannot start a thread")?;
        let (name, folder, output) = (name.to_owned(), folder.to_owned(), output.to_owned());
        Ok(Self { name, coming, stop, done, folder, output, lock })
    }

    /// Stops what still comes, and says how much is there.
    ///
    /// # Errors
    /// What has come is not what the hub has.
    fn end(self) -> anyhow::Result<()> {
        let Self { name, coming, stop, done, folder, output, lock } = self;
        // One that has ended by itself has not just been stopped.
        let ended = done.try_recv();
        stop.store(true, Relaxed);
        let ended_by_itself = ended.is_ok();
        match ended.or_else(|_| done.recv_timeout(PATIENCE)) {
            Ok(Ok(())) => {
                // Windows removes no file that is open.
                drop(lock);
                fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
                tell!("{name}: all of it is here, {}", output.display());
            }
            Ok(Err(error)) if ended_by_itself => return Err(error),
            _ => tell!(
                "{name}: {} of {} are here; the same again goes on with it, or `yuan pull {name}`",
                size(coming.there()),
                size(coming.size())
            ),
        }
        Ok(())
    }
}

/// A file of a hub as that of a container.
struct FromHub(Arc<Coming>);

impl Arrival for FromHub {
    fn bring(&self, range: Range<u64>, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        self.0.need(range, &|| go_on() && !stopped())
    }

    fn expect(&self, range: Range<u64>) {
        self.0.expect(range);
    }

    fn reject(&self, range: Range<u64>) -> Range<u64> {
        self.0.reject(range)
    }
}

/// Goes on until it is set. Ctrl-C stops an answer, and not what comes behind it.
struct Until(Arc<AtomicBool>);

impl Watch for Until {
    fn came(&self, _: u64) {}

    fn went(&self, _: u64) {}

    fn go_on(&self) -> bool {
        !self.0.load(Relaxed)
    }
}
