//! Damaged files of every kind that a model comes in: each is an error or still sound, never a panic or a large allocation.
//!
//! `YUAN_TEST_MUTATIONS` says how many copies of each kind of file are damaged; a fifth of the ten thousand that a release is checked with
//! is the rule.

mod common;

use std::{env, fs, path::Path};

use common::{
    demo, fixture,
    gptq::{self, Form, HIDDEN, OUT, PLAIN},
    mutate::{Random, mutate},
    weights, yuan3,
};
use serde_json::json;
use yuan::{
    checkpoint::{Checkpoint, config::parse_config, sentencepiece::parse_pieces, vocab::read_vocab},
    config::Family,
    model::rope::Rope,
    tokenizer::{Conversation, Special, Tokenizer},
    vocab::{CHAT_TEMPLATE, Piece, PieceKind, Vocab, YUAN3_CHAT_TEMPLATE},
};

/// How many copies of each kind of file are damaged.
fn count() -> u64 {
    env::var("YUAN_TEST_MUTATIONS").map_or(2000, |count| count.parse().expect("a number"))
}

/// Limits what this process may allocate from now on.
fn limit_memory() {
    #[cfg(target_os = "linux")]
    static ONCE: std::sync::Once = std::sync::Once::new();
    #[cfg(target_os = "linux")]
    ONCE.call_once(|| {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

        /// More than any of these files needs, however it is damaged; what asks for more ends the test's process.
        const MOST_MEMORY: u64 = 2 << 30;
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        let now = 4096 * pages.split(' ').next().unwrap().parse::<u64>().unwrap();
        let limit = Rlimit { current: Some(now + MOST_MEMORY), ..getrlimit(Resource::As) };
        setrlimit(Resource::As, limit).expect("a lower limit is always allowed");
    });
}

/// Tries damaged copies of something, made by `is_sound` of a seed, which says what became of it; neither none nor all of them are sound.
fn survive(what: &str, mut is_sound: impl FnMut(u64) -> bool) {
    limit_memory();
    let sound = (0..count()).filter(|seed| is_sound(*seed)).count();
    println!("{what}: {sound} of {} damaged copies were still sound", count());
    assert!((1..count()).contains(&(sound as u64)), "{what}: {sound} of {} were sound", count());
}

/// A damaged copy that is a text, as files with JSON and templates are read.
fn damaged_text(text: &str, seed: u64) -> String {
    String::from_utf8_lossy(&mutate(text.as_bytes(), seed)).into_owned()
}

#[test]
fn gptq_files() {
    for form in [PLAIN, Form { bits: 8, symmetric: false, act_order: true, ..PLAIN }] {
        let (mut tensors, _) = gptq::small(form);
        // The attention's matrices are enough to read; the others need only be there.
        tensors.sort_by_key(|tensor| tensor.name.contains("mlp"));
        let settings = gptq::settings(form).to_string();
        let file = weights::safetensors(&tensors);
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let folder = gptq::folder(&tensors, &json!({}));
        survive(&format!("GPTQ with {} bits", form.bits), |seed| {
            let (mut weights, mut says) = (file.clone(), settings.clone().into_bytes());
            match seed % 3 {
                0 => says = mutate(&says, seed),
                1 => weights.splice(8..header, mutate(&file[8..header], seed)).for_each(drop),
                _ => {
                    let end = weights.len().min(header + 20_000);
                    weights.splice(header..end, mutate(&file[header..end], seed)).for_each(drop);
                    weights.resize(file.len(), 0);
                }
            }
            fs::write(folder.path().join("quantize_config.json"), says).unwrap();
            fs::write(folder.path().join("gptq_model-4bit-32g.safetensors"), weights).unwrap();
            let Ok(checkpoint) = Checkpoint::open(folder.path()) else { return false };
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                let name = format!("model.layers.0.self_attn.{name}.weight");
                let (mut weights, facts) = (Vec::new(), checkpoint.facts(&name));
                let read = checkpoint.read_f32(&name, 0..HIDDEN * OUT, &mut weights);
                assert!(read.is_err() || (facts.is_ok() && weights.len() == HIDDEN * OUT));
            }
            true
        });
    }
}

/// A conversation with all that templates look at.
fn conversation() -> Conversation {
    let json = json!({
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "weather? <sep> s001" },
            { "role": "assistant", "content": "<think>a</think>b", "tool_calls": [{ "name": "f", "arguments": { "x": [1.5, "y"] } }] },
            { "role": "tool", "content": "21" },
        ],
        "tools": [{ "type": "function", "function": { "name": "f" } }],
        "enable_thinking": true,
    });
    Conversation::parse(&json.to_string()).unwrap()
}

