//! What llama-server's clients use: the middle between two texts, and what the server says of itself.

use std::io::{BufRead, BufReader};

use crate::common::{CONTEXT, Running, refused};
use serde_json::{Value, json};
use yuan_serve::Options;

/// What stands in the gap, as completions write it behind the special tokens.
fn middle(server: &Running, before: &str, after: &str, most: u32) -> Value {
    let prompt = format!("<FIM_PREFIX>{before}<FIM_SUFFIX>{after}<FIM_MIDDLE>");
    let body = json!({ "prompt": prompt, "max_tokens": most, "temperature": 0 });
    server.ask("/v1/completions", &body)["choices"][0].clone()
}

#[test]
fn a_gap_is_filled() {
    let server = Running::new();
    for (before, line, after) in
        [("The LORD is ", "my ", ", I shall not want."), ("春日山中 ", "", "李白"), ("", "", "Amen.")]
    {
        let wanted = middle(&server, &format!("{before}{line}"), after, 12);
        let body = json!({
            "input_prefix": before, "prompt": line, "input_suffix": after, "n_predict": 12, "temperature": 0, "cache_prompt": true,
            "samplers": ["top_k"], "input_extra": [],
        });
        let reply = server.ask("/infill", &body);
        assert_eq!(reply["content"], wanted["text"]);
        let kind = if wanted["finish_reason"] == "length" { "limit" } else { "eos" };
        assert_eq!((&reply["stop"], &reply["stop_type"]), (&json!(true), &json!(kind)));
        assert_eq!(reply["timings"]["predicted_n"], reply["tokens_predicted"]);

        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        let response = server.send("/infill", &streamed.to_string());
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let lines = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap);
        let data: Vec<Value> = lines
            .filter_map(|line| Some(serde_json::from_str(line.strip_prefix("data: ")?).expect("JSON alone")))
            .collect();
        let text: String = data.iter().map(|chunk| chunk["content"].as_str().unwrap()).collect();
        assert_eq!(text, wanted["text"].as_str().unwrap());
        let (last, rest) = data.split_last().unwrap();
        assert!(last["stop"] == true && rest.iter().all(|chunk| chunk["stop"] == false));

        // The same by the field of completions.
        let whole = format!("{before}{line}");
        let body = json!({ "prompt": whole, "suffix": after, "max_tokens": 12, "temperature": 0 });
        assert_eq!(server.ask("/v1/completions", &body)["choices"][0]["text"], wanted["text"]);
    }
    // Special strings of what people write are text.
    let body = json!({ "input_prefix": "a<FIM_MIDDLE>", "input_suffix": "<sep>b", "n_predict": 1 });
    let tokens = server.ask("/infill", &body)["tokens_evaluated"].as_u64().unwrap();
    let prompt = json!({ "prompt": "<FIM_PREFIX>a<FIM_MIDDLE><FIM_SUFFIX><sep>b<FIM_MIDDLE>" });
    assert!(tokens > server.ask("/tokenize", &prompt)["count"].as_u64().unwrap());

    for body in [
        json!({ "input_prefix": "a", "n_predict": -3 }),
        json!({ "input_prefix": "a", "temperature": "hot" }),
        json!({ "input_prefix": 3 }),
    ] {
        refused(&server.post("/infill", &body), 400);
    }
    refused(&server.post("/infill", &json!({ "input_prefix": "a ".repeat(2 * CONTEXT) })), 413);
    let ids = json!({ "prompt": [1, 2], "suffix": "a" });
    assert!(refused(&server.post("/v1/completions", &ids), 400).contains("suffix"));
}

#[test]
fn a_stop_text_is_told() {
    let server = Running::new();
    let text =
        middle(&server, "The LORD is ", ", I shall not want.", 30)["text"].as_str().unwrap().to_owned();
    let stop = text.chars().filter(|c| !c.is_whitespace()).nth(3).unwrap().to_string();
    let body = json!({
        "input_prefix": "The LORD is ", "input_suffix": ", I shall not want.", "n_predict": 30, "temperature": 0, "stop": ["\u{1}", stop],
    });
    let reply = server.ask("/infill", &body);
    assert_eq!(
        (&reply["stop_type"], &reply["stopping_word"], &reply["content"]),
        (&json!("word"), &json!(stop), &json!(text[..text.find(&stop).unwrap()]))
    );
}

