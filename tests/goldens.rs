//! The model against the numbers of the authors' own reference (tests/fixtures/README.md).

mod common;

use std::collections::{BTreeMap, HashMap};

use common::{Goldens, error, linear, yuan3};
use serde_json::json;
use yuan::{
    config::{RopePrecision, Yarn},
    container::Container,
    model::{KvType, Model, Options, Stage, State, Want, rope::Rope},
    quantize::{self, DType, Wishes},
    sampler::greedy,
};

/// Largest errors seen, by kind; printed at the end of a test.
#[derive(Default)]
struct Errors(BTreeMap<String, f32>);

impl Errors {
    /// Fails when `found` is farther from `golden` than `tolerance`.
    fn check(&mut self, kind: &str, place: &str, found: &[f32], golden: &[f32], tolerance: f32) {
        let e = error(found, golden);
        assert!(e <= tolerance, "{place}: {kind} differ by {e}, more than {tolerance}");
        let max = self.0.entry(kind.into()).or_default();
        *max = max.max(e);
    }

    fn print(&self, model: &str) {
        for (kind, e) in &self.0 {
            eprintln!("{model}: largest error of {kind}: {e:.2e}");
        }
    }
}

/// One forward pass of a whole prompt with all that it showed.
struct Run {
    logits: Vec<f32>,
    seen: HashMap<(Stage, usize), Vec<f32>>,
    state: State,
}

fn run(model: &Model, ids: &[u32], room: usize) -> Run {
    let mut state = State::new(model.config(), ids.len() + room, KvType::F32).unwrap();
    let mut seen = HashMap::new();
    let logits = model
        .forward_probed(ids, &mut state, Want::All, &mut |stage, layer, rows| {
            seen.insert((stage, layer), rows.to_vec());
        })
        .unwrap();
    Run { logits, seen, state }
}

/// Rows [T, n, d] as [n, T, d].
fn by_head(rows: &[f32], heads: usize, dim: usize) -> Vec<f32> {
    let tokens = rows.len() / (heads * dim);
    let at = |h: usize, t: usize| &rows[(t * heads + h) * dim..][..dim];
    (0..heads).flat_map(|h| (0..tokens).flat_map(move |t| at(h, t).to_vec())).collect()
}

fn greedy_ids(model: &Model, run: &mut Run, n: usize, mut each: impl FnMut(usize, &[f32])) -> Vec<u32> {
    let vocab = model.config().vocab;
    let mut logits = run.logits[run.logits.len() - vocab..].to_vec();
    let mut ids = Vec::new();
    for step in 0..n {
        each(step, &logits);
        ids.push(greedy(&logits));
        if step + 1 < n {
            logits = model.forward_one(&ids[step..], &mut run.state, Want::Last).unwrap();
        }
    }
    ids
}

fn check_model(name: &str, container: &Container, goldens: &Goldens, precisions: &[RopePrecision]) {
    let mut errors = Errors::default();
    for &precision in precisions {
        let options = Options { rope: Some(precision), ..common::float() };
        let model = common::load(container, options);
        for p in 0..4 {
            check_prompt(&model, goldens, precision.name(), p, &mut errors);
        }
        check_long(&model, goldens, precision.name(), &mut errors);
    }
    errors.print(name);
}