/// Whether a vocabulary is of use; if so it encodes, decodes and renders a conversation, whatever comes of that.
fn is_usable(vocab: Vocab) -> bool {
    let Ok(tokenizer) = Tokenizer::new(vocab) else { return false };
    let ids = tokenizer.encode("The 天气 of\n\n s001 <sep>🍕", Special::Parse);
    assert!(ids.iter().all(|id| (*id as usize) < tokenizer.len()));
    tokenizer.decode(&ids);
    drop(tokenizer.prompt(&conversation().chat()));
    true
}

#[test]
fn sentencepiece_models() {
    let tiny = fixture("models/yuan3-tiny").map(|folder| (Family::Yuan3, folder));
    for (family, folder) in [(Family::Yuan2, demo())].into_iter().chain(tiny) {
        let sound = fs::read(folder.join("tokenizer.model")).unwrap();
        let path = Path::new("tokenizer.model");
        survive(&format!("tokenizer.model of {}", family.name()), |seed| {
            parse_pieces(&mutate(&sound, seed), path).is_ok_and(|pieces| is_usable(Vocab::of(family, pieces)))
        });
    }
}

#[test]
fn settings_of_tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(demo().join("tokenizer.model"), folder.path().join("tokenizer.model")).unwrap();
    let named =
        json!([{ "name": "tool_use", "template": "x" }, { "name": "default", "template": CHAT_TEMPLATE }]);
    for (form, template) in [("a template", json!(CHAT_TEMPLATE)), ("named templates", named)] {
        let text = json!({ "add_bos_token": false, "chat_template": template, "model_max_length": 1e30 })
            .to_string();
        survive(&format!("tokenizer_config.json with {form}"), |seed| {
            fs::write(folder.path().join("tokenizer_config.json"), mutate(text.as_bytes(), seed)).unwrap();
            read_vocab(folder.path(), None).is_ok_and(is_usable)
        });
    }
}

/// What costs templates time or memory, or stands in them in wrong places.
const SNIPPETS: [&str; 17] = [
    "{% for a in range(99999) %}",
    "{% endfor %}",
    "{{ 'x' * 99999999 }}",
    "{{ messages * 9999999 }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(messages) }}",
    "{% set a = [messages, messages] %}{% for i in range(60) %}{% set a = [a, a] %}{{ a }}{% endfor %}",
    "{% set x = x ~ x ~ 'ab' %}",
    "{% if messages[-1] %}",
    "{% endif %}",
    "{{ messages[99999999999999999999] }}",
    "{{ messages | tojson * 1000 }}",
    "{{ raise_exception('no') }}",
    "{{ tools | map(attribute='x.y.z') | list | length ** 999 }}",
    "{{ 'a'.replace('', 'aaaaaaaa').split('') }}",
    "{% raw %}",
    "((((((((",
    "{%- set ns.system = ns.system ~ ns.system -%}",
];

#[test]
fn chat_templates() {
    let bytes = (0..=255).map(|b| (format!("<0x{b:02X}>"), PieceKind::Byte));
    let marks = ["<unk>", "<eod>", "<sep>", "<think>", "</think>", "<|User|>"]
        .map(|text| (text.to_owned(), PieceKind::Normal));
    let pieces = bytes.chain(marks).map(|(text, kind)| Piece { text, score: 0.0, kind });
    let vocab = Vocab::of(Family::Yuan3, pieces.collect());
    for (family, template) in [("Yuan 2.0", CHAT_TEMPLATE), ("Yuan 3.0", YUAN3_CHAT_TEMPLATE)] {
        survive(&format!("the template of {family}"), |seed| {
            let mut random = Random::new(seed);
            let mut text = if seed % 2 == 0 { template.to_owned() } else { damaged_text(template, seed) };
            for _ in 0..random.below(4) {
                let mut at = random.below(text.len() + 1);
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                text.insert_str(at, SNIPPETS[random.below(SNIPPETS.len())]);
            }
            let vocab = Vocab { chat_template: Some(text), ..vocab.clone() };
            Tokenizer::new(vocab).unwrap().prompt(&conversation().chat()).is_ok()
        });
    }
}

#[test]
fn configs() {
    let mut all = vec![("Yuan 2.0", gptq::small_config())];
    if let Some(config) = yuan3::config() {
        let mut yarn = config.clone();
        yarn["llm_config"]["use_yarn"] = json!(true);
        yarn["llm_config"]["yarn_scale_factor"] = json!(8);
        all.extend([("Yuan 3.0", config), ("Yuan 3.0 with YaRN", yarn)]);
    }
    for (family, config) in all {
        let text = config.to_string();
        survive(&format!("config.json of {family}"), |seed| {
            let Ok(parsed) = parse_config(&damaged_text(&text, seed), Path::new("config.json")) else {
                return false;
            };
            let rope = Rope::of(&parsed.config);
            assert!(rope.frequencies().iter().all(|f| f.is_finite()), "{:?}", parsed.config);
            true
        });
    }
}
