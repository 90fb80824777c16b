//! Anthropic's interface: the answers are those of OpenAI's, in its own form.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use crate::common::{CONTEXT, Running, engine, user};
use serde_json::{Value, json};
use yuan::tokenizer::{Message, Special};
use yuan_serve::Options;

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const QUESTION: &str = "Psalms 151:1-4";

/// The data of events, which have the names of their types.
fn events(server: &Running, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = server.send(MESSAGES, &body.to_string());
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let lines: Vec<_> =
        BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap).collect();
    let events = lines.split(String::is_empty).filter(|event| !event.is_empty());
    let event = |event: &[String]| {
        let [name, data] = event else { panic!("{event:?}") };
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"].as_str().unwrap());
        data
    };
    events.map(event).filter(|event| event["type"] != "ping").collect()
}

/// Status, kind and message of a refusal in Anthropic's form.
fn refused(reply: &(u16, Value)) -> (u16, &str, &str) {
    assert_eq!(reply.1["type"], "error", "{}", reply.1);
    let error = &reply.1["error"];
    (reply.0, error["type"].as_str().unwrap(), error["message"].as_str().unwrap())
}

#[test]
fn answers_are_those_of_the_other_protocol() {
    let server = Running::new();
    for (question, most, stop) in
        [(QUESTION, 40, "never"), ("春日山中 李白", 30, "，"), (QUESTION, 40, "the"), (QUESTION, 3, "never")]
    {
        let said = json!([{ "role": "system", "content": "Be brief." }, user(question)[0]]);
        let openai = json!({
            "messages": said, "max_tokens": most, "seed": 7, "temperature": 0.9, "top_k": 30, "top_p": 0.8, "stop": ["nor this", stop],
        });
        let wanted = server.ask("/v1/chat/completions", &openai);
        let text = wanted["choices"][0]["message"]["content"].as_str().unwrap();
        let blocks = json!([{ "role": "user", "content": [{"type": "text", "text": question, "cache_control": {"type": "ephemeral"}}] }]);
        let body = json!({
            "model": "claude", "system": [{"type": "text", "text": "Be brief."}], "messages": blocks, "max_tokens": most, "seed": 7,
            "temperature": 0.9, "top_k": 30, "top_p": 0.8, "stop_sequences": ["nor this", stop], "metadata": {"user_id": "1"},
            "thinking": {"type": "disabled"},
        });
        let reply = server.ask(MESSAGES, &body);
        assert_eq!(reply["content"], json!([{ "type": "text", "text": text }]), "{question}");
        assert_eq!(
            (&reply["type"], &reply["role"], &reply["model"]),
            (&json!("message"), &json!("assistant"), &json!("claude"))
        );
        let usage = &wanted["usage"];
        assert_eq!(reply["usage"]["input_tokens"], usage["prompt_tokens"]);
        assert_eq!(reply["usage"]["output_tokens"], usage["completion_tokens"]);
        let end = [reply["stop_reason"].clone(), reply["stop_sequence"].clone()];
        let ends = match wanted["choices"][0]["finish_reason"].as_str().unwrap() {
            "length" => vec![[json!("max_tokens"), Value::Null]],
            _ => vec![[json!("end_turn"), Value::Null], [json!("stop_sequence"), json!(stop)]],
        };
        assert!(ends.contains(&end), "{end:?}");

        let mut body = body.clone();
        body["system"] = json!("Be brief.");
        let events = events(&server, &body);
        let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(types[..2], ["message_start", "content_block_start"]);
        assert_eq!(types[types.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
        let start = &events[0]["message"];
        assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
        assert_eq!(start["usage"]["input_tokens"], usage["prompt_tokens"]);
        let deltas = events.iter().filter(|event| event["type"] == "content_block_delta");
        let streamed: String = deltas.map(|event| event["delta"]["text"].as_str().unwrap()).collect();
        assert_eq!(streamed, text);
        let last = &events[events.len() - 2];
        assert_eq!(last["delta"], json!({ "stop_reason": end[0], "stop_sequence": end[1] }));
        assert_eq!(last["usage"]["output_tokens"], reply["usage"]["output_tokens"]);
    }
}

#[test]
fn the_text_that_ended_an_answer_is_told() {
    let server = Running::new();
    let ask = |stops: Value| {
        let body = json!({ "messages": user(QUESTION), "max_tokens": 60, "temperature": 0, "stop_sequences": stops });
        server.ask(MESSAGES, &body)
    };
    let whole = ask(json!([]));
    let text = whole["content"][0]["text"].as_str().unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    let (early, late) = (words[2], words[words.len() - 2]);
    let reply = ask(json!(["", "never", late, early]));
    let cut = &text[..text.find(early).unwrap().min(text.find(late).unwrap())];
    assert_eq!(reply["content"][0]["text"], cut);
    let ended = if text.find(early) <= text.find(late) { early } else { late };
    assert_eq!((&reply["stop_reason"], &reply["stop_sequence"]), (&json!("stop_sequence"), &json!(ended)));
}

#[test]
fn an_answer_goes_on_where_the_assistant_has_begun() {
    let server = Running::new();
    let messages = json!([user(QUESTION)[0], { "role": "assistant", "content": "Blessed is the" }]);
    let engine = engine();
    let tokenizer = engine.tokenizer();
    let mut prompt = tokenizer.chat(&[Message::new("user", QUESTION)], true).unwrap();
    prompt.extend(tokenizer.encode("Blessed is the", Special::AsText));
    let completion = json!({ "prompt": prompt, "max_tokens": 20, "temperature": 0 });
    let wanted = &server.ask("/v1/completions", &completion)["choices"][0]["text"];
    let body = json!({ "messages": messages, "max_tokens": 20, "temperature": 0 });
    assert_eq!(&server.ask(MESSAGES, &body)["content"][0]["text"], wanted);
    assert_eq!(server.ask(COUNT, &json!({ "messages": messages }))["input_tokens"], prompt.len());
}

#[test]
fn tokens_that_were_there_count_apart() {
    let server = Running::new();
    let long = "And the LORD said. ".repeat(120);
    let body = json!({ "messages": user(&long), "max_tokens": 4 });
    let count = server.ask(COUNT, &body)["input_tokens"].as_u64().unwrap();
    let usage = |reply: &Value| {
        ["input_tokens", "cache_read_input_tokens"].map(|name| reply["usage"][name].as_u64().unwrap())
    };
    assert_eq!(usage(&server.ask(MESSAGES, &body)), [count, 0]);
    assert_eq!(usage(&server.ask(MESSAGES, &body)), [count - 576, 576], "to the last snapshot");
    let all = events(&server, &body);
    assert_eq!(usage(&all[all.len() - 2]), [count - 576, 576]);
}

#[test]
fn what_cannot_be_is_refused_in_its_form() {
    let server = Running::new();
    let asked = |more: Value| {
        let mut body = json!({ "messages": user("a"), "max_tokens": 1 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let picture = json!([{ "role": "user", "content": [{"type": "image", "source": {"type": "url"}}] }]);
    for (body, word) in [
        (asked(json!({ "messages": [] })), "messages"),
        (asked(json!({ "messages": picture })), "image"),
        (asked(json!({ "max_tokens": -1 })), "max_tokens"),
        (asked(json!({ "temperature": -1 })), "temperature"),
        (asked(json!({ "thinking": {"type": "enabled", "budget_tokens": 1024} })), "think"),
        (asked(json!({ "tools": [{"name": "a b", "input_schema": {}}] })), "a b"),
        (
            asked(json!({ "tools": [{"type": "web_search_20250305", "name": "web_search"}] })),
            "web_search_20250305",
        ),
        (asked(json!({ "tool_choice": {"type": "any"} })), "tool_choice"),
        (asked(json!({ "output_config": {"format": {"type": "json_schema"}} })), "schema"),
        (json!({ "max_tokens": 1 }), "messages"),
    ] {
        let reply = server.post(MESSAGES, &body);
        let (status, kind, message) = refused(&reply);
        assert_eq!((status, kind), (400, "invalid_request_error"), "{message}");
        assert!(message.contains(word), "{message}");
    }
    let long = asked(json!({ "messages": user(&"a ".repeat(2 * CONTEXT)) }));
    let reply = server.post(MESSAGES, &long);
    let (status, kind, message) = refused(&reply);
    assert_eq!((status, kind), (413, "request_too_large"));
    assert!(message.contains("context"), "{message}");
    assert_eq!(refused(&server.get(MESSAGES)).0, 405);
    assert_eq!(refused(&server.get("/v1/messages/none")).1, "not_found_error");
}

#[test]
fn a_key_opens_by_its_own_header() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret\n").unwrap();
    let server =
        Running::loading(Options { api_key_file: Some(file.path().into()), ..Options::default() }, || {
            Ok(crate::common::served())
        });
    while server.get("/health").0 == 503 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let body = json!({ "messages": user("a"), "max_tokens": 1 }).to_string();
    let post = |key: Option<&str>| {
        let mut request = crate::common::agent().post(server.url(MESSAGES)).content_type("application/json");
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        crate::common::read(request.send(&body).unwrap())
    };
    assert_eq!(refused(&post(None)).1, "authentication_error");
    assert_eq!(refused(&post(Some("wrong"))).0, 401);
    assert_eq!(post(Some("secret")).0, 200);
}
