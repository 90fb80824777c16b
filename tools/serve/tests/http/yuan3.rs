//! Yuan 3.0 over HTTP: its own prompts, its own form of calls, and reasoning where it is asked for.

use std::path::PathBuf;

use crate::common::{Running, user};
use serde_json::{Value, json};
use yuan::{
    model::KvType,
    session::{Drafts, Hint},
};
use yuan_serve::{Options, Served};

/// A server of the fixtures' tiny model, if they are there.
fn server() -> Option<Running> {
    let fixtures = std::env::var_os("YUAN_FIXTURES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures")),
        PathBuf::from,
    );
    let folder = fixtures.join("models/yuan3-tiny");
    if !folder.exists() {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci.is_empty()), "{} is missing", folder.display());
        eprintln!("skipped: no {}", folder.display());
        return None;
    }
    let engine = crate::common::converted(&folder);
    let served = Served {
        engine,
        name: "yuan3".into(),
        context: 1024,
        kv: KvType::F16,
        drafts: Drafts::Auto,
        hint: Hint::default(),
    };
    Some(Running::of(Options::default(), served))
}

fn parameters() -> Value {
    json!({
        "type": "object", "required": ["city"], "additionalProperties": false,
        "properties": { "city": { "enum": ["长安", "Lhasa"] }, "days": { "type": "integer", "minimum": 0, "maximum": 9 } },
    })
}

#[test]
fn a_conversation_has_the_models_own_form() {
    let Some(server) = server() else { return };
    let tool = json!({ "type": "function", "function": { "name": "weather", "parameters": parameters() } });
    let arguments = "{\"city\": \"长安\", \"days\": 3}";
    let body = json!({
        "messages": [
            { "role": "system", "content": "Be kind." },
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": "weather? <think>" },
            { "role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [{ "id": "1", "type": "function", "function": { "name": "weather", "arguments": arguments } }] },
            { "role": "tool", "tool_call_id": "1", "content": "21 degrees" },
        ],
        "tools": [tool], "reasoning_effort": "none",
    });
    let prompt = server.ask("/apply-template", &body)["prompt"].as_str().unwrap().to_owned();
    assert!(prompt.starts_with("<|begin_of_sentence|>") && prompt.contains("# Tools"), "{prompt}");
    for part in [
        "Be kind.\n\nBe brief.<|User|>weather? <think><|Assistant|><think>",
        "hm",
        "</think>",
        "[weather(city=\"长安\", days=3)]<|end_of_sentence|><|User|>tool_response",
        "{ \"output\": \"21 degrees\" }",
    ] {
        assert!(prompt.contains(part), "no {part} in {prompt}");
    }
    assert!(prompt.ends_with("<|Assistant|></think>"), "{prompt}");
}

#[test]
fn it_thinks_where_it_is_asked_to() {
    let Some(server) = server() else { return };
    let ask = |more: Value| {
        let mut body = json!({ "messages": user("你好"), "max_tokens": 12, "seed": 3, "ignore_eos": true, "logit_bias": {} });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.ask("/v1/chat/completions", &body)["choices"][0]["message"].clone()
    };
    // A model of random weights does not end what it thinks.
    let thinking = ask(json!({ "chat_template_kwargs": { "enable_thinking": true } }));
    assert!(
        !thinking["reasoning_content"].as_str().unwrap().is_empty() && thinking["content"] == "",
        "{thinking}"
    );
    let plain = ask(json!({ "reasoning_effort": "none" }));
    assert!(
        plain.get("reasoning_content").is_none() && !plain["content"].as_str().unwrap().is_empty(),
        "{plain}"
    );
    let raw = ask(json!({ "reasoning_effort": "high", "reasoning_format": "none" }));
    assert_eq!(raw["content"], thinking["reasoning_content"]);

    let body = json!({
        "messages": user("你好"), "max_tokens": 12, "seed": 3, "thinking": { "type": "enabled", "budget_tokens": 1024 }, "ignore_eos": true,
    });
    let block = &server.ask("/v1/messages", &body)["content"][0];
    assert_eq!((&block["type"], &block["thinking"]), (&json!("thinking"), &thinking["reasoning_content"]));
    let body = json!({
        "messages": user("你好"), "think": true, "stream": false,
        "options": { "num_predict": 12, "seed": 3, "temperature": 1, "top_k": 0, "top_p": 1, "repeat_penalty": 1, "ignore_eos": true },
    });
    assert_eq!(server.ask("/api/chat", &body)["message"]["thinking"], thinking["reasoning_content"]);
    let body = json!({
        "input": "你好", "max_output_tokens": 12, "seed": 3, "reasoning": { "effort": "medium" }, "ignore_eos": true,
    });
    let item = &server.ask("/v1/responses", &body)["output"][0];
    assert_eq!(
        (&item["type"], &item["content"][0]["text"]),
        (&json!("reasoning"), &thinking["reasoning_content"])
    );
}

#[test]
fn calls_are_one_list_of_pythons_and_meet_their_schemas() {
    let Some(server) = server() else { return };
    let tool = json!({ "type": "function", "function": { "name": "weather", "description": "The weather", "parameters": parameters() } });
    for seed in 0..4 {
        let body = json!({
            "messages": user("weather in 长安?"), "tools": [tool], "tool_choice": "required", "parallel_tool_calls": seed % 2 == 0,
            "reasoning_effort": "none", "max_tokens": 200, "seed": seed,
        });
        let reply = server.ask("/v1/chat/completions", &body);
        let calls = reply["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
        assert!(!calls.is_empty() && (seed % 2 == 0 || calls.len() == 1), "{reply}");
        for call in &calls {
            let arguments: Value =
                serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            assert!(["长安", "Lhasa"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
            assert!(arguments.get("days").is_none_or(|days| days.as_u64() < Some(10)), "{arguments}");
        }
        let streamed: Vec<Value> = server
            .chunks("/v1/chat/completions", &body)
            .iter()
            .flat_map(|chunk| {
                chunk["choices"][0]["delta"]["tool_calls"].as_array().cloned().unwrap_or_default()
            })
            .filter_map(|call| {
                call["function"]["arguments"].as_str().filter(|text| !text.is_empty()).map(Value::from)
            })
            .collect();
        let whole: Vec<Value> = calls.iter().map(|call| call["function"]["arguments"].clone()).collect();
        assert_eq!(streamed, whole);
        let words = server.ask("/v1/chat/completions", &{
            let mut body = body;
            body["tool_choice"] = json!("none");
            body["max_tokens"] = json!(8);
            body
        });
        assert!(words["choices"][0]["message"].get("tool_calls").is_none());
    }
}
