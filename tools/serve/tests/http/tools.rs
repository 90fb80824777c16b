//! Calls of functions by every protocol: the same as by OpenAI's chat, streamed or not, and their results are read.

use std::io::{BufRead, BufReader};

use crate::common::{Running, user};
use serde_json::{Value, json};

const QUESTION: &str = "How is the weather in 长安?";

fn parameters() -> Value {
    json!({ "type": "object", "properties": { "city": { "enum": ["长安", "Lhasa"] } }, "required": ["city"], "additionalProperties": false })
}

/// Name and arguments of the call that OpenAI's chat makes with this seed, and the tokens of the prompt.
fn wanted(server: &Running, seed: u64) -> (Value, Value, Value) {
    let tool = json!({ "type": "function", "function": { "name": "weather", "description": "The weather", "parameters": parameters() } });
    let body = json!({
        "messages": user(QUESTION), "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 200, "seed": seed,
        "temperature": 0.9, "top_p": 1, "top_k": 0,
    });
    let reply = server.ask("/v1/chat/completions", &body);
    let function = &reply["choices"][0]["message"]["tool_calls"][0]["function"];
    let arguments = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
    (function["name"].clone(), arguments, reply["usage"]["prompt_tokens"].clone())
}

/// The JSON of the lines of a reply that begin so.
fn lines(server: &Running, path: &str, body: &Value, begin: &str) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = server.send(path, &body.to_string());
    assert_eq!(response.status(), 200);
    let lines = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap);
    lines.filter_map(|line| Some(serde_json::from_str(line.strip_prefix(begin)?).unwrap())).collect()
}

#[test]
fn by_anthropics_messages() {
    let server = Running::new();
    let path = "/v1/messages";
    for seed in 0..3 {
        let (name, arguments, prompt) = wanted(&server, seed);
        let mut body = json!({
            "messages": user(QUESTION), "max_tokens": 200, "seed": seed, "temperature": 0.9, "top_k": 0, "top_p": 1,
            "tools": [{ "name": "weather", "description": "The weather", "input_schema": parameters() }],
            "tool_choice": { "type": "any", "disable_parallel_tool_use": true },
        });
        let reply = server.ask(path, &body);
        let block = &reply["content"][0];
        assert_eq!(
            (&block["type"], &block["name"], &block["input"]),
            (&json!("tool_use"), &name, &arguments)
        );
        assert_eq!((&reply["stop_reason"], &reply["stop_sequence"]), (&json!("tool_use"), &Value::Null));
        assert_eq!(server.ask("/v1/messages/count_tokens", &body)["input_tokens"], prompt);

        let events = lines(&server, path, &body, "data: ");
        let of =
            |kind: &str| -> Vec<&Value> { events.iter().filter(|event| event["type"] == kind).collect() };
        let starts = of("content_block_start");
        assert_eq!((starts.len(), &starts[0]["content_block"]["name"]), (1, &name));
        assert_eq!(starts[0]["content_block"]["input"], json!({}));
        let json: String =
            of("content_block_delta").iter().map(|e| e["delta"]["partial_json"].as_str().unwrap()).collect();
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), arguments);
        assert_eq!(
            (of("content_block_stop").len(), &of("message_delta")[0]["delta"]["stop_reason"]),
            (1, &json!("tool_use"))
        );

        let result = json!({ "type": "tool_result", "tool_use_id": block["id"], "content": [{ "type": "text", "text": "21 degrees" }] });
        body["messages"] = json!([user(QUESTION)[0], { "role": "assistant", "content": reply["content"] }, { "role": "user", "content": [result] }]);
        body["tool_choice"] = json!({ "type": "auto" });
        let more = server.ask("/v1/messages/count_tokens", &body)["input_tokens"].as_u64().unwrap();
        assert!(more > prompt.as_u64().unwrap() + 10, "the call and its result stand in the prompt: {more}");
        assert!(!server.ask(path, &body)["content"].as_array().unwrap().is_empty());
    }
    let body = json!({
        "messages": user("a"), "max_tokens": 100, "output_config": { "format": { "type": "json_schema", "schema": { "enum": ["x"] } } },
    });
    assert_eq!(server.ask(path, &body)["content"], json!([{ "type": "text", "text": "\"x\"" }]));
}

