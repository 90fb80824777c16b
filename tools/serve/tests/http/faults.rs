//! Clients that go away, do not read, come in crowds or send nonsense: the server answers what it can, and lives.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::mpsc::channel,
    thread,
};

use crate::common::{CONTEXT, Running, agent, engine, read, refused, served, user};
use serde_json::{Value, json};
use yuan_serve::Options;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// So many prompts, that it takes long.
fn endless(prompts: usize) -> Value {
    json!({ "prompt": vec!["Ruth 1:1<sep>"; prompts], "ignore_eos": true, "stream": true })
}

#[test]
fn health_tells_when_the_model_is_there() {
    let (go, wait) = channel();
    let server = Running::loading(Options::default(), move || {
        wait.recv()?;
        Ok(served())
    });
    assert!(refused(&server.get("/health"), 503).contains("loaded"));
    let early = server.send(CHAT, &json!({ "messages": user("a") }).to_string());
    assert_eq!(early.headers()["retry-after"], "1");
    refused(&read(early), 503);
    refused(&server.get("/v1/models"), 503);
    go.send(()).unwrap();
    while server.get("/health").0 == 503 {}
    assert_eq!(server.get("/health"), (200, json!({ "status": "ok" })));
    server.ask(CHAT, &json!({ "messages": user("a"), "max_tokens": 1 }));
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server() {
    let server = Running::loading(Options::default(), || anyhow::bail!("there is no such model"));
    assert!(server.end().unwrap_err().to_string().contains("no such model"));
}

#[test]
fn whoever_goes_away_frees_what_it_had() {
    let server = Running::with(Options { sequences: 2, ..Options::default() });
    // While it reads its answer, and while it waits for a whole one, and for its turn.
    for stream in [true, false] {
        let mut body = endless(64);
        body["stream"] = json!(stream);
        let body = body.to_string();
        let mut sockets: Vec<_> = (0..3)
            .map(|_| {
                let mut socket = TcpStream::connect(server.address).unwrap();
                write!(
                    socket,
                    "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .unwrap();
                socket
            })
            .collect();
        server.wait_for("yuan_requests", 3.0);
        server.wait_for("yuan_sequences_running", 2.0);
        if stream {
            BufReader::new(&mut sockets[0]).read_line(&mut String::new()).unwrap();
        }
        drop(sockets);
        server.wait_for("yuan_requests", 0.0);
        server.wait_for("yuan_sequences_running", 0.0);
    }
    server.ask(CHAT, &json!({ "messages": user("a"), "max_tokens": 1 }));
}

#[test]
fn whoever_does_not_read_is_cut_off() {
    let server = Running::with(Options { timeout: 1, ..Options::default() });
    let mut socket = TcpStream::connect(server.address).unwrap();
    // Several scores beside each token: more than all buffers on the way hold.
    let body = json!({
        "prompt": vec!["Ruth 1:1<sep>"; 40], "n": 4, "max_tokens": 500, "ignore_eos": true, "stream": true, "logprobs": 100,
    });
    let body = body.to_string();
    write!(
        socket,
        "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    server.wait_for("yuan_requests", 1.0);
    server.wait_for("yuan_requests", 0.0);
    // What it reads late is the beginning, and an end without [DONE].
    let mut text = Vec::new();
    socket.read_to_end(&mut text).unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("data: {") && text.contains("cut_off") && !text.contains("[DONE]"));
    server.ask(CHAT, &json!({ "messages": user("a"), "max_tokens": 1 }));
}

#[test]
fn a_full_queue_refuses_and_makes_room_again() {
    let server = Running::with(Options { sequences: 1, queue: 1, ..Options::default() });
    let body = endless(64).to_string();
    let (first, second) = (server.send(COMPLETIONS, &body), server.send(COMPLETIONS, &body));
    let third = server.send(COMPLETIONS, &body);
    assert_eq!(third.headers()["retry-after"], "1");
    assert!(refused(&read(third), 429).contains("waiting"));
    assert_eq!(server.counter("yuan_requests_refused_total"), 1.0);
    drop((first, second));
    server.wait_for("yuan_requests", 0.0);
    server.ask(CHAT, &json!({ "messages": user("a"), "max_tokens": 1 }));
}

#[test]
fn those_who_wait_are_served() {
    let server = Running::with(Options { sequences: 1, queue: 20, ..Options::default() });
    thread::scope(|scope| {
        for i in 0..12 {
            let server = &server;
            scope.spawn(move || {
                server.ask(CHAT, &json!({ "messages": user("Ruth 1:1"), "max_tokens": 5, "seed": i }))
            });
        }
    });
    assert!(engine().counts().panics == 0);
    server.wait_for("yuan_requests", 0.0);
}

#[test]
fn nonsense_is_the_clients_fault() {
    let server = Running::with(Options { body: 1, ..Options::default() });
    const FAULTS: &str = "yuan_replies_total{class=\"5xx\"}";
    let before = server.counter(FAULTS);
    let deep = "[".repeat(100_000);
    for path in [CHAT, COMPLETIONS, "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template"] {
        for body in [
            "",
            "{",
            "[]",
            "null",
            "7",
            "\"\"",
            "{}",
            "{\"a\":}",
            "\u{0}",
            &deep,
            "{\"prompt\": NaN}",
            "\u{FEFF}{}",
        ] {
            let reply = server.post_text(path, body);
            refused(&reply, 400);
        }
        let large = format!("{{\"prompt\": \"{}\"}}", "a".repeat(1_100_000));
        assert!(refused(&server.post_text(path, &large), 413).contains("--body"));
        let bytes = read(agent().post(server.url(path)).send(&b"{\"prompt\": \"\xff\"}"[..]).unwrap());
        refused(&bytes, 400);
    }
    for messages in
        [json!([]), json!([{}]), json!("a"), json!([{"role": 3}]), json!([{"role": "user", "content": {}}])]
    {
        refused(&server.post(CHAT, &json!({ "messages": messages })), 400);
    }
    let long = "word ".repeat(3 * CONTEXT);
    let (status, reply) = server.post(CHAT, &json!({ "messages": user(&long), "stream": true }));
    assert_eq!((status, &reply["error"]["code"]), (413, &json!("context_length_exceeded")));
    refused(&server.get("/v1/nothing"), 404);
    refused(&server.get("/v1/models/other"), 404);
    refused(&server.get(CHAT), 405);
    assert_eq!(server.counter(FAULTS), before);
}

#[test]
fn keys_open_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "first-key\n\n second-key \n").unwrap();
    let server = Running::with(Options { api_key_file: Some(file), ..Options::default() });
    let get =
        |key: &str| read(agent().get(server.url("/v1/models")).header("Authorization", key).call().unwrap());
    assert_eq!(get("Bearer first-key").0, 200);
    assert_eq!(get("bearer second-key").0, 200);
    for wrong in
        ["Bearer third-key", "Bearer ", "Bearer", "first-key", "Basic first-key", "Bearer first-keys", ""]
    {
        assert!(refused(&get(wrong), 401).contains("Bearer"), "{wrong}");
    }
    refused(&server.get("/metrics"), 401);
    refused(&server.get("/nothing"), 401);
    assert_eq!(server.get("/health").0, 200, "whoever watches has no key");
}

