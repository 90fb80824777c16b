//! OpenAI's responses: the answers are those of chat, as items and as numbered events, and they can be gone on from.

use std::io::{BufRead, BufReader};

use crate::common::{CONTEXT, Running, agent, read, refused, user};
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";
const QUESTION: &str = "Psalms 151:1-4";

/// The answer of chat.
fn answer(server: &Running, messages: &Value) -> String {
    let body = json!({ "messages": messages, "max_tokens": 30, "temperature": 0.9, "seed": 5 });
    server.ask("/v1/chat/completions", &body)["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn body(input: impl Into<Value>) -> Value {
    json!({ "model": "demo", "input": input.into(), "max_output_tokens": 30, "temperature": 0.9, "seed": 5 })
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap()
}

/// The data of events, which have the names of their types.
fn events(server: &Running, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = server.send(RESPONSES, &body.to_string());
    assert_eq!(response.status(), 200);
    let lines: Vec<_> =
        BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap).collect();
    let events =
        lines.split(String::is_empty).filter(|event| !event.is_empty() && !event[0].starts_with(':'));
    let event = |event: &[String]| {
        let [name, data] = event else { panic!("{event:?}") };
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"].as_str().unwrap());
        data
    };
    events.map(event).collect()
}

fn delete(server: &Running, id: &str) -> (u16, Value) {
    read(agent().delete(server.url(&format!("{RESPONSES}/{id}"))).call().unwrap())
}

#[test]
fn answers_are_those_of_chat() {
    let server = Running::new();
    for question in [QUESTION, "春日山中 李白"] {
        let said = json!([{ "role": "system", "content": "Be brief." }, user(question)[0]]);
        let wanted = answer(&server, &said);
        let mut body = body(question);
        body["instructions"] = json!("Be brief.");
        body["metadata"] = json!({ "a": "b" });
        let reply = server.ask(RESPONSES, &body);
        assert_eq!(text(&reply), wanted);
        assert_eq!((&reply["object"], &reply["metadata"]["a"]), (&json!("response"), &json!("b")));
        let usage = &reply["usage"];
        let sum = usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
        assert_eq!(usage["total_tokens"], sum);
        let full = usage["output_tokens"] == 30;
        let status = if full { "incomplete" } else { "completed" };
        assert_eq!((&reply["status"], reply["incomplete_details"].is_object()), (&json!(status), full));

        // The same as items.
        body["input"] = json!([{ "type": "message", "role": "user", "content": [{"type": "input_text", "text": question}] }]);
        assert_eq!(text(&server.ask(RESPONSES, &body)), wanted);

        let events = events(&server, &body);
        let types: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
        let before = [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ];
        assert_eq!(types[..4], before);
        let last = format!("response.{status}");
        let behind =
            ["response.output_text.done", "response.content_part.done", "response.output_item.done", &last];
        assert_eq!(types[types.len() - 4..], behind);
        let deltas = &events[4..events.len() - 4];
        assert!(deltas.iter().all(|e| e["type"] == "response.output_text.delta"));
        let streamed: String = deltas.iter().map(|e| e["delta"].as_str().unwrap()).collect();
        assert_eq!(streamed, wanted);
        assert!(events.iter().zip(0..).all(|(e, number)| e["sequence_number"] == number));
        let whole = &events.last().unwrap()["response"];
        assert_eq!((text(whole), &whole["id"]), (&*wanted, &events[0]["response"]["id"]));
        assert_eq!(events[events.len() - 2]["item"], whole["output"][0]);
    }
}

#[test]
fn a_response_can_be_gone_on_from() {
    let server = Running::new();
    let first = server.ask(RESPONSES, &body(QUESTION));
    let said =
        json!([user(QUESTION)[0], { "role": "assistant", "content": text(&first) }, user("Go on.")[0]]);
    let mut second = body("Go on.");
    second["previous_response_id"] = first["id"].clone();
    let reply = server.ask(RESPONSES, &second);
    assert_eq!(text(&reply), answer(&server, &said));
    assert_eq!(reply["previous_response_id"], first["id"]);

    // Behind the second, streamed.
    let mut third = body("And then?");
    third["previous_response_id"] = reply["id"].clone();
    let streamed = events(&server, &third).pop().unwrap()["response"].clone();
    let more = [json!({ "role": "assistant", "content": text(&reply) }), user("And then?")[0].clone()];
    let said: Vec<_> = said.as_array().unwrap().iter().cloned().chain(more).collect();
    assert_eq!(text(&streamed), answer(&server, &json!(said)));

    let id = streamed["id"].as_str().unwrap();
    let path = format!("{RESPONSES}/{id}");
    assert_eq!(server.get(&path), (200, streamed.clone()));
    let gone = delete(&server, id);
    assert_eq!((gone.0, &gone.1["deleted"]), (200, &json!(true)));
    refused(&server.get(&path), 404);
    refused(&delete(&server, id), 404);
    third["previous_response_id"] = json!(id);
    let reply = server.post(RESPONSES, &third);
    assert!(refused(&reply, 400).contains(id));
    assert_eq!(reply.1["error"]["code"], "previous_response_not_found");

    let mut unstored = body(QUESTION);
    unstored["store"] = json!(false);
    let id = server.ask(RESPONSES, &unstored)["id"].as_str().unwrap().to_owned();
    refused(&server.get(&format!("{RESPONSES}/{id}")), 404);
}

#[test]
fn tokens_are_told_with_their_probabilities() {
    let server = Running::new();
    let mut body = body(QUESTION);
    (body["top_logprobs"], body["temperature"]) = (json!(2), json!(0));
    body["include"] = json!(["message.output_text.logprobs"]);
    let reply = server.ask(RESPONSES, &body);
    let scores = &reply["output"][0]["content"][0]["logprobs"];
    let listed = scores.as_array().unwrap();
    assert!(!listed.is_empty() && listed.iter().all(|e| e["logprob"] == e["top_logprobs"][0]["logprob"]));
    let events = events(&server, &body);
    let streamed: Vec<_> = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta")
        .flat_map(|e| e["logprobs"].as_array().unwrap().clone())
        .collect();
    assert_eq!(&Value::from(streamed), scores);
}

#[test]
fn what_cannot_be_is_refused() {
    let server = Running::new();
    for (field, value, word) in [
        ("input", json!([]), "input"),
        ("input", json!([{ "type": "item_reference", "id": "a" }]), "item_reference"),
        ("input", json!([{ "role": "user", "content": [{"type": "input_image"}] }]), "input_image"),
        ("tools", json!([{ "type": "web_search" }]), "web_search"),
        ("text", json!({ "format": {"type": "xml"} }), "text.format"),
        ("text", json!({ "format": {"type": "json_schema", "name": "n"} }), "schema"),
        ("background", json!(true), "background"),
        ("conversation", json!("conv_1"), "conversation"),
        ("top_logprobs", json!(21), "top_logprobs"),
        ("max_output_tokens", json!(-1), "max_output_tokens"),
        ("temperature", json!(-1), "temperature"),
    ] {
        let mut body = body("a");
        body[field] = value;
        let message = refused(&server.post(RESPONSES, &body), 400);
        assert!(message.contains(word), "{message}");
    }
    let long = "a ".repeat(2 * CONTEXT);
    assert!(refused(&server.post(RESPONSES, &body(long.as_str())), 413).contains("context"));
}
