//! Ollama's interface: the answers are those of OpenAI's, a JSON a line, and streamed unless the client says otherwise.

use std::io::{BufRead, BufReader};

use crate::common::{CONTEXT, Running, engine, user};
use serde_json::{Value, json};
use yuan_serve::Options;

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";
const QUESTIONS: [&str; 2] = ["Psalms 151:1-4", "春日山中 李白"];

/// The lines of a reply that streams.
fn lines(server: &Running, path: &str, body: &Value) -> Vec<Value> {
    let response = server.send(path, &body.to_string());
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let lines = BufReader::new(response.into_body().into_reader()).lines();
    lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

/// Status and message of a refusal in ollama's form.
fn refused(reply: (u16, Value)) -> (u16, String) {
    assert_eq!(reply.1.as_object().unwrap().len(), 1, "{}", reply.1);
    (reply.0, reply.1["error"].as_str().unwrap().to_owned())
}

/// OpenAI's answer with the same settings.
fn answer(server: &Running, messages: &Value, temperature: f64, stop: &[&str]) -> String {
    let body = json!({
        "messages": messages, "max_tokens": 40, "seed": 7, "temperature": temperature, "top_k": 30, "top_p": 0.8, "min_p": 0.02,
        "repeat_penalty": 1.2, "repeat_last_n": 10, "stop": stop,
    });
    server.ask("/v1/chat/completions", &body)["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

fn options(temperature: f64, stop: &[&str]) -> Value {
    json!({
        "num_predict": 40, "seed": 7, "temperature": temperature, "top_k": 30, "top_p": 0.8, "min_p": 0.02, "repeat_penalty": 1.2,
        "repeat_last_n": 10, "stop": stop, "num_ctx": 4096, "num_gpu": null, "penalize_newline": true,
    })
}

#[test]
fn answers_are_those_of_the_other_protocol() {
    let server = Running::new();
    for (question, temperature, stop) in
        [(QUESTIONS[0], 0.0, &[][..]), (QUESTIONS[1], 0.9, &["，"]), (QUESTIONS[0], 0.9, &["the"])]
    {
        let system = json!({ "role": "system", "content": "Be brief." });
        let messages = json!([system, user(question)[0]]);
        let wanted = answer(&server, &messages, temperature, stop);
        let body = json!({
            "model": "yuan:latest", "messages": messages, "options": options(temperature, stop), "keep_alive": "5m",
        });
        let all = lines(&server, CHAT, &body);
        let text: String = all.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
        assert_eq!(text, wanted, "{question} at {temperature}");
        let (last, rest) = all.split_last().unwrap();
        for line in rest {
            assert_eq!(
                (&line["done"], &line["message"]["role"], &line["model"]),
                (&json!(false), &json!("assistant"), &json!("yuan:latest"))
            );
            assert!(line["created_at"].as_str().unwrap().ends_with('Z') && line.get("done_reason").is_none());
        }
        assert_eq!(last["done"], true);
        assert!(["stop", "length"].contains(&last["done_reason"].as_str().unwrap()));
        let number = |name: &str| last[name].as_u64().unwrap();
        assert!(number("prompt_eval_count") > 0 && number("eval_count") > 0 && number("eval_duration") > 0);
        let parts = ["load_duration", "prompt_eval_duration", "eval_duration"].map(number);
        assert!(parts.iter().sum::<u64>() <= number("total_duration"));

        let mut whole = body.clone();
        whole["stream"] = json!(false);
        let reply = server.ask(CHAT, &whole);
        assert_eq!((&reply["message"]["content"], &reply["done"]), (&json!(wanted), &json!(true)));
        assert_eq!(reply["eval_count"], last["eval_count"]);

        // The same question as a prompt.
        let body =
            json!({ "prompt": question, "system": "Be brief.", "options": options(temperature, stop) });
        let all = lines(&server, GENERATE, &body);
        let text: String = all.iter().map(|line| line["response"].as_str().unwrap()).collect();
        assert_eq!(text, wanted);
    }
}

#[test]
fn a_raw_prompt_is_the_whole_prompt() {
    let server = Running::new();
    let completion = json!({ "prompt": "In the beginning<sep>", "max_tokens": 20, "temperature": 0 });
    let wanted = &server.ask("/v1/completions", &completion)["choices"][0]["text"];
    let body = json!({
        "model": "m", "prompt": "In the beginning<sep>", "raw": true, "stream": false, "template": "{{ .Prompt }}",
        "options": {"num_predict": 20, "temperature": 0, "repeat_penalty": 1}, "logprobs": true, "top_logprobs": 2,
    });
    let reply = server.ask(GENERATE, &body);
    assert_eq!(&reply["response"], wanted);
    let entries = reply["logprobs"].as_array().unwrap();
    assert!(!entries.is_empty() && entries.iter().all(|e| e["top_logprobs"].as_array().unwrap().len() == 2));
    assert!(entries.iter().all(|e| e["logprob"] == e["top_logprobs"][0]["logprob"]), "the best is chosen");
}

#[test]
fn a_gap_is_filled() {
    let server = Running::new();
    let body = json!({
        "prompt": "The LORD is my ", "suffix": ", I shall not want.", "stream": false, "options": {"num_predict": 8, "temperature": 0, "repeat_penalty": 1},
    });
    let tokenizer = engine();
    let vocab = tokenizer.tokenizer().vocab();
    let there = vocab.special.iter().any(|(text, _)| text == "<FIM_MIDDLE>");
    let able = &server.post("/api/show", &json!({})).1["capabilities"];
    assert_eq!(able.as_array().unwrap().contains(&json!("insert")), there);
    assert!(there, "the demo model has the tokens");
    let prompt = "<FIM_PREFIX>The LORD is my <FIM_SUFFIX>, I shall not want.<FIM_MIDDLE>";
    let wanted =
        server.ask("/v1/completions", &json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0 }));
    assert_eq!(server.ask(GENERATE, &body)["response"], wanted["choices"][0]["text"]);
}

#[test]
fn without_a_prompt_the_model_is_there_already() {
    let server = Running::new();
    for (path, body) in [
        (GENERATE, json!({ "model": "m" })),
        (CHAT, json!({ "model": "m", "messages": [] })),
        (GENERATE, json!({ "model": "m", "keep_alive": 0 })),
    ] {
        let reply = server.ask(path, &body);
        assert_eq!((&reply["done"], &reply["done_reason"]), (&json!(true), &json!("load")), "{reply}");
    }
}

#[test]
fn the_model_is_described() {
    let server = Running::new();
    let tags = &server.get("/api/tags").1["models"][0];
    assert_eq!((&tags["name"], &tags["model"]), (&json!("demo"), &json!("demo")));
    assert_eq!(tags["digest"].as_str().unwrap().len(), 64);
    assert!(tags["size"].as_u64().unwrap() > 1000);
    let details = &tags["details"];
    assert_eq!((&details["family"], &details["format"]), (&json!("yuan2_moe"), &json!("gguf")));
    let running = &server.get("/api/ps").1["models"][0];
    assert_eq!((&running["digest"], &running["context_length"]), (&tags["digest"], &json!(CONTEXT)));
    let shown = server.ask("/api/show", &json!({ "model": "demo", "verbose": true }));
    assert_eq!(shown["model_info"]["general.architecture"], "yuan2_moe");
    assert_eq!(shown["model_info"]["yuan2_moe.context_length"], CONTEXT);
    assert_eq!(&shown["details"], details);
    let version = server.get("/api/version").1;
    assert_eq!(version["version"].as_str().unwrap().split('.').count(), 3);
    assert_eq!(crate::common::agent().head(server.url("/")).call().unwrap().status(), 200);
}

#[test]
fn texts_are_embedded() {
    let server = Running::new();
    let texts = ["The LORD is my shepherd", "床前明月光"];
    let wanted = &server.ask("/v1/embeddings", &json!({ "input": texts }));
    let reply = server.ask("/api/embed", &json!({ "model": "demo", "input": texts }));
    for (place, vector) in reply["embeddings"].as_array().unwrap().iter().enumerate() {
        assert_eq!(vector, &wanted["data"][place]["embedding"]);
    }
    assert_eq!(reply["prompt_eval_count"], wanted["usage"]["prompt_tokens"]);
    let one = server.ask("/api/embed", &json!({ "input": texts[0] }));
    assert_eq!(one["embeddings"], json!([reply["embeddings"][0]]));
    let old = server.ask("/api/embeddings", &json!({ "model": "demo", "prompt": texts[1] }));
    assert_eq!(old["embedding"], reply["embeddings"][1]);
    assert_eq!(server.ask("/api/embed", &json!({ "input": [] }))["embeddings"], json!([]));

    let long = "Lord ".repeat(2 * CONTEXT);
    assert_eq!(server.ask("/api/embed", &json!({ "input": long }))["prompt_eval_count"], CONTEXT);
    let (status, message) = refused(server.post("/api/embed", &json!({ "input": long, "truncate": false })));
    assert!(status == 413 && message.contains("context"), "{message}");
}

#[test]
fn what_cannot_be_is_refused_in_its_form() {
    let server = Running::new();
    let picture = json!([{ "role": "user", "content": "What is it?", "images": ["aGVsbG8="] }]);
    for (path, body, word) in [
        (CHAT, json!({ "messages": user("a"), "format": "xml" }), "json"),
        (CHAT, json!({ "messages": user("a"), "format": {"type": "strange"} }), "strange"),
        (CHAT, json!({ "messages": user("a"), "tools": [{"type": "function"}] }), "tool"),
        (CHAT, json!({ "messages": user("a"), "think": true }), "think"),
        (CHAT, json!({ "messages": user("a"), "options": {"temperature": -1} }), "temperature"),
        (CHAT, json!({ "messages": user("a"), "options": {"num_predict": -3} }), "num_predict"),
        (CHAT, json!({ "messages": user("a"), "options": {"stop": 3} }), "options"),
        (CHAT, json!({ "messages": picture }), "images"),
        (GENERATE, json!({ "prompt": "a", "images": ["aGVsbG8="] }), "images"),
        (GENERATE, json!({ "prompt": "a", "template": "{{ .Prompt }}" }), "template"),
        (GENERATE, json!({ "prompt": "a", "context": [1, 2] }), "context"),
        (GENERATE, json!({ "prompt": "a", "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (GENERATE, json!([]), "body"),
    ] {
        let (status, message) = refused(server.post(path, &body));
        assert_eq!(status, 400, "{message}");
        assert!(message.contains(word), "{message}");
    }
    let long = json!({ "prompt": "a ".repeat(2 * CONTEXT), "raw": true });
    assert_eq!(refused(server.post(GENERATE, &long)).0, 413);
    assert_eq!(refused(server.get("/api/nothing")).0, 404);
    assert_eq!(refused(server.get(CHAT)).0, 405);
    // Nothing is asked for here.
    let body = json!({
        "messages": user("a"), "format": "", "tools": [], "think": false, "stream": false, "options": {"num_predict": 1},
    });
    assert_eq!(server.ask(CHAT, &body)["done"], true);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret\n").unwrap();
    let locked = Running::with(Options { api_key_file: Some(file.path().into()), ..Options::default() });
    assert_eq!(refused(locked.get("/api/tags")).0, 401);
}