/// A page cannot have the model work for it, nor read anything under a name that it has given to this machine.
#[test]
fn other_pages_and_other_names_are_refused() {
    let ask = |server: &Running, path: &str, headers: &[(&str, &str)]| {
        let url = server.url(path);
        let request = agent().post(url).header("content-type", "text/plain");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        read(request.send(r#"{"prompt": "Ruth 1:1", "max_tokens": 1}"#).unwrap())
    };
    let server = Running::new();
    let own = format!("http://{}", server.address);
    for headers in [
        &[][..],
        &[("origin", own.as_str())],
        &[("origin", "https://a.example"), ("sec-fetch-site", "same-origin")],
    ] {
        assert_eq!(ask(&server, "/v1/completions", headers).0, 200, "{headers:?}");
    }
    let page = ask(&server, "/v1/completions", &[("origin", "https://evil.example")]);
    let said = refused(&page, 403);
    assert!(said.contains("--cors https://evil.example"), "{said}");
    assert_eq!(page.1["error"]["code"], "foreign_page");
    let (status, said) = ask(&server, "/v1/messages", &[("origin", "null")]);
    assert_eq!((status, &said["error"]["type"]), (403, &json!("permission_error")));
    // What it reads is not shown to it by the browser.
    let reads =
        agent().get(server.url("/v1/models")).header("origin", "https://evil.example").call().unwrap();
    assert!(reads.status() == 200 && reads.headers().get("access-control-allow-origin").is_none());

    let called = |server: &Running, name: &str| {
        read(agent().get(server.url("/v1/models")).header("host", name).call().unwrap())
    };
    let said = refused(&called(&server, "evil.example:8080"), 403);
    assert!(said.contains("--allowed-host evil.example"), "{said}");
    assert_eq!(called(&server, "localhost:1").0, 200);

    let options = Options {
        cors: vec!["https://evil.example".into()],
        allowed_host: vec!["Proxy.example".into()],
        ..Options::default()
    };
    let server = Running::with(options);
    assert_eq!(called(&server, "proxy.example").0, 200);
    assert_eq!(called(&server, "evil.example").0, 403);
    assert_eq!(ask(&server, "/v1/completions", &[("origin", "https://evil.example")]).0, 200);
}

#[test]
fn pages_of_other_origins_may_use_it_where_that_is_said() {
    let origin = "https://example.org";
    let ask = |server: &Running, from: &str| {
        agent()
            .get(server.url("/health"))
            .header("Origin", from)
            .call()
            .unwrap()
            .headers()
            .get("access-control-allow-origin")
            .cloned()
    };
    assert_eq!(ask(&Running::new(), origin), None);
    let server = Running::with(Options { cors: vec![origin.into()], ..Options::default() });
    assert_eq!(ask(&server, origin).unwrap(), origin);
    assert_eq!(ask(&server, "https://example.com"), None);
    assert_eq!(
        ask(&Running::with(Options { cors: vec!["*".into()], ..Options::default() }), origin).unwrap(),
        "*"
    );
}