fn check_prompt(model: &Model, goldens: &Goldens, r: &str, p: usize, errors: &mut Errors) {
    let config = model.config();
    let at = format!("{r}.p{p}");
    let mut run = run(model, &goldens.ids(&format!("p{p}.input_ids")), 48);
    for name in ["logits", "logits_last64", "logits_last"] {
        if let Some(golden) = goldens.get(&format!("{at}.{name}")) {
            let tail = &run.logits[run.logits.len() - golden.len()..];
            errors.check("logits", &at, tail, golden, 1e-3);
        }
    }
    if let Some(golden) = goldens.get(&format!("{at}.router_logits")) {
        let found: Vec<f32> =
            (0..config.layers).flat_map(|l| run.seen[&(Stage::RouterLogits, l)].clone()).collect();
        errors.check("router logits", &at, &found, golden, 1e-3);
        let choices =
            (&goldens.ids(&format!("{at}.topk_ids"))[..], goldens.f32(&format!("{at}.topk_weights")));
        check_choices(&found, config.experts, choices, &at, errors);
    }
    if p == 2 && goldens.get(&format!("{at}.hidden")).is_some() {
        check_stages(model, &run, goldens, &at, errors);
    }
    if let Some(golden) = goldens.get(&format!("{at}.layer0.lf_memory_after_prompt")) {
        let last = &golden[config.hidden..];
        errors.check("filter state", &at, &run.state.layers[0].filter.input, last, 3e-5);
    }
    let filter = &run.state.layers[0].filter;
    for (name, found) in [("lf1", &filter.input), ("lf2", &filter.conv1)] {
        if let Some(golden) = goldens.get(&format!("{at}.layer0.{name}_after_prompt")) {
            errors.check("filter state", &at, found, golden, 3e-5);
        }
    }
    if goldens.has_ids(&format!("{at}.greedy_ids")) {
        let golden = goldens.ids(&format!("{at}.greedy_ids"));
        let logits = goldens.get(&format!("{at}.greedy_logits"));
        let found = greedy_ids(model, &mut run, golden.len(), |step, found| {
            if let Some(golden) = logits {
                let golden = &golden[step * config.vocab..][..config.vocab];
                errors.check("greedy logits", &at, found, golden, 1e-3);
            }
        });
        assert_eq!(found, golden, "{at}: greedy continuation");
    }
}

/// The two experts of every token as a set, and their weights.
fn check_choices(
    router_logits: &[f32],
    experts: usize,
    (ids, weights): (&[u32], &[f32]),
    at: &str,
    errors: &mut Errors,
) {
    for (t, logits) in router_logits.chunks_exact(experts).enumerate() {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let (first, second) = (order[0], order[1]);
        let golden = [ids[2 * t] as usize, ids[2 * t + 1] as usize];
        let set = [first.min(second), first.max(second)];
        assert_eq!(set, [golden[0].min(golden[1]), golden[0].max(golden[1])], "{at}: experts of row {t}");
        let w = 1.0 / (1.0 + (logits[second] - logits[first]).exp());
        errors.check("expert weights", at, &[w, 1.0 - w], &weights[2 * t..][..2], 5e-4);
    }
}

fn check_stages(model: &Model, run: &Run, goldens: &Goldens, at: &str, errors: &mut Errors) {
    let config = model.config();
    let mut hidden = run.seen[&(Stage::Embedding, 0)].clone();
    (0..config.layers).for_each(|l| hidden.extend(&run.seen[&(Stage::Hidden, l)]));
    let mut check = |kind: &str, found: &[f32], name: &str, tolerance| {
        if let Some(golden) = goldens.get(&format!("{at}.{name}")) {
            errors.check(kind, at, found, golden, tolerance);
        }
    };
    check("hidden states", &hidden, "hidden", 3e-4);
    check("final norm", &run.seen[&(Stage::FinalNorm, 0)], "final_norm", 1e-3);
    let first = |stage| &run.seen[&(stage, 0)];
    let heads = |stage| by_head(first(stage), config.heads, config.head_dim());
    check("layer 0 input norm", first(Stage::InputNorm), "layer0.input_norm", 3e-5);
    check("layer 0 filter", first(Stage::Filter), "layer0.lf_gate", 3e-5);
    check("layer 0 queries", &heads(Stage::Query), "layer0.q_rope", 3e-5);
    check("layer 0 keys", &heads(Stage::Key), "layer0.k_rope", 3e-5);
    check("layer 0 values", first(Stage::Value), "layer0.v", 3e-5);
    check("layer 0 attention", first(Stage::Attention), "layer0.attn_out", 3e-5);
    check("layer 0 feed forward", first(Stage::FeedForward), "layer0.mlp_out", 3e-4);
}

fn check_long(model: &Model, goldens: &Goldens, r: &str, errors: &mut Errors) {
    let Some(golden) = goldens.get(&format!("{r}.long.logits_last8")) else { return };
    let found = run(model, &goldens.ids("long.input_ids"), 0).logits;
    errors.check("logits of 520 tokens", r, &found[found.len() - golden.len()..], golden, 1e-3);
}

