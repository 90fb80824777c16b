//! The document of all addresses: what it says is so.

use crate::common::{Running, agent, read};
use serde_json::{Value, json};

/// Every `$ref` of a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn every_address_is_there_as_it_is_described() {
    let server = Running::new();
    let (status, document) = server.get("/openapi.json");
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let paths = document["paths"].as_object().unwrap();
    for known in ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/infill", "/slots"] {
        assert!(paths.contains_key(known), "{known}");
    }
    for (path, operations) in paths {
        let url = server.url(&path.replace("{name}", "demo").replace("{id}", "none"));
        for (method, operation) in operations.as_object().unwrap() {
            assert!(!operation["summary"].as_str().unwrap().is_empty());
            let (status, reply) = match method.as_str() {
                "post" => {
                    // No body: every one is an object.
                    let reply = read(agent().post(&url).content_type("application/json").send("3").unwrap());
                    assert_eq!(reply.0, 400, "{path}");
                    reply
                }
                "delete" => read(agent().delete(&url).call().unwrap()),
                _ => {
                    let response = agent().get(&url).call().unwrap();
                    let kind = response.headers()["content-type"]
                        .to_str()
                        .unwrap()
                        .split(';')
                        .next()
                        .unwrap()
                        .to_owned();
                    let known = &operation["responses"]["200"]["content"];
                    assert!(known.get(&kind).is_some(), "{path}: {kind}");
                    if kind == "application/json" { read(response) } else { (200, json!({})) }
                }
            };
            assert!([200, 400, 404].contains(&status), "{method} {path}: {status}");
            assert!(reply.is_object() || path == "/slots", "{method} {path}: {reply}");
            let is_missing = path.contains("{id}") && method != "post";
            assert_eq!(status == 404, is_missing, "{method} {path}: {reply}");
        }
    }
}

/// The schema of a body is that of the type which is read.
#[test]
fn fields_are_described() {
    let server = Running::new();
    let document = server.get("/openapi.json").1;
    let chat = &document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
        ["schema"];
    let chat = document.pointer(chat["$ref"].as_str().unwrap().strip_prefix('#').unwrap()).unwrap();
    for field in ["messages", "temperature", "stop", "seed", "stream", "logit_bias", "top_logprobs"] {
        assert!(chat["properties"].get(field).is_some(), "{field} in {chat}");
    }
    assert_eq!(chat["required"], json!(["messages"]));
}

/// Clients are generated from the document: each reply has a type, and no two types have one name, of which one would get a number.
#[test]
fn replies_have_types_of_their_own() {
    let server = Running::new();
    let document = server.get("/openapi.json").1;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for (status, reply) in operation["responses"].as_object().unwrap() {
                let Some(json) = reply["content"].get("application/json") else { continue };
                let mut found = Vec::new();
                references(json, &mut found);
                assert_eq!(found.len(), 1, "{method} {path} {status}: {json}");
            }
        }
    }
    let names = document["components"]["schemas"].as_object().unwrap().keys();
    let numbered: Vec<_> = names.filter(|name| name.ends_with(|c: char| c.is_ascii_digit())).collect();
    assert!(numbered.is_empty(), "{numbered:?}");
    let chat = &document["components"]["schemas"]["ChatCompletion"];
    assert_eq!(chat["properties"]["choices"]["items"]["$ref"], "#/components/schemas/ChatCompletionChoice");
}
