//! Tokens, templates, embeddings, models, metrics.

use std::ops::ControlFlow;

use crate::common::{CONTEXT, Running, agent, engine, refused, user};
use serde_json::{Value, json};
use yuan::{
    model::KvType,
    session::Session,
    tokenizer::{Message, Special},
};

#[test]
fn texts_become_tokens_and_tokens_texts() {
    let server = Running::new();
    let text = "Psalms 151:1<sep>春日 \u{1F600}";
    let ids = engine().tokenizer().encode(text, Special::Parse);
    for body in [json!({ "prompt": text, "add_special_tokens": false }), json!({ "content": text })] {
        let reply = server.ask("/tokenize", &body);
        assert_eq!(
            (&reply["tokens"], &reply["count"], &reply["max_model_len"]),
            (&json!(ids), &json!(ids.len()), &json!(CONTEXT))
        );
    }
    let plain = server.ask("/tokenize", &json!({ "content": "<sep>", "parse_special": false }));
    assert_eq!(plain["tokens"], json!(engine().tokenizer().encode("<sep>", Special::AsText)));
    let pieces = server.ask("/tokenize", &json!({ "content": "In the", "with_pieces": true }));
    assert_eq!(pieces["tokens"][0]["piece"], " In");
    let reply = server.ask("/detokenize", &json!({ "tokens": ids }));
    assert_eq!((&reply["prompt"], &reply["content"]), (&json!(text), &json!(text)));
    assert!(refused(&server.post("/detokenize", &json!({ "tokens": [4096] })), 400).contains("4096"));
    // The end-of-text token is one id, which lm-evaluation-harness asks for.
    let info = server.get("/tokenizer_info").1;
    let eod = server.ask("/tokenize", &json!({ "prompt": info["eos_token"] }));
    assert_eq!(eod["tokens"], json!([engine().tokenizer().eod().unwrap()]));
    assert!(
        info["bos_token"].is_null() && info["chat_template"].is_string() && info["pad_token"].is_string()
    );
}

#[test]
fn messages_become_the_prompt_that_the_model_reads() {
    let server = Running::new();
    let ids = engine().tokenizer().chat(&[Message::new("user", "Ruth 1:1")], true).unwrap();
    let reply = server.ask("/apply-template", &json!({ "messages": user("Ruth 1:1") }));
    assert_eq!(
        (&reply["tokens"], &reply["prompt"]),
        (&json!(ids), &json!(engine().tokenizer().decode(&ids)))
    );
    assert_eq!(server.ask("/tokenize", &json!({ "messages": user("Ruth 1:1") }))["tokens"], json!(ids));
    let (chat, text) = (
        server.ask(
            "/v1/chat/completions",
            &json!({ "messages": user("Ruth 1:1"), "temperature": 0, "max_tokens": 9 }),
        ),
        server
            .ask("/v1/completions", &json!({ "prompt": reply["prompt"], "temperature": 0, "max_tokens": 9 })),
    );
    assert_eq!(chat["choices"][0]["message"]["content"], text["choices"][0]["text"]);
}

#[test]
fn embeddings_are_the_librarys_of_length_one() {
    let server = Running::new();
    let texts = ["Psalms 151:1<sep>", "春日山中 李白<sep>"];
    let reply = server.ask("/v1/embeddings", &json!({ "model": "m", "input": texts }));
    let ids: Vec<_> = texts.iter().map(|t| engine().tokenizer().encode(t, Special::Parse)).collect();
    assert_eq!(reply["usage"]["prompt_tokens"], ids.iter().map(Vec::len).sum::<usize>());
    for (i, ids) in ids.iter().enumerate() {
        let mut session = Session::new(engine(), CONTEXT, KvType::F16).unwrap();
        session.sync(ids, |_| ControlFlow::Continue(())).unwrap();
        let hidden = session.embedding().unwrap();
        let norm = hidden.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let found: Vec<f32> = serde_json::from_value(reply["data"][i]["embedding"].clone()).unwrap();
        assert_eq!(found.len(), hidden.len());
        assert!(found.iter().zip(hidden).all(|(f, h)| (f64::from(*f) - f64::from(*h) / norm).abs() < 1e-6));
    }
    let coded = server.ask("/embeddings", &json!({ "input": ids, "encoding_format": "base64" }));
    for i in 0..2 {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let bytes = STANDARD.decode(coded["data"][i]["embedding"].as_str().unwrap()).unwrap();
        let floats = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let wanted: Vec<f32> = serde_json::from_value(reply["data"][i]["embedding"].clone()).unwrap();
        assert!(floats.eq(wanted));
    }
    for wrong in [
        json!({ "input": [] }),
        json!({ "input": "" }),
        json!({ "input": [5000] }),
        json!({ "input": "a", "encoding_format": "x" }),
        json!({ "input": "a", "dimensions": 7 }),
        json!({ "input": vec!["a"; 3000] }),
    ] {
        refused(&server.post("/v1/embeddings", &wrong), 400);
    }
    refused(&server.post("/v1/embeddings", &json!({ "input": vec![1; CONTEXT + 1] })), 413);
}

#[test]
fn the_model_is_listed() {
    let server = Running::new();
    for path in ["/v1/models", "/models"] {
        let list = server.get(path).1;
        assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("demo")));
        assert_eq!(list["data"][0]["max_model_len"], CONTEXT);
    }
    assert_eq!(server.get("/v1/models/demo").1["object"], "model");
}

#[test]
fn metrics_are_in_the_form_of_prometheus_and_add_up() {
    let server = Running::new();
    let body = json!({ "messages": user("Ruth 1:1"), "max_tokens": 7, "ignore_eos": true });
    let usage: Vec<Value> =
        (0..3).map(|_| server.ask("/v1/chat/completions", &body)["usage"].clone()).collect();
    let sum = |name: &str| usage.iter().map(|u| u[name].as_f64().unwrap()).sum::<f64>();
    assert_eq!(server.counter("yuan_tokens_predicted_total"), sum("completion_tokens"));
    assert_eq!(server.counter("yuan_prompt_tokens_total"), sum("prompt_tokens"));
    assert_eq!(server.counter("yuan_time_to_first_token_seconds_count"), 3.0);
    assert_eq!(server.counter("yuan_time_between_tokens_seconds_count"), 18.0);
    let response = agent().get(server.url("/metrics")).call().unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4");
    let text = response.into_body().read_to_string().unwrap();
    let mut named = std::collections::HashSet::new();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["#", "TYPE", name, kind] => {
                assert!(named.insert(name.to_owned()), "{name} once");
                assert!(["counter", "gauge", "histogram"].contains(&kind));
            }
            ["#", "HELP", ..] => {}
            [name, value] => {
                let base = name.split('{').next().unwrap();
                let base = ["_bucket", "_sum", "_count"]
                    .iter()
                    .fold(base, |b, end| b.strip_suffix(end).unwrap_or(b));
                assert!(named.contains(base) && value.parse::<f64>().is_ok(), "{line}");
            }
            _ => panic!("{line}"),
        }
    }
}