#[test]
fn by_responses() {
    let server = Running::new();
    let path = "/v1/responses";
    for seed in 0..3 {
        let (name, arguments, prompt) = wanted(&server, seed);
        let mut body = json!({
            "input": QUESTION, "max_output_tokens": 200, "seed": seed, "temperature": 0.9, "top_p": 1, "top_k": 0, "parallel_tool_calls": false,
            "tools": [{ "type": "function", "name": "weather", "description": "The weather", "parameters": parameters(), "strict": false }],
            "tool_choice": "required",
        });
        let reply = server.ask(path, &body);
        let item = &reply["output"][0];
        let parsed: Value = serde_json::from_str(item["arguments"].as_str().unwrap()).unwrap();
        assert_eq!((&item["type"], &item["name"], &parsed), (&json!("function_call"), &name, &arguments));
        assert_eq!((&reply["usage"]["input_tokens"], &reply["tools"][0]["name"]), (&prompt, &name));
        assert_eq!(
            (&reply["tool_choice"], &reply["parallel_tool_calls"]),
            (&json!("required"), &json!(false))
        );

        let events = lines(&server, path, &body, "data: ");
        let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let delta = "response.function_call_arguments.delta";
        let mut order = kinds.clone();
        order.dedup();
        assert_eq!(
            order,
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                delta,
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        let json: String =
            events.iter().filter(|e| e["type"] == delta).map(|e| e["delta"].as_str().unwrap()).collect();
        assert_eq!(json, item["arguments"].as_str().unwrap());
        assert_eq!(events.last().unwrap()["response"]["output"][0]["arguments"], item["arguments"]);

        // The call is given back, or is there by the name of the response.
        let output =
            json!({ "type": "function_call_output", "call_id": item["call_id"], "output": "21 degrees" });
        (body["tool_choice"], body["temperature"]) = (json!("auto"), json!(0));
        body["input"] = json!([user(QUESTION)[0], item, output]);
        let given = server.ask(path, &body);
        body["input"] = json!([output]);
        body["previous_response_id"] = reply["id"].clone();
        let kept = server.ask(path, &body);
        let shown = |reply: &Value| {
            let parts = reply["output"].as_array().unwrap().iter();
            let parts: Vec<Value> =
                parts.map(|item| json!([item["content"], item["name"], item["arguments"]])).collect();
            (parts, reply["usage"]["input_tokens"].clone())
        };
        assert_eq!(shown(&given), shown(&kept));
        assert!(given["usage"]["input_tokens"].as_u64().unwrap() > prompt.as_u64().unwrap() + 10);
    }
}

#[test]
fn by_ollamas_chat() {
    let server = Running::new();
    let path = "/api/chat";
    let tool = json!({ "type": "function", "function": { "name": "weather", "description": "The weather", "parameters": parameters() } });
    let mut body = json!({
        "messages": user(QUESTION), "tools": [tool], "options": { "num_predict": 200, "temperature": 0 }, "stream": false, "tool_choice": "required",
    });
    let reply = server.ask(path, &body);
    let calls = reply["message"]["tool_calls"].as_array().unwrap().clone();
    for (call, index) in calls.iter().zip(0..) {
        let function = &call["function"];
        assert_eq!((&function["index"], &function["name"]), (&json!(index), &json!("weather")));
        assert!(
            ["长安", "Lhasa"].contains(&function["arguments"]["city"].as_str().unwrap())
                || reply["done_reason"] == "length"
        );
    }
    let all = lines(&server, path, &body, "");
    let streamed: Vec<Value> = all
        .iter()
        .flat_map(|line| line["message"]["tool_calls"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(streamed, calls);
    assert_eq!(all.last().unwrap()["done"], true);

    let result = json!({ "role": "tool", "tool_name": "weather", "content": "21 degrees" });
    body["messages"] = json!([user(QUESTION)[0], reply["message"], result]);
    body["tool_choice"] = json!("auto");
    assert!(server.ask(path, &body)["prompt_eval_count"].as_u64() > reply["prompt_eval_count"].as_u64());
}
