//! Reading a saved session back. Nothing in the file is trusted: every size is checked against the file's before it is used,
//! and the whole against its digest.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
};

use super::{
    Engine, Session,
    save::{DIGEST, FLOAT, Header, MAGIC, OLD_ARITHMETIC, VERSION, identity},
};
use crate::{
    config::RopePrecision,
    error::{Error, Result},
    limits::MOST_CONTEXT,
    model::{Extent, KvType, State, UNROTATED_Q4_0},
    sampler::Sampler,
};

/// What a file holds.
#[derive(Debug)]
pub struct Restored {
    /// The session, as it was.
    pub session: Session,
    /// The sampler, where one was saved.
    pub sampler: Option<Sampler>,
    /// (layer, expert) of the experts that the session used, the most valuable first: for [`Pager::warm`](crate::pager::Pager::warm).
    pub hot: Vec<(usize, usize)>,
}

impl Session {
    /// Reads a session that [`Session::save`] has written. The type of the key-value cache is the file's; the room for tokens is
    /// the file's too, or `context`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] for a file that is damaged, or no session at all; [`Error::Unsupported`] with what
    /// differs, for a session of another model, other settings or another version of the format; [`Error::ContextFull`] when
    /// `context` is too small for it; [`Error::Memory`] when the file asks for more room than the model's memory has.
    pub fn restore(engine: Arc<Engine>, path: &Path, context: Option<usize>) -> Result<Restored> {
        let (mut reader, length) = Reader::open(path)?;
        let header = reader.header(length, &engine)?;
        reader.session(engine, &header, context)
    }
}

/// How large the session in a file is, before a model is opened for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Tokens of its timeline.
    pub tokens: usize,
    /// Tokens that it had room for.
    pub room: usize,
}

impl Size {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// As [`Session::restore`], but nothing behind the header is looked at.
    pub fn of(path: &Path) -> Result<Self> {
        let (mut reader, length) = Reader::open(path)?;
        let header = reader.counts()?;
        // A token takes four bytes.
        if header.tokens > length / 4 {
            return Err(reader.wrong_counts(length));
        }
        Ok(Self { tokens: header.tokens as usize, room: header.capacity as usize })
    }
}

struct Reader<'p> {
    path: &'p Path,
    input: Hashing<BufReader<File>>,
}

impl<'p> Reader<'p> {
    /// At the beginning of a file, and the file's length.
    fn open(path: &'p Path) -> Result<(Self, u64)> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("open", path))?;
        if !metadata.is_file() {
            return Err(Error::Argument(format!("{} is no file; give a saved session", path.display())));
        }
        let input = Hashing { input: BufReader::with_capacity(1 << 20, file), hasher: blake3::Hasher::new() };
        Ok((Self { path, input }, metadata.len()))
    }

    fn damaged(&self, place: &str, problem: impl Into<String>) -> Error {
        Error::BadFile {
            path: self.path.into(),
            place: place.into(),
            problem: problem.into(),
            remedy: "the file is damaged or incomplete: save the session again",
        }
    }

    fn wrong_counts(&self, length: u64) -> Error {
        self.damaged("the header", format!("its counts do not fit the {length} bytes of the file"))
    }

    fn differs(&self, what: String, remedy: &str) -> Error {
        Error::Unsupported { path: self.path.into(), what, remedy: remedy.into() }
    }