fn check_fixture(name: &str, precisions: &[RopePrecision]) {
    let checkpoint = common::fixture(&format!("models/{name}"));
    let golden = name.trim_end_matches("-bin");
    let (Some(checkpoint), Some(goldens)) =
        (checkpoint, common::fixture(&format!("goldens/{golden}.safetensors")))
    else {
        return;
    };
    let folder = common::folder();
    let container = common::convert(&checkpoint, &common::exact(), &folder.path().join("exact.gguf"));
    check_model(name, &container, &Goldens::read(&goldens), precisions);
}

const ALL: [RopePrecision; 3] = [RopePrecision::HfBf16, RopePrecision::F32, RopePrecision::Mixed];

#[test]
fn tiny_a_equals_the_reference() {
    check_fixture("tiny-a", &ALL);
}

#[test]
fn tiny_b_in_shards_equals_the_reference() {
    check_fixture("tiny-b", &ALL);
}

#[test]
fn tiny_b_in_bin_files_equals_the_reference() {
    check_fixture("tiny-b-bin", &ALL);
}

#[test]
fn dense_model_equals_the_reference() {
    check_fixture("dense", &[RopePrecision::F32]);
}

#[test]
fn demo_model_equals_the_reference() {
    let folder = common::folder();
    let container = common::convert(&common::demo(), &common::exact(), &folder.path().join("exact.gguf"));
    let goldens = Goldens::read(&common::demo().join("goldens.safetensors"));
    check_model("demo", &container, &goldens, &ALL);
}

/// The twin's numbers (tools/reference/linear_router.py): the authors have published no model with such a router.
#[test]
fn a_linear_router_equals_the_twin() {
    let checkpoint = linear::folder();
    let container =
        common::convert(checkpoint.path(), &common::exact(), &checkpoint.path().join("exact.gguf"));
    let model = common::load(&container, common::float());
    let text = std::fs::read(common::root().join("tests/fixtures/goldens/linear-router.json")).unwrap();
    let goldens: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
    let (layers, mut errors) = (model.config().layers, Errors::default());
    for (p, golden) in goldens.iter().enumerate() {
        let at = format!("p{p}");
        let floats = |key: &str| serde_json::from_value::<Vec<f32>>(golden[key].clone()).unwrap();
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(golden[key].clone()).unwrap();
        let mut run = run(&model, &ids("ids"), 48);
        let router: Vec<f32> =
            (0..layers).flat_map(|l| run.seen[&(Stage::RouterLogits, l)].clone()).collect();
        errors.check("router logits", &at, &router, &floats("router_logits"), 1e-3);
        let (chosen, weights) = (ids("chosen"), floats("weights"));
        check_choices(&router, model.config().experts, (&chosen, &weights), &at, &mut errors);
        let last = &run.logits[run.logits.len() - model.config().vocab..];
        errors.check("logits", &at, last, &floats("last_logits"), 1e-3);
        let golden = ids("greedy_ids");
        assert_eq!(greedy_ids(&model, &mut run, golden.len(), |_, _| {}), golden, "{at}");
    }
    assert!(goldens.len() > 1);
    errors.print("linear router");
}

/// The twin's numbers (tools/reference/integer.py): integer products, with every matrix in `q8_0`. Where a sum's last bit is another, an activation may be rounded to
/// the next of its 8 bits, so not every prompt has the same numbers; by other blocks none would.
#[test]
fn the_integer_arithmetic_equals_the_twin() {
    let folder = common::folder();
    let options = quantize::Options { experts: DType::Q8_0, ..quantize::Options::default() };
    let container = common::convert(&common::demo(), &options, &folder.path().join("q8_0.gguf"));
    let model = common::load(&container, Options { threads: 2, ..Options::default() });
    let text = std::fs::read(common::root().join("tests/fixtures/goldens/integer.json")).unwrap();
    let goldens: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
    let mut same = 0;
    for golden in &goldens {
        let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).unwrap();
        let logits: Vec<f32> = serde_json::from_value(golden["last_logits"].clone()).unwrap();
        let mut state = State::new(model.config(), ids.len(), KvType::F32).unwrap();
        let found = model.forward_one(&ids, &mut state, Want::Last).unwrap();
        let found: Vec<f32> = found.into_iter().step_by(16).collect();
        same += usize::from(error(&found, &logits) <= 1e-3);
    }
    eprintln!("integer arithmetic: {same} of {} prompts have the twin's logits", goldens.len());
    assert!(goldens.len() > 10 && 4 * same >= 3 * goldens.len());
}

