//! Chat: the answers are the library's, however they are sent.

use std::{ops::ControlFlow, thread};

use crate::common::{CONTEXT, Running, engine, refused, user};
use serde_json::{Value, json};
use yuan::{
    model::KvType,
    sampler::{Sampler, Settings},
    session::{Finish, Limits, Session},
    tokenizer::Message,
};

const CHAT: &str = "/v1/chat/completions";

/// Text and end of the library's answer.
fn answer(question: &str, settings: Settings, limits: &Limits) -> (String, Finish) {
    let engine = engine();
    let prompt = engine.tokenizer().chat(&[Message::new("user", question)], true).unwrap();
    let mut session = Session::new(engine, CONTEXT, KvType::F16).unwrap();
    session.sync(&prompt, |_| ControlFlow::Continue(())).unwrap();
    let mut text = String::new();
    let finish = session.generate(&mut Sampler::new(settings).unwrap(), limits, |_, piece| {
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    (text, finish.unwrap())
}

fn content(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap()
}

/// The contents of chunks by choice, put together.
fn contents(chunks: &[Value], choices: usize) -> Vec<String> {
    let mut all = vec![String::new(); choices];
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let place = choice["index"].as_u64().unwrap() as usize;
        all[place].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
    }
    all
}

const QUESTIONS: [&str; 3] = ["Psalms 151:1-4", "春日山中 李白", "Psalms \u{1F600} 春"];

#[test]
fn answers_are_those_of_the_library_streamed_or_not() {
    let server = Running::new();
    for question in QUESTIONS {
        for temperature in [0.0, 0.8] {
            let settings = Settings { temperature, top_p: 0.9, seed: Some(7), ..Settings::default() };
            let (text, finish) = answer(question, settings, &Limits::tokens(50));
            let body = json!({
                "model": "whatever", "messages": user(question), "max_tokens": 50, "temperature": temperature, "top_p": 0.9, "seed": 7,
                "something": {"unknown": [1]},
            });
            let reply = server.ask(CHAT, &body);
            assert_eq!(content(&reply), text, "{question} at {temperature}");
            assert_eq!((&reply["object"], &reply["model"]), (&json!("chat.completion"), &json!("whatever")));
            let reason = if finish == Finish::Length { "length" } else { "stop" };
            assert_eq!(reply["choices"][0]["finish_reason"], reason);
            assert!(reply["system_fingerprint"].as_str().unwrap().starts_with("yuan-"));

            let chunks = server.chunks(CHAT, &body);
            assert_eq!(contents(&chunks, 1), [text]);
            assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
            let last = &chunks.last().unwrap()["choices"][0];
            assert_eq!((&last["finish_reason"], &last["delta"]), (&json!(reason), &json!({})));
            assert!(
                chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c["id"] == chunks[0]["id"])
            );
            assert!(chunks.iter().all(|c| c.get("usage").is_none()));
        }
    }
}

#[test]
fn usage_and_timings_add_up() {
    let server = Running::new();
    let body = json!({
        "messages": user("Psalms 151:1-4"), "max_completion_tokens": 9, "seed": 1, "ignore_eos": true, "n": 3,
        "stream_options": {"include_usage": true},
    });
    let reply = server.ask(CHAT, &body);
    let usage = &reply["usage"];
    let prompt = engine().tokenizer().chat(&[Message::new("user", "Psalms 151:1-4")], true).unwrap().len();
    assert_eq!(usage["prompt_tokens"], prompt, "one prompt, however many answers");
    assert_eq!(usage["completion_tokens"], 27);
    assert_eq!(usage["total_tokens"], prompt + 27);
    assert_eq!(reply["timings"]["predicted_n"], 27);
    assert!(reply["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);
    let texts: Vec<_> =
        reply["choices"].as_array().unwrap().iter().map(|c| &c["message"]["content"]).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "each has a seed of its own");
    // The second answer has the seed behind that of the first.
    let mut second = body.clone();
    (second["n"], second["seed"]) = (json!(1), json!(2));
    assert_eq!(content(&server.ask(CHAT, &second)), texts[1]);

    let chunks = server.chunks(CHAT, &body);
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), usage));
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null()));
    assert!(contents(&chunks, 3).iter().eq(texts));
}