    fn failed(&self, place: &str, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(place, "the file ends there"),
            io::ErrorKind::InvalidData => self.damaged(place, error.to_string()),
            _ => Error::io("read", self.path)(error),
        }
    }

    fn bytes<const N: usize>(&mut self, place: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|e| self.failed(place, e))?;
        Ok(bytes)
    }

    fn word(&mut self) -> Result<u32> {
        self.bytes("the header").map(u32::from_le_bytes)
    }

    fn count(&mut self) -> Result<u64> {
        self.bytes("the header").map(u64::from_le_bytes)
    }

    /// A list of words, whose length was checked against the file's.
    fn words(&mut self, count: u64, place: &str) -> Result<Vec<u32>> {
        let mut words = vec![0u32; usize::try_from(count).unwrap_or(0)];
        let bytes = bytemuck::cast_slice_mut(&mut words);
        self.input.read_exact(bytes).map_err(|e| self.failed(place, e))?;
        Ok(words)
    }

    /// Bytes, whose number was checked against the file's.
    fn list(&mut self, count: u64, place: &str) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
        self.input.read_exact(&mut bytes).map_err(|e| self.failed(place, e))?;
        Ok(bytes)
    }

    /// The header as it stands there.
    fn counts(&mut self) -> Result<Header> {
        if self.bytes("the beginning")? != MAGIC {
            return Err(Error::BadFile {
                path: self.path.into(),
                place: "the beginning".into(),
                problem: "it is no saved session".into(),
                remedy: "give a file that was written by --save or /save",
            });
        }
        let version = self.word()?;
        if version != VERSION {
            let what = format!("version {version} of the format");
            return Err(
                self.differs(what, "save the session again with this program, which writes version 1")
            );
        }
        let header = Header {
            fingerprint: self.bytes("the header")?,
            kv: self.word()?,
            arithmetic: self.word()?,
            rope: self.word()?,
            shape: [self.word()?, self.word()?, self.word()?, self.word()?],
            capacity: self.count()?,
            tokens: self.count()?,
            position: self.count()?,
            snapshots: self.count()?,
            sampler: self.count()?,
            hot: self.count()?,
            note: self.count()?,
        };
        if header.capacity > MOST_CONTEXT as u64 {
            let problem =
                format!("it asks for room for {} tokens; {MOST_CONTEXT} are possible", header.capacity);
            return Err(self.damaged("the header", problem));
        }
        Ok(header)
    }

    /// The header, which fits the engine and the length of the file.
    fn header(&mut self, length: u64, engine: &Engine) -> Result<Header> {
        let header = self.counts()?;
        self.check_model(&header, engine)?;
        if header.file_bytes(engine.model()) != Some(length) {
            return Err(self.wrong_counts(length));
        }
        if header.position > header.tokens || header.position > header.capacity {
            return Err(self.damaged("the header", "it has more states than tokens"));
        }
        Ok(header)
    }

    /// Whether the session is one of this model and its settings.
    fn check_model(&self, header: &Header, engine: &Engine) -> Result<()> {
        if header.kv == UNROTATED_Q4_0 {
            let what =
                "a session whose keys and values are in q4_0 as it was before keys were rotated".into();
            return Err(self.differs(what, "run its prompt again and save the session anew"));
        }
        let (shape, arithmetic, rope) = identity(engine.model());
        if header.fingerprint != engine.container().fingerprint()? || header.shape != shape {
            let model = engine.container().path().display();
            let what = format!("a session of another model than {model}");
            return Err(self.differs(what, "open the model that it was saved with"));
        }
        if header.rope != rope {
            let names = [RopePrecision::Mixed, RopePrecision::F32, RopePrecision::HfBf16];
            let found = names.iter().find(|r| **r as u32 == header.rope).map_or("?", |r| r.name());
            let ours = engine.model().config().rope_precision.name();
            let what = format!("a session with the rotary convention {found} on a model with {ours}");
            return Err(self.differs(what, &format!("run the model with --rope {found}")));
        }
        if header.arithmetic != arithmetic {
            let (what, remedy) = match header.arithmetic {
                OLD_ARITHMETIC => (
                    "a session of integer products by version 1 of the arithmetic, whose continuation would have other bits than the same text run anew".into(),
                    "run its text again and save the session anew",
                ),
                FLOAT => (
                    "a session of float products on a model with integer products".into(),
                    "run the model with --float",
                ),
                yuan_kernels::ARITHMETIC => (
                    "a session of integer products on a model with float products".into(),
                    "run the model without --float",
                ),
                version => (
                    format!("a session of integer products by version {version} of the arithmetic"),
                    "open it with the program that saved it, or run its text again",
                ),
            };
            return Err(self.differs(what, remedy));
        }
        Ok(())
    }

    fn session(mut self, engine: Arc<Engine>, header: &Header, context: Option<usize>) -> Result<Restored> {
        let kv = KvType::from_number(header.kv)
            .ok_or_else(|| self.damaged("the header", format!("there is no key-value type {}", header.kv)))?;
        let position = header.position as usize;
        let capacity = context.unwrap_or(header.capacity as usize);
        if position > capacity {
            return Err(Error::ContextFull { capacity, wanted: position });
        }
        // The file is trusted with no more memory than the model may take, whatever room it says that it had.
        let bytes = (State::kv_bytes(engine.model().config(), kv) as u64).saturating_mul(capacity as u64);
        let budget = &engine.model().placement().budget;
        if context.is_none() && bytes > budget.bytes {
            return Err(Error::Memory(format!(
                "{}: the session had room for {capacity} tokens, of which it holds {}: that takes {bytes} bytes, and {} are there ({}); \
                 restore it with a context of your own",
                self.path.display(),
                header.tokens,
                budget.bytes,
                budget.set_by
            )));
        }
        let mut session = Session::new(engine, capacity, kv)?;

        session.tokens = self.words(header.tokens, "the tokens")?;
        let vocab = session.engine.model().config().vocab;
        if let Some(id) = session.tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(self.damaged("the tokens", format!("{id} is outside the vocabulary of {vocab}")));
        }
        let sampler = self.list(header.sampler, "the sampler")?;
        let sampler = match sampler.as_slice() {
            [] => None,
            bytes => {
                Some(Sampler::from_bytes(bytes).map_err(|e| self.damaged("the sampler", e.to_string()))?)
            }
        };
        let hot = self.words(header.hot * 2, "the experts")?;
        let hot: Vec<_> = hot.as_chunks().0.iter().map(|&[l, e]| (l as usize, e as usize)).collect();
        let config = session.engine.model().config();
        if let Some((l, e)) = hot.iter().find(|(l, e)| *l >= config.layers || *e >= config.experts) {
            return Err(self.damaged("the experts", format!("there is no expert {e} of layer {l}")));
        }
        session.note = String::from_utf8(self.list(header.note, "the note")?)
            .map_err(|_| self.damaged("the note", "it is no UTF-8 text"))?;
        let extent = Extent { position, snapshots: header.snapshots as usize };
        session.state.reserve(position, 0)?;
        session.state.read(extent, &mut self.input).map_err(|e| self.failed("the state", e))?;

        let found = self.input.hasher.finalize();
        let expected: [u8; DIGEST] = self.bytes("the digest")?;
        if found != expected {
            return Err(self.damaged("the digest", "the bytes are not those that were written"));
        }
        Ok(Restored { session, sampler, hot })
    }
}

/// Hashes what passes through.
struct Hashing<R> {
    input: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        Ok(read)
    }
}