/// The exact blocks of a GPTQ checkpoint, in tiles of 4 and of 8 bits.
#[test]
fn gptq_models_equal_the_reference() {
    for (name, experts) in [("tiny-int4", "q4_0"), ("tiny-int8", "q8_0"), ("demo-int4", "q4_0")] {
        let (Some(checkpoint), Some(goldens)) = (
            common::fixture(&format!("models/gptq-{name}")),
            common::fixture(&format!("goldens/gptq-{name}.safetensors")),
        ) else {
            continue;
        };
        let folder = common::folder();
        let wishes = Wishes { lossless: true, ..Wishes::default() };
        let (container, losses) = common::convert_as(&checkpoint, &wishes, &folder.path().join("m.gguf"));
        assert!(
            losses.is_empty() && container.layout_name().contains(experts),
            "{}",
            container.layout_name()
        );
        check_model(name, &container, &Goldens::read(&goldens), &[RopePrecision::F32, RopePrecision::HfBf16]);
    }
}

#[test]
fn f16_gguf_of_the_authors_converter_runs_in_place() {
    let (Some(file), Some(goldens)) =
        (common::fixture("gguf/tiny-b-f16.gguf"), common::fixture("goldens/tiny-b.safetensors"))
    else {
        return;
    };
    let container = Container::open(&file).unwrap();
    check_model("tiny-b-f16.gguf", &container, &Goldens::read(&goldens), &[RopePrecision::F32]);
}

#[test]
fn q4_0_gguf_of_the_authors_converter_runs_in_place() {
    let (Some(file), Some(goldens)) =
        (common::fixture("gguf/tiny-b-q4_0.gguf"), common::fixture("gguf/tiny-b-q4_0.safetensors"))
    else {
        return;
    };
    let goldens = Goldens::read(&goldens);
    let model = common::load(&Container::open(&file).unwrap(), common::float());
    let mut errors = Errors::default();
    for p in 0..3 {
        let found = run(&model, &goldens.ids(&format!("f32.p{p}.input_ids")), 0).logits;
        let golden = goldens.f32(&format!("f32.p{p}.logits"));
        errors.check("logits", &format!("p{p}"), &found, golden, 1e-3);
    }
    errors.print("tiny-b-q4_0.gguf");
}

/// The tiny model of Yuan 3.0, whose config `change` may alter, under one of the conventions of its goldens.
fn check_yuan3(
    convention: &str,
    rope_base: Option<f32>,
    form: yuan3::Form,
    change: &[(&str, serde_json::Value)],
) {
    let (Some(folder), Some(goldens)) =
        (yuan3::folder(form, change), common::fixture("goldens/yuan3-tiny.safetensors"))
    else {
        return;
    };
    let options = quantize::Options { rope_base, ..common::exact() };
    let container = common::convert(folder.path(), &options, &folder.path().join("exact.gguf"));
    let (goldens, mut errors) = (Goldens::read(&goldens), Errors::default());
    let model = common::load(&container, common::float());
    let golden = goldens.f32(&format!("{convention}.inv_freq"));
    for (found, golden) in Rope::of(model.config()).frequencies().iter().zip(golden) {
        errors.check("frequencies, relative", convention, &[found / golden], &[1.0], 5e-7);
    }
    for p in 0..4 {
        check_prompt(&model, &goldens, convention, p, &mut errors);
    }
    check_long(&model, &goldens, convention, &mut errors);
    errors.print(&format!("yuan3-tiny, {convention}"));
}