#[test]
fn a_prediction_is_drafted_from_and_changes_nothing() {
    let server = Running::new();
    let mut body = json!({ "messages": user("Psalms 151:1-4"), "max_tokens": 60, "temperature": 0, "ignore_eos": true, "draft": "off" });
    let plain = server.ask(CHAT, &body);
    let details = |reply: &Value, which: &str| {
        reply["usage"]["completion_tokens_details"][format!("{which}_prediction_tokens")].as_u64().unwrap()
    };
    assert_eq!((details(&plain, "accepted"), details(&plain, "rejected")), (0, 0));
    let text = content(&plain);
    for content in [json!(text), json!([{ "type": "text", "text": text }])] {
        (body["prediction"], body["draft"]) = (json!({ "type": "content", "content": content }), json!(3));
        let predicted = server.ask(CHAT, &body);
        assert_eq!(self::content(&predicted), text);
        assert!(details(&predicted, "accepted") > 30, "{}", predicted["usage"]);
        let timings = &predicted["timings"];
        assert_eq!(timings["draft_n_accepted"], details(&predicted, "accepted"));
        assert_eq!(timings["draft_n"], details(&predicted, "accepted") + details(&predicted, "rejected"));
    }
    let [drafted, accepted] = server.counters(["yuan_tokens_drafted_total", "yuan_tokens_accepted_total"]);
    assert!(drafted >= accepted && accepted > 60.0, "{accepted} of {drafted}");
    body["draft"] = json!("auto");
    assert_eq!(content(&server.ask(CHAT, &body)), text);
    for (field, value) in [
        ("draft", json!("often")),
        ("draft", json!(4)),
        ("draft", json!({})),
        ("prediction", json!({ "type": "text", "content": "a" })),
        ("prediction", json!({ "type": "content", "content": [{ "type": "image_url" }] })),
        ("prediction", json!({ "type": "content", "content": "a b ".repeat(150_000) })),
    ] {
        let mut wrong = body.clone();
        wrong[field] = value;
        let (status, reply) = server.post(CHAT, &wrong);
        assert_eq!((status, &reply["error"]["param"]), (400, &json!(field)), "{reply}");
    }
}

#[test]
fn what_was_read_is_not_read_again() {
    let server = Running::alone();
    let long = "And the LORD said. ".repeat(120);
    let body = json!({ "messages": user(&long), "max_tokens": 4, "temperature": 0 });
    let first = server.ask(CHAT, &body);
    let second = server.ask(CHAT, &body);
    assert_eq!(content(&first), content(&second));
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], 576, "to the last snapshot");
    assert_eq!(second["timings"]["cache_n"], 576);
    assert_eq!(server.counter("yuan_prompt_tokens_cached_total"), 576.0);

    let mut body = json!({ "messages": user(&(long + "!")), "max_tokens": 4, "return_progress": true });
    let chunks = server.chunks(CHAT, &body);
    let progress: Vec<_> = chunks.iter().filter_map(|chunk| chunk.get("prompt_progress")).collect();
    let total = progress[0]["total"].as_u64().unwrap();
    assert!(progress.iter().all(|p| p["cache"] == 576 && p["total"] == total));
    assert_eq!(
        (&progress[0]["processed"], &progress.last().unwrap()["processed"]),
        (&json!(576), &json!(total))
    );
    body["return_progress"] = json!(false);
    assert!(server.chunks(CHAT, &body).iter().all(|chunk| chunk.get("prompt_progress").is_none()));
}

#[test]
fn an_answer_ends_before_a_stop_text() {
    let server = Running::new();
    let settings = Settings { temperature: 0.9, seed: Some(3), ..Settings::default() };
    let (text, _) = answer(QUESTIONS[0], settings, &Limits::tokens(60));
    let words: Vec<_> = text.split(' ').collect();
    let stop = words[words.len() / 2..words.len() / 2 + 2].join(" ");
    let body = json!({
        "messages": user(QUESTIONS[0]), "max_tokens": 60, "temperature": 0.9, "seed": 3, "logprobs": true,
        "stop": ["never", "not either", "nor this", "and not this", stop],
    });
    let reply = server.ask(CHAT, &body);
    assert_eq!(content(&reply), &text[..text.find(&stop).unwrap()]);
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(contents(&server.chunks(CHAT, &body), 1), [content(&reply)]);
    // The tokens of the stop text are not told either, but for one in which it may begin.
    let entries = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let (_, but_last) = entries.split_last().unwrap();
    let (all, shown) = (joined(entries), content(&reply).trim_start());
    assert!(all.trim_start().starts_with(shown), "{all}");
    assert!(joined(but_last).trim_start().len() < shown.len());
}