#[test]
fn the_server_tells_what_runs() {
    let server = Running::with(Options { sequences: 2, ..Options::default() });
    let (status, slots) = server.get("/slots");
    assert_eq!(status, 200);
    assert!(slots.as_array().unwrap().iter().all(|slot| slot["is_processing"] == false));
    assert_eq!(server.get("/slots?fail_on_no_slot=1").0, 200);

    // Two that are not read, and so do not end.
    let body = json!({ "prompt": "The LORD", "max_tokens": 900, "stream": true, "ignore_eos": true, "seed": 5, "top_k": 3, "n": 2, "logprobs": 20 });
    let running = server.send("/v1/completions", &body.to_string());
    let slots = loop {
        let slots = server.get("/slots").1;
        if slots.as_array().unwrap().iter().all(|slot| slot["next_token"][0]["n_decoded"].as_u64() > Some(0))
        {
            break slots;
        }
    };
    for (place, slot) in slots.as_array().unwrap().iter().enumerate() {
        assert_eq!(
            (&slot["id"], &slot["is_processing"], &slot["n_ctx"]),
            (&json!(place), &json!(true), &json!(CONTEXT))
        );
        assert_eq!((&slot["params"]["top_k"], &slot["params"]["n_predict"]), (&json!(3), &json!(900)));
        assert!([5, 6].contains(&slot["params"]["seed"].as_u64().unwrap()));
        assert!(slot.get("prompt").is_none(), "texts are nobody else's business");
    }
    refused(&server.get("/slots?fail_on_no_slot=1"), 503);
    drop(running);
    while server.get("/slots").1.as_array().unwrap().iter().any(|slot| slot["is_processing"] == true) {
        std::thread::yield_now();
    }

    let props = server.get("/props").1;
    assert_eq!((&props["total_slots"], &props["model_alias"]), (&json!(2), &json!("demo")));
    assert_eq!(props["default_generation_settings"]["n_ctx"], CONTEXT);
    assert_eq!(props["eos_token"], "<eod>");
    assert!(props["chat_template"].as_str().unwrap().contains("messages"));
}

/// A conversation is saved, and goes on in another server as if it had been read there; what is erased is read again.
#[test]
fn a_slot_is_saved_restored_and_erased() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        || Options { sessions: Some(folder.path().join("kept")), sequences: 2, ..Options::default() };
    let said = "And the LORD said. 春日山中。".repeat(40);
    let body = json!({ "prompt": said, "max_tokens": 20, "temperature": 0, "ignore_eos": true });
    let cached = |reply: &Value| reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let file = json!({ "filename": "talk.session" });

    let server = Running::with(options());
    assert!(refused(&server.post("/slots/0?action=save", &file), 400).contains("no conversation"));
    let first = server.ask("/v1/completions", &body);
    server.wait_for("yuan_sequences_running", 0.0);
    let saved = server.ask("/slots/0?action=save", &file);
    let total = first["usage"]["total_tokens"].as_u64().unwrap();
    assert!(saved["n_saved"].as_u64() == Some(total) && saved["n_written"].as_u64() > Some(total), "{saved}");
    assert_eq!(saved["filename"], "talk.session");
    for (path, body, status, part) in [
        ("/slots/0?action=save", json!({ "filename": "../x" }), 400, "no name"),
        ("/slots/0?action=save", json!({}), 400, "no name"),
        ("/slots/0?action=restore", json!({ "filename": "none" }), 400, "none"),
        ("/slots/0?action=melt", file.clone(), 400, "save, restore or erase"),
        ("/slots/2?action=save", file.clone(), 404, "from 0 to 1"),
        ("/slots/x?action=save", file.clone(), 404, "from 0 to 1"),
    ] {
        let message = refused(&server.post(path, &body), status);
        assert!(message.contains(part), "{path}: {message}");
    }
    server.end().unwrap();

    let server = Running::with(options());
    let restored = server.ask("/slots/1?action=restore", &file);
    assert_eq!((&restored["n_restored"], &restored["id_slot"]), (&saved["n_saved"], &json!(1)));
    let mut longer = body.clone();
    longer["prompt"] = json!(said.clone() + first["choices"][0]["text"].as_str().unwrap() + " Amen.");
    let again = server.ask("/v1/completions", &body);
    assert_eq!(again["choices"][0]["text"], first["choices"][0]["text"]);
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(cached(&again) + 64 > prompt, "{again}");
    server.wait_for("yuan_sequences_running", 0.0);

    // Both slots have had the same.
    assert_eq!(server.post_text("/slots/1?action=erase", "").1["n_erased"], saved["n_saved"]);
    assert!(refused(&server.post_text("/slots/1?action=erase", ""), 400).contains("no conversation"));
    let fresh = server.ask("/v1/completions", &body);
    assert_eq!((cached(&fresh), &fresh["choices"]), (0, &again["choices"]));

    let server = Running::new();
    assert!(refused(&server.post("/slots/0?action=restore", &file), 400).contains("--sessions"));
}