/// YaRN as the goldens have it.
fn yarn() -> [(&'static str, serde_json::Value); 4] {
    [
        ("use_yarn", json!(true)),
        ("yarn_scale_factor", json!(8)),
        ("max_position_embeddings", json!(512)),
        ("scaled_max_position_embeddings", json!(4096)),
    ]
}

#[test]
fn yuan3_equals_the_reference() {
    check_yuan3("f32", None, yuan3::Form::Published, &[]);
}

#[test]
fn yuan3_without_its_vision_tower_equals_the_reference() {
    check_yuan3("f32", None, yuan3::Form::TextOnly, &[]);
}

#[test]
fn yuan3_with_yarn_equals_the_reference() {
    check_yuan3("yarn", None, yuan3::Form::Published, &yarn());
}

#[test]
fn yuan3_with_yarn_of_the_base_that_is_asked_for_equals_the_reference() {
    check_yuan3("yarnbase", Some(1e6), yuan3::Form::TextOnly, &yarn());
}

/// Angles are products of f32, so the tables can be as far from each other as the frequencies are, times the position.
#[test]
fn rotary_tables_of_yuan3_equal_the_reference() {
    let Some(path) = common::fixture("goldens/rope-yuan3.safetensors") else { return };
    let goldens = Goldens::read(&path);
    let positions = goldens.ids("positions");
    assert_eq!(positions.iter().max(), Some(&131_071));
    let mut errors = Errors::default();
    for base in [10_000, 1_000_000] {
        let yarn = [(32_768, 4), (131_072, 128)].map(|(original, factor)| {
            (
                format!("yarn.base{base}.orig{original}.scale{factor}"),
                Some(Yarn { factor: factor as f32, original }),
            )
        });
        for (name, yarn) in [(format!("f32.base{base}"), None)].into_iter().chain(yarn) {
            let rope = Rope::new(128, base as f32, RopePrecision::F32, yarn);
            let golden = goldens.f32(&format!("{name}.inv_freq"));
            for (found, golden) in rope.frequencies().iter().zip(golden) {
                errors.check("frequencies, relative", &name, &[found / golden], &[1.0], 5e-7);
            }
            for (i, &position) in positions.iter().enumerate() {
                let (cos, sin): (Vec<f32>, Vec<f32>) = rope.at(position as usize).unzip();
                for (part, found) in [("cos", cos), ("sin", sin)] {
                    let golden = &goldens.f32(&format!("{name}.{part}"))[i * 64..][..64];
                    let kind = match position {
                        0..512 => "tables to position 511",
                        512..4096 => "tables to position 4095",
                        4096..32_768 => "tables to position 32767",
                        _ => "tables to position 131071",
                    };
                    let tolerance = 1e-7 + 1.2e-7 * position as f32;
                    errors.check(kind, &format!("{name}.{part}, {position}"), &found, golden, tolerance);
                }
            }
        }
    }
    errors.print("rotary tables of Yuan 3.0");
}

#[test]
fn rotary_tables_equal_the_reference() {
    let Some(path) = common::fixture("goldens/rope.safetensors") else { return };
    let goldens = Goldens::read(&path);
    let positions = goldens.ids("positions");
    for dims in [64, 128] {
        for precision in ALL {
            let rope = Rope::new(dims, 10_000.0, precision, None);
            let name = precision.name();
            for (i, &position) in positions.iter().enumerate() {
                let half = dims / 2;
                let golden = |part: &str| &goldens.f32(&format!("d{dims}.{name}.{part}"))[i * half..][..half];
                let (cos, sin): (Vec<f32>, Vec<f32>) = rope.at(position as usize).unzip();
                let tolerance = match precision {
                    RopePrecision::HfBf16 => 0.0,
                    RopePrecision::Mixed => 1e-7,
                    RopePrecision::F32 if position <= 512 => 2e-5,
                    RopePrecision::F32 => 2e-4,
                };
                let e = error(&cos, golden("cos")).max(error(&sin, golden("sin")));
                assert!(e <= tolerance, "{name}, {dims} dims, position {position}: {e}");
            }
        }
    }
}
