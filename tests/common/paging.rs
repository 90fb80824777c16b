//! A small model whose experts are paged, and files that fail.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use yuan::{
    config::ModelConfig,
    container::{Bytes, Container},
    convert::Conversion,
    machine::{budget::Limit, source::Source},
    model::{KvType, Model, Options, Placement, State, Want},
    pager::{Mode, Paging, Settings},
    quantize::{Options as QuantOptions, Plan, synth},
};

/// 3 layers of 8 experts of 3 tiles.
pub fn config() -> ModelConfig {
    ModelConfig { layers: 3, experts: 8, ffn: 768, ..synth::tiny() }
}

pub fn container(folder: &tempfile::TempDir) -> Container {
    let path = folder.path().join("m.gguf");
    let plan = Plan::new(config(), &QuantOptions::default()).unwrap();
    Conversion::synth(plan, 5, &super::letters(512)).unwrap().write(&path, &|_| true).unwrap();
    Container::open(&path).unwrap()
}

/// The model in memory of its own, without a pager.
pub fn resident(container: &Container) -> Model {
    let bytes = Bytes::copy(&std::fs::read(container.path()).unwrap());
    let container = Container::parse(bytes, container.path()).unwrap();
    let model = Model::load(&container, &Options { threads: 2, ..Options::default() }).unwrap();
    assert_eq!(model.pager().mode(), Mode::Plain);
    model
}

pub fn options(mode: Paging) -> Options {
    Options { threads: 2, paging: Settings { mode, ..Settings::default() }, ..Options::default() }
}

/// Options that stream with `keep` experts in memory.
pub fn keeping(container: &Container, keep: u64) -> Options {
    with_room(container, keep, options(Paging::Streamed))
}

/// [`keeping`], and room for `context` tokens of all sessions.
pub fn keeping_for(container: &Container, keep: u64, context: usize) -> Options {
    with_room(container, keep, Options { context, ..options(Paging::Streamed) })
}

/// [`keeping`] with the pager looking ahead.
pub fn looking_ahead(container: &Container, keep: u64) -> Options {
    let mut options = options(Paging::Streamed);
    options.paging.look_ahead = true;
    with_room(container, keep, options)
}

fn with_room(container: &Container, keep: u64, mut options: Options) -> Options {
    let plan = Placement::new(container, &options).unwrap();
    options.paging.memory = Some(Limit::Bytes(plan.smallest + keep * plan.expert_bytes));
    assert_eq!(Placement::new(container, &options).unwrap().resident as u64, keep);
    options
}

pub fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 31 + i * 7) % 512).collect()
}

/// All logits of `tokens`: a prompt of `prompt` tokens, then one by one.
pub fn logits(model: &Model, tokens: &[u32], prompt: usize) -> Vec<u32> {
    let mut state = State::new(model.config(), tokens.len(), KvType::F16).unwrap();
    let mut out = model.forward_one(&tokens[..prompt], &mut state, Want::All).unwrap();
    for token in &tokens[prompt..] {
        out.extend(model.forward_one(&[*token], &mut state, Want::All).unwrap());
    }
    out.into_iter().map(f32::to_bits).collect()
}

/// What happens to a read.
pub enum Fault {
    None,
    Error(io::ErrorKind),
    /// Only half of it comes.
    Short,
    Delay(Duration),
}

/// A source whose `plan` says what happens to the n-th read at an offset.
pub struct Faulty<F> {
    file: Box<dyn Source>,
    reads: AtomicU64,
    plan: F,
}

pub fn faulty(
    file: Box<dyn Source>,
    plan: impl Fn(u64, u64) -> Fault + Send + Sync + 'static,
) -> Box<dyn Source> {
    Box::new(Faulty { file, reads: AtomicU64::new(0), plan })
}

impl<F: Fn(u64, u64) -> Fault + Send + Sync> Source for Faulty<F> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match (self.plan)(self.reads.fetch_add(1, Relaxed), offset) {
            Fault::None => self.file.read_at(buffer, offset),
            Fault::Error(kind) => Err(kind.into()),
            Fault::Short => {
                let half = buffer.len() / 2 / 4096 * 4096;
                self.file.read_at(&mut buffer[..half], offset)
            }
            Fault::Delay(time) => {
                std::thread::sleep(time);
                self.file.read_at(buffer, offset)
            }
        }
    }
}

/// A number that looks random.
pub fn hash(n: u64) -> u64 {
    n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40
}
