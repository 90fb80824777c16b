//! Answers of a form over HTTP, and calls of functions.

use crate::common::{Running, refused, user};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["诗人", "year"],
        "properties": { "诗人": { "type": "string", "maxLength": 6 }, "year": { "type": "integer", "minimum": 600, "maximum": 999 } },
    })
}

fn meets(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let year = value["year"].as_u64();
    value.as_object().unwrap().len() == 2
        && value["诗人"].is_string()
        && year.is_some_and(|y| (600..1000).contains(&y))
}

/// A streamed message, put together as clients do it.
fn streamed(chunks: &[Value]) -> Value {
    let mut message = json!({ "role": "assistant", "content": "", "refusal": null });
    let mut calls: Vec<Value> = Vec::new();
    for delta in chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()).map(|c| &c["delta"]) {
        for field in ["content", "reasoning_content"] {
            if let Some(text) = delta[field].as_str() {
                message[field] = json!(message[field].as_str().unwrap_or_default().to_owned() + text);
            }
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                let mut begun = call.clone();
                begun.as_object_mut().unwrap().remove("index");
                calls.push(begun);
            } else {
                let arguments = &mut calls[index]["function"]["arguments"];
                *arguments = json!(
                    arguments.as_str().unwrap().to_owned() + call["function"]["arguments"].as_str().unwrap()
                );
            }
        }
    }
    if !calls.is_empty() {
        if message["content"] == "" {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = calls.into();
    }
    message
}

/// Names and arguments of the calls of a message.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let list = message["tool_calls"].as_array().into_iter().flatten();
    list.map(|call| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        let function = &call["function"];
        let arguments = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        (function["name"].as_str().unwrap().to_owned(), arguments)
    })
    .collect()
}

fn tools() -> Value {
    json!([
        { "type": "function", "function": {
            "name": "weather", "description": "The weather of a city",
            "parameters": { "type": "object", "properties": { "city": { "enum": ["长安", "Lhasa"] } }, "required": ["city"], "additionalProperties": false },
        } },
        { "type": "function", "function": {
            "name": "add",
            "parameters": { "type": "object", "properties": { "a": { "type": "integer", "minimum": 0, "maximum": 9 } }, "required": ["a"], "additionalProperties": false },
        } },
    ])
}

#[test]
fn answers_have_the_form_that_is_asked_for_in_each_way() {
    let server = Running::new();
    let formats = [
        json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "poet", "schema": schema(), "strict": true } } }),
        json!({ "json_schema": schema() }),
        json!({ "response_format": { "type": "json_object", "schema": schema() } }),
    ];
    for (seed, format) in formats.iter().enumerate() {
        let mut body = json!({ "messages": user("春日山中 李白"), "max_tokens": 200, "seed": seed });
        body.as_object_mut().unwrap().extend(format.as_object().unwrap().clone());
        let reply = server.ask(CHAT, &body);
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "stop");
        assert!(meets(choice["message"]["content"].as_str().unwrap()));
        assert_eq!(streamed(&server.chunks(CHAT, &body)), choice["message"]);

        body["prompt"] = json!(["In the beginning", "Psalms 3:1<sep>"]);
        for choice in server.ask("/v1/completions", &body)["choices"].as_array().unwrap() {
            assert!(meets(choice["text"].as_str().unwrap()), "{choice}");
        }
    }
    let body = json!({ "prompt": "Is it so?<sep>", "grammar": "start: \"yes\" | \"no\"", "max_tokens": 9, "logprobs": 1 });
    let reply = server.ask("/v1/completions", &body);
    let text = reply["choices"][0]["text"].as_str().unwrap();
    assert!(["yes", "no"].contains(&text), "{text}");
    let body = json!({ "messages": user("x"), "json_schema": schema(), "max_tokens": 5 });
    assert_eq!(server.ask(CHAT, &body)["choices"][0]["finish_reason"], "length");
    assert!(server.counter("yuan_tokens_forced_total") > 10.0);
}

