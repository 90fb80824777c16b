//! `yuan demo`: the whole path once, on the small model that comes with the source.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use clap::Args;
use etcetera::BaseStrategy;
use yuan::{
    model::KvType,
    pager::Usage,
    quantize::{DType, Wishes},
    sampler::{Sampler, Settings},
    session::{Engine, Limits, Session},
    tokenizer::Special,
};
use yuan_tools::{
    console::{size, stopped},
    convert::{Input, Job},
    numbers::{self, Most, Seed},
    open::{GpuArgs, PagingArgs, RunArgs},
    say,
    say::print,
};

use crate::answer::{Answer, answer};

/// Where the demo model is, in a checkout and below a prefix.
const PLACES: [&str; 2] = ["assets/demo-model", "share/yuan/demo-model"];

const NOT_HERE: &str =
    "the demo model is not here: run in a checkout of the source, or give its folder with --assets";

/// Headers as the demo model knows them: what follows is made up.
const PROMPTS: [(&str, u64); 2] = [("Psalms 151:1-4<sep>", 4), ("春日山中 李白<sep>", 4)];

/// Convert the demo model and stream an English and a Chinese text from it
#[derive(Args)]
#[command(after_help = "\
Examples:
  yuan demo
  yuan demo --experts q4_0 --seed 7
The demo model has 16 million weights. It was trained for this project on the King James Bible and on Tang poems; it knows form \
            and diction, hardly any meaning.")]
pub struct Demo {
    /// The demo model's folder; by default the one in the source tree
    #[arg(long, value_name = "DIR")]
    assets: Option<PathBuf>,
    /// Where the converted model is kept; by default the user's cache folder
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Type of the experts: q4_k or q4_0
    #[arg(long, value_name = "TYPE", default_value = "q4_k", value_parser = tile_type)]
    experts: DType,
    /// The most tokens to generate for each prompt (-1: what the context has room for)
    #[arg(long = "tokens", short = 'n', value_name = "N", default_value_t = Most::Tokens(160))]
    most: Most,
    /// Seed of the random choices (-1: a random seed); by default a fixed one, which always gives the same texts
    #[arg(long, value_name = "N")]
    seed: Option<Seed>,
    /// Number of threads; 0 means one for each physical core that the process may use
    #[arg(long, short = 't', default_value_t = 0, hide_default_value = true, value_name = "N", value_parser = numbers::threads)]
    threads: usize,
}

fn tile_type(name: &str) -> Result<DType, String> {
    DType::from_name(name)
        .filter(|t| matches!(t, DType::Q4_K | DType::Q4_0))
        .ok_or_else(|| "choose q4_k or q4_0".into())
}

impl Demo {
    pub fn run(self) -> anyhow::Result<()> {
        let model = self.convert()?;
        let run = RunArgs {
            model: model.clone().into(),
            threads: self.threads,
            threads_batch: 0,
            batch_tokens: 0,
            kv: KvType::F16,
            rope: None,
            float: false,
            paging: PagingArgs::default(),
            gpu: GpuArgs::default(),
        };
        let engine = run.open_for(|_, config| Ok(self.most.context(0, config.context)))?;
        let config = engine.model().config();
        say!(
            "Run with {} kernels on {} threads. A token goes to {} of the {} experts in each of {} layers.",
            engine.model().kernels(),
            engine.model().threads(),
            config.experts_used,
            config.experts,
            config.layers
        )?;
        for (prompt, seed) in PROMPTS {
            if stopped() {
                return Ok(());
            }
            self.tell(&engine, prompt, self.seed.unwrap_or(Seed(Some(seed))))?;
        }
        say!("\nThe same by hand: yuan generate {} -p \"{}\" --temp 0.7", model.display(), PROMPTS[1].0)?;
        Ok(())
    }

    /// Converts the demo model, says what became of it, and returns the container.
    fn convert(&self) -> anyhow::Result<PathBuf> {
        let (assets, output) = convert(self.assets.clone(), self.cache.clone(), self.experts)?;
        let (before, after) = (Input::open(&assets)?.data_bytes(), fs::metadata(&output)?.len());
        say!("Converted {} ({}) to {} ({}).", assets.display(), size(before), output.display(), size(after))?;
        Ok(output)
    }

