//! Long contexts: every position really runs, and takes the memory that is planned for it.
//!
//! By default 8192 positions; with `YUAN_LONG=1` all the 131,072 of Yuan 3.0 (`YUAN_LONG=1 cargo test --release --test long_context`).

mod common;

use yuan::{
    config::ModelConfig,
    container::Container,
    convert::Conversion,
    error::Error,
    model::{BATCH, KvType, Model, Options, State, Want},
    quantize::{self, Plan, synth},
};
use yuan_kernels::DType;

/// Positions that are run.
fn positions() -> usize {
    if std::env::var_os("YUAN_LONG").is_some() { 131_072 } else { 8192 }
}

/// Yuan 3.0 with one small layer: attention over all positions is most of the work.
fn twin() -> ModelConfig {
    ModelConfig {
        vocab: 300,
        hidden: 32,
        layers: 1,
        heads: 2,
        projection: 128,
        ffn: 32,
        experts: 4,
        rope_dims: 32,
        ..synth::flash()
    }
}

/// Bytes of this process that are in memory; 0 where the system does not say.
fn resident() -> u64 {
    // Wine shows the files of the machine that it runs on, whose numbers are not these.
    if !cfg!(target_os = "linux") {
        return 0;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// One test, so that no other one takes memory meanwhile.
#[test]
fn all_positions_run_in_the_memory_that_is_planned() {
    let folder = common::folder();
    let path = folder.path().join("m.gguf");
    let options =
        quantize::Options { experts: DType::F16, dense: DType::F16, ..quantize::Options::default() };
    let config = twin();
    let vocab = common::letters(config.vocab);
    let plan = Plan::new(config.clone(), &options).unwrap();
    Conversion::synth(plan, 5, &vocab).unwrap().write(&path, &|_| true).unwrap();
    let container = Container::open(&path).unwrap();
    let n = positions();
    let tokens: Vec<u32> = (0..n).map(|i| (i * i % 9973 % config.vocab) as u32).collect();

    let mut last = Vec::new();
    for kv in [KvType::F16, KvType::Q4_0] {
        let model = Model::load(&container, &Options { context: n, kv, ..Options::default() }).unwrap();
        let planned = State::bytes(&config, kv, n);
        assert!(model.placement().pool >= planned);
        let mut state = model.state(n, kv).unwrap();
        let mut before = (0, 0);
        let mut logits = Vec::new();
        for batch in tokens.chunks(BATCH) {
            let want = if state.position() + batch.len() == n { Want::Last } else { Want::Nothing };
            logits = model.forward_one(batch, &mut state, want).unwrap();
            if state.position() == 2 * BATCH {
                // What every pass needs is there now.
                before = (resident(), State::bytes(&config, kv, 2 * BATCH));
            }
        }
        assert_eq!(state.position(), n);
        let used = model.pool_use().bytes;
        assert!(used <= planned && used as f64 >= 0.97 * planned as f64, "{used} of {planned}");
        if before.0 > 0 {
            let (grown, planned) = (resident().saturating_sub(before.0), planned - before.1);
            let most = planned * 103 / 100 + (1 << 20);
            assert!(
                (planned * 97 / 100..=most).contains(&grown),
                "{grown} bytes where {planned} are planned"
            );
        }
        let full = model.forward_one(&[1], &mut state, Want::Last).unwrap_err();
        assert!(matches!(full, Error::ContextFull { .. }), "{full}");
        last.push(logits);
    }
    let spread = last[0].iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let apart = last[0].iter().zip(&last[1]).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart > 0.0 && apart < 0.2 * spread, "{apart} of {spread}");
}