#[test]
fn forms_that_cannot_be_had_are_refused_with_their_field() {
    let server = Running::new();
    for (fields, param, part) in [
        (json!({ "response_format": { "type": "xml" } }), "response_format", "xml"),
        (json!({ "response_format": { "type": "json_schema" } }), "response_format", "schema"),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "nix" } } } }),
            "response_format",
            "nix",
        ),
        (
            json!({ "json_schema": { "type": "integer", "minimum": 3, "maximum": 1 } }),
            "json_schema",
            "minimum",
        ),
        (json!({ "grammar": "root ::= \"a\"" }), "grammar", "GBNF"),
        (json!({ "grammar": "start: none" }), "grammar", "none"),
        (json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }), "tools", "a b"),
        (
            json!({ "tools": tools(), "tool_choice": { "type": "function", "function": { "name": "c" } } }),
            "tool_choice",
            "c",
        ),
        (json!({ "tools": tools(), "grammar": "start: \"a\"" }), "tools", "grammar"),
    ] {
        for stream in [false, true] {
            let mut body = json!({ "messages": user("x"), "prompt": "x", "stream": stream });
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            for path in [CHAT, "/v1/completions"] {
                if path != CHAT && param.starts_with("tool") {
                    continue;
                }
                let (status, reply) = server.post(path, &body);
                assert_eq!((status, &reply["error"]["param"]), (400, &json!(param)), "{fields}: {reply}");
                assert!(reply["error"]["message"].as_str().unwrap().contains(part), "{reply}");
            }
        }
    }
    let both = json!({ "messages": user("x"), "json_schema": {}, "grammar": "start: \"a\"" });
    assert!(refused(&server.post(CHAT, &both), 400).contains("another field"));
}