    fn tell(&self, engine: &Arc<Engine>, prompt: &str, seed: Seed) -> anyhow::Result<()> {
        let ids = engine.tokenizer().encode(prompt, Special::Parse);
        ensure!(!ids.is_empty(), "the demo model's tokenizer makes nothing of {prompt:?}");
        let context = self.most.context(ids.len(), engine.model().config().context);
        let mut session = Session::new(engine.clone(), context, KvType::F16)?;
        let settings = Settings { temperature: 0.7, top_p: 0.9, seed: seed.0, ..Settings::default() };
        let mut sampler = Sampler::new(settings)?;
        let limits = Limits::tokens(self.most.within(ids.len(), context));
        let before = engine.model().pager().usage();
        say!("\n> {prompt}")?;
        let answer = answer(&mut session, &ids, &limits, &mut sampler, |text| print(&text))?;
        say!()?;
        report(engine, ids.len(), &answer, &before)
    }
}

/// The demo model as a container in that folder, with the usual options, made without a word.
pub fn container_in(folder: &Path) -> anyhow::Result<PathBuf> {
    make(None, folder, DType::Q4_K, &|job, output| job.make(output)).map(|(_, output)| output)
}

/// The demo model as a container, with the usual options.
pub fn container() -> anyhow::Result<PathBuf> {
    convert(None, None, DType::Q4_K).map(|(_, output)| output)
}

/// Converts the demo model, by default the one in the source tree to the user's cache folder. Returns its folder and the container.
fn convert(
    assets: Option<PathBuf>,
    cache: Option<PathBuf>,
    experts: DType,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let cache = cache.map_or_else(cache_folder, Ok)?;
    make(assets, &cache, experts, &|job, output| job.run(output))
}

/// Has `run` convert the demo model into the folder `cache`.
fn make(
    assets: Option<PathBuf>,
    cache: &Path,
    experts: DType,
    run: &dyn Fn(&Job<'_>, &Path) -> anyhow::Result<()>,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let assets = assets.or_else(find_assets).context(NOT_HERE)?;
    fs::create_dir_all(cache).with_context(|| format!("cannot make the folder {}", cache.display()))?;
    let output = cache.join(format!("demo-model.{}.gguf", experts.name()));
    let input = Input::open(&assets)?;
    let wishes = Wishes { experts: Some(experts), ..Wishes::default() };
    run(&Job::new(&input, &wishes, None)?, &output)?;
    Ok((assets, output))
}

fn report(engine: &Engine, prompt: usize, answer: &Answer, before: &Usage) -> anyhow::Result<()> {
    let usage = engine.model().pager().usage();
    let config = engine.model().config();
    let tokens = (prompt + answer.tokens.len().saturating_sub(1)).max(1);
    let touched = usage.uses.iter().zip(&before.uses).filter(|(now, then)| now > then).count();
    let (_, decode) = answer.rates();
    // Every request that names an expert reads it once.
    let requests =
        |usage: &Usage| [usage.prefill, usage.decode].map(|h| h.hits + h.misses).iter().sum::<u64>();
    let read = (requests(&usage) - requests(before)) * engine.model().pager().expert_bytes() as u64;
    say!(
        "[{} + {} tokens, {decode:.0} tok/s; {} experts a token, {touched} of {} touched in all; {} of experts read a token]",
        prompt,
        answer.tokens.len(),
        config.layers * config.experts_used,
        config.layers * config.experts,
        size(read / tokens as u64),
    )
}

/// The demo model beside the source that this program was built from, or beside where it runs: in a checkout, in an archive, below a prefix such as /usr. Programs for others
/// are built with `YUAN_PORTABLE`, and know of no source.
fn find_assets() -> Option<PathBuf> {
    let source = match option_env!("YUAN_PORTABLE") {
        Some(_) => None,
        None => Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf),
    };
    let near = env::current_exe()
        .ok()
        .into_iter()
        .flat_map(|exe| exe.ancestors().skip(1).map(Path::to_path_buf).collect::<Vec<_>>());
    source
        .into_iter()
        .chain(env::current_dir())
        .chain(near)
        .flat_map(|folder| PLACES.map(|place| folder.join(place)))
        .find(|folder| folder.join("config.json").is_file())
}

fn cache_folder() -> anyhow::Result<PathBuf> {
    let places = etcetera::base_strategy::choose_native_strategy()
        .context("there is no home folder to keep the converted model in; give one with --cache")?;
    Ok(places.cache_dir().join("yuan"))
}
