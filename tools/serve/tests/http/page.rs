//! The web page's files, and what the experts do, over HTTP. `page/check.py` looks at the page in a browser.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use crate::common::{Running, agent, user};
use serde_json::{Value, json};
use yuan_serve::Options;

const CHAT: &str = "/v1/chat/completions";

fn locked() -> (Running, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "open sesame\n").unwrap();
    (Running::with(Options { api_key_file: Some(file), ..Options::default() }), folder)
}

#[test]
fn the_page_is_there_without_a_key_and_has_all_that_it_names() {
    let (server, _folder) = locked();
    let text = |path: &str| {
        let response = agent().get(server.url(path)).call().unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"));
        (
            response.headers()["content-type"].to_str().unwrap().to_owned(),
            response.into_body().read_to_vec().unwrap(),
        )
    };
    let (kind, html) = text("/");
    assert_eq!(kind, "text/html; charset=utf-8");
    let html = String::from_utf8(html).unwrap();
    let named: Vec<&str> = html.split(['"']).filter(|part| part.starts_with("page/")).collect();
    assert!(named.len() >= 5, "{named:?}");
    for name in named {
        let (kind, _) = text(&format!("/{name}"));
        assert!(
            ["text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml"].contains(&&*kind)
        );
    }
    let (_, css) = text("/page/vendor/katex.min.css");
    let css = String::from_utf8(css).unwrap();
    let fonts: Vec<&str> = css.split(['(', ')']).filter(|part| part.ends_with(".woff2")).collect();
    assert!(fonts.len() > 10);
    fonts.iter().for_each(|font| assert_eq!(text(&format!("/page/vendor/{font}")).0, "font/woff2"));
    for nothing in ["/page/nothing.js", "/page/../Cargo.toml", "/page/%2e%2e/Cargo.toml"] {
        assert_eq!(server.get(nothing).0, 404, "{nothing}");
    }
}

#[test]
fn what_a_browser_has_is_not_sent_again_and_the_rest_is_compressed() {
    let server = Running::new();
    let url = server.url("/page/app.js");
    let first = agent().get(&url).call().unwrap();
    let tag = first.headers()["etag"].clone();
    let again = agent().get(&url).header("If-None-Match", &tag).call().unwrap();
    assert_eq!((again.status().as_u16(), &again.headers()["etag"]), (304, &tag));
    assert!(again.into_body().read_to_vec().unwrap().is_empty());
    let compressed = agent().get(&url).header("Accept-Encoding", "gzip").call().unwrap();
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
    let font = server.url("/page/vendor/fonts/KaTeX_Main-Regular.woff2");
    let font = agent().get(font).header("Accept-Encoding", "gzip").call().unwrap();
    assert!(font.headers().get("content-encoding").is_none());
}

/// The figures of all experts, when nothing runs: tests share the model.
fn figures(server: &Running) -> Value {
    let once = || {
        let request = agent().get(server.url("/experts")).header("Accept", "application/json");
        crate::common::read(request.call().unwrap()).1
    };
    let mut last = once();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = once();
        if now == last {
            return now;
        }
        last = now;
    }
}

#[test]
fn experts_are_counted_as_tokens_choose_them() {
    let server = Running::alone();
    let sum = |row: &Value| row.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    for _ in 0..2 {
        let before = figures(&server);
        server.ask(CHAT, &json!({ "messages": user("Psalms 3:1"), "max_tokens": 8 }));
        let now = figures(&server);
        assert!(now["tokens"].as_u64() > before["tokens"].as_u64());
        let layers = now["layers"].as_u64().unwrap() as usize;
        let rows = now["chosen"].as_array().unwrap();
        assert_eq!((rows.len(), now["places"].as_array().unwrap().len()), (layers, layers));
        for (row, letters) in rows.iter().zip(now["places"].as_array().unwrap()) {
            assert_eq!(sum(row), 2 * now["tokens"].as_u64().unwrap());
            let letters = letters.as_str().unwrap();
            assert_eq!(letters.len() as u64, now["experts"].as_u64().unwrap());
            assert!(letters.chars().all(|letter| "mdg".contains(letter)));
        }
        let memory = now["memory"].as_object().unwrap();
        let used: u64 =
            memory.iter().filter(|(name, _)| *name != "budget").map(|(_, n)| n.as_u64().unwrap()).sum();
        assert!(used > 0 && used <= memory["budget"].as_u64().unwrap());
    }
}

#[test]
fn an_event_tells_each_change_and_the_stream_ends_with_the_server() {
    let server = Running::new();
    let response = agent().get(server.url("/experts")).call().unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut lines = BufReader::new(response.into_body().into_reader()).lines().map(Result::unwrap);
    let mut next = || -> Option<Value> {
        let line = lines.by_ref().find(|line| line.starts_with("data: "))?;
        Some(serde_json::from_str(&line[6..]).unwrap())
    };
    let first = next().unwrap();
    server.ask(CHAT, &json!({ "messages": user("Psalms 3:1"), "max_tokens": 8 }));
    // Other tests may use the model meanwhile, so further changes may come.
    let now = next().unwrap();
    assert!(now != first);
    // It would wait for what runs, and this does not count.
    server.end().unwrap();
    while next().is_some() {}
}

#[test]
fn what_experts_do_is_told_to_those_with_a_key() {
    let (server, _folder) = locked();
    assert_eq!(server.get("/experts").0, 401);
}