/// The texts of tokens with their scores, put together; without a character that the last one leaves incomplete.
fn joined(entries: &[Value]) -> String {
    let bytes = entries.iter().flat_map(|e| e["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|b| b.as_u64().unwrap() as u8).collect();
    let whole = str::from_utf8(&bytes).map_or_else(|e| e.valid_up_to(), |_| bytes.len());
    assert!(bytes.len() - whole < 4);
    String::from_utf8(bytes[..whole].to_vec()).unwrap()
}

#[test]
fn tokens_are_told_with_their_probabilities() {
    let server = Running::new();
    for question in QUESTIONS {
        let body = json!({
            "messages": user(question), "max_tokens": 30, "temperature": 0, "logprobs": true, "top_logprobs": 3,
        });
        let reply = server.ask(CHAT, &body);
        let entries = &reply["choices"][0]["logprobs"]["content"];
        let shown = content(&reply).trim_start().trim_end_matches('\u{FFFD}');
        assert_eq!(joined(entries.as_array().unwrap()).trim_start(), shown);
        for entry in entries.as_array().unwrap() {
            let top = entry["top_logprobs"].as_array().unwrap();
            assert_eq!(top.len(), 3);
            assert_eq!(top[0]["logprob"], entry["logprob"], "the best is chosen");
            let sum: f64 = top.iter().map(|t| t["logprob"].as_f64().unwrap().exp()).sum();
            assert!(sum > 0.0 && sum <= 1.0 + 1e-6);
        }
        let streamed: Vec<_> = server
            .chunks(CHAT, &body)
            .iter()
            .flat_map(|chunk| {
                chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default()
            })
            .collect();
        assert_eq!(&Value::from(streamed), entries);
    }
    let body = json!({ "messages": user("a"), "top_logprobs": 3 });
    assert!(refused(&server.post(CHAT, &body), 400).contains("logprobs"));
}

/// Clients with seeds, at once: each gets what it gets alone.
#[test]
fn company_changes_nothing() {
    let server = Running::new();
    let body = |i: usize| json!({ "messages": user(QUESTIONS[i % 3]), "max_tokens": 20 + 5 * i, "temperature": 0.9, "seed": i, "logprobs": i < 4 });
    let alone: Vec<_> = (0..8).map(|i| server.ask(CHAT, &body(i))["choices"].clone()).collect();
    thread::scope(|scope| {
        for (i, alone) in alone.iter().enumerate() {
            let server = &server;
            scope.spawn(move || {
                for round in 0..3 {
                    if (i + round).is_multiple_of(2) {
                        assert_eq!(&server.ask(CHAT, &body(i))["choices"], alone);
                    } else {
                        let chunks = server.chunks(CHAT, &body(i));
                        assert_eq!(contents(&chunks, 1), [alone[0]["message"]["content"].as_str().unwrap()]);
                    }
                }
            });
        }
    });
    assert_eq!(server.counter("yuan_pass_panics_total"), 0.0);
}

#[test]
fn messages_come_in_parts_and_in_several_roles() {
    let server = Running::new();
    let ask = |messages: Value| {
        let reply = server.ask(CHAT, &json!({ "messages": messages, "max_tokens": 12, "temperature": 0 }));
        content(&reply).to_owned()
    };
    let parts = json!([{ "role": "user", "content": [{"type": "text", "text": "Psalms "}, {"type": "text", "text": "3:1"}] }]);
    assert_eq!(ask(parts), ask(user("Psalms 3:1")));
    let several = json!([
        { "role": "developer", "content": "Be brief." }, { "role": "user", "content": "Psalms 1:1" },
        { "role": "assistant", "content": "Blessed", "refusal": null }, { "role": "user", "content": "Psalms 3:1" },
    ]);
    ask(several);
    let picture = json!({ "messages": [{ "role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}] }] });
    assert!(refused(&server.post(CHAT, &picture), 400).contains("image_url"));
}