#[test]
fn calls_of_functions_meet_their_schemas_streamed_or_not() {
    let server = Running::new();
    for seed in 0..6 {
        let mut body = json!({
            "messages": user("How is the weather in 长安?"), "tools": tools(), "tool_choice": "required", "max_tokens": 300,
            "seed": seed, "parallel_tool_calls": seed % 2 == 0, "temperature": 0.9,
        });
        let reply = server.ask(CHAT, &body);
        let (choice, chunks) = (&reply["choices"][0], server.chunks(CHAT, &body));
        let (found, again) = (calls(&choice["message"]), calls(&streamed(&chunks)));
        assert_eq!(found, again);
        assert!(!found.is_empty() && (seed % 2 == 0 || found.len() == 1), "{choice}");
        for (name, arguments) in &found {
            match name.as_str() {
                "weather" => assert!(["长安", "Lhasa"].contains(&arguments["city"].as_str().unwrap())),
                "add" => assert!(arguments["a"].as_u64().unwrap() < 10),
                other => panic!("{other} is none of the functions"),
            }
        }
        assert_eq!(choice["message"]["content"], Value::Null);
        // Several calls may go on until the tokens end.
        let reason = &choice["finish_reason"];
        assert!(reason == "tool_calls" || (seed % 2 == 0 && reason == "length"), "{choice}");
        assert_eq!(&chunks.last().unwrap()["choices"][0]["finish_reason"], reason);

        body["tool_choice"] = json!({ "type": "function", "function": { "name": "add" } });
        let reply = server.ask(CHAT, &body);
        let found = calls(&reply["choices"][0]["message"]);
        assert_eq!((found.len(), &*found[0].0), (1, "add"));
        assert_eq!(reply["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[test]
fn an_answer_may_be_text_or_a_call() {
    let server = Running::new();
    let history = json!([
        { "role": "user", "content": "What is 1 + 1?" },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "call_1", "type": "function", "function": { "name": "add", "arguments": "{\"a\": 1}" } }] },
        { "role": "tool", "tool_call_id": "call_1", "content": "2" },
    ]);
    let mut body = json!({ "messages": history, "tools": tools(), "max_tokens": 30, "temperature": 0 });
    let reply = server.ask(CHAT, &body);
    let message = &reply["choices"][0]["message"];
    assert!(
        message.get("tool_calls").is_none() && !message["content"].as_str().unwrap().is_empty(),
        "{message}"
    );
    assert_eq!(&streamed(&server.chunks(CHAT, &body)), message);
    // What begins as a call is one: the model is made to begin with the mark's first token, and then likes what it reads.
    let tokens = server.ask(
        "/tokenize",
        &json!({ "content": "<tool_call>{\"name\": \"weather\", \"arguments\": {", "parse_special": false }),
    );
    let bias: serde_json::Map<_, _> =
        tokens["tokens"].as_array().unwrap().iter().map(|id| (id.to_string(), json!(50))).collect();
    (body["logit_bias"], body["max_tokens"]) = (bias.into(), json!(200));
    let reply = server.ask(CHAT, &body);
    let choice = &reply["choices"][0];
    assert!(!calls(&choice["message"]).is_empty() || choice["finish_reason"] == "length", "{choice}");
    // Without functions the same history is text.
    for key in ["tools", "logit_bias"] {
        body.as_object_mut().unwrap().remove(key);
    }
    server.ask(CHAT, &body);
    // JSON or a call.
    body["tools"] = tools();
    body["response_format"] = json!({ "type": "json_schema", "json_schema": { "schema": schema() } });
    let reply = server.ask(CHAT, &body);
    let message = &reply["choices"][0]["message"];
    assert!(!calls(message).is_empty() || meets(message["content"].as_str().unwrap()), "{message}");
}

#[test]
fn reasoning_is_told_apart() {
    let server = Running::new();
    let grammar = "start: \"<think>\" /[a-z春]{3}/ \"</think>\\n\" /[0-9]{4}/";
    let mut body = json!({ "messages": user("x"), "grammar": grammar, "max_tokens": 90 });
    let message = server.ask(CHAT, &body)["choices"][0]["message"].clone();
    assert_eq!(message["reasoning_content"].as_str().unwrap().chars().count(), 3, "{message}");
    assert!(message["content"].as_str().unwrap().parse::<u16>().is_ok(), "{message}");
    body["seed"] = json!(4);
    let whole = server.ask(CHAT, &body)["choices"][0]["message"].clone();
    assert_eq!(streamed(&server.chunks(CHAT, &body)), whole);
    body["reasoning_format"] = json!("none");
    let message = server.ask(CHAT, &body)["choices"][0]["message"].clone();
    assert!(
        message["content"].as_str().unwrap().starts_with("<think>")
            && message.get("reasoning_content").is_none()
    );
}

/// By whatever interface a form is asked for.
#[test]
fn other_interfaces_have_forms_too() {
    let server = Running::new();
    for prompt in ["Psalms 3:1", "春日山中 李白"] {
        let options = json!({ "num_predict": 200, "seed": 5 });
        let mut body =
            json!({ "messages": user(prompt), "format": schema(), "stream": false, "options": options });
        let chat = server.ask("/api/chat", &body);
        assert!(meets(chat["message"]["content"].as_str().unwrap()), "{chat}");
        (body["prompt"], body["format"]) = (json!(prompt), json!("json"));
        let generated = server.ask("/api/generate", &body);
        let text = generated["response"].as_str().unwrap();
        let whole = serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
        assert!(
            whole || (generated["done_reason"] == "length" && text.trim_start().starts_with('{')),
            "{generated}"
        );

        let format = json!({ "type": "json_schema", "name": "poem", "schema": schema(), "strict": true });
        let body =
            json!({ "input": prompt, "text": { "format": format }, "max_output_tokens": 200, "seed": 5 });
        let reply = server.ask("/v1/responses", &body);
        assert!(meets(reply["output"][0]["content"][0]["text"].as_str().unwrap()), "{reply}");
        assert_eq!(reply["text"]["format"], format);
    }
}
