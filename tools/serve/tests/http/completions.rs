//! Completions: prompts of all kinds, and likelihoods as lm-evaluation-harness reads them.

use std::ops::ControlFlow;

use crate::common::{CONTEXT, Running, engine, refused};
use serde_json::{Value, json};
use yuan::{
    model::{KvType, Want},
    session::{Score, Session},
    tokenizer::Special,
};

const COMPLETIONS: &str = "/v1/completions";

fn ids(text: &str) -> Vec<u32> {
    engine().tokenizer().encode(text, Special::Parse)
}

fn texts(reply: &Value) -> Vec<&str> {
    reply["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect()
}

/// The scores of the tokens behind the first, from the model's own logits.
fn scores(tokens: &[u32], top: usize) -> Vec<Score> {
    let engine = engine();
    let model = engine.model();
    let mut state = model.state(tokens.len(), KvType::F16).unwrap();
    let hidden = model.forward_one(tokens, &mut state, Want::Hidden).unwrap();
    let rows = hidden.chunks(model.config().hidden).map(|row| model.logits(row).unwrap());
    rows.zip(&tokens[1..]).map(|(row, token)| Score::of(&row, *token, top)).collect()
}

#[test]
fn prompts_come_as_texts_and_as_ids() {
    let server = Running::new();
    let (one, two) = ("Psalms 151:1<sep>", "春日山中 李白<sep>");
    let ask = |prompt: Value| {
        server.ask(COMPLETIONS, &json!({ "prompt": prompt, "max_tokens": 16, "temperature": 0 }))
    };
    let (first, second) = (ask(json!(one)), ask(json!(two)));
    let wanted = [texts(&first)[0], texts(&second)[0]];
    assert_eq!(texts(&ask(json!(ids(one)))), [wanted[0]]);
    assert_eq!(texts(&ask(json!([one, two]))), wanted);
    let both = ask(json!([ids(one), ids(two)]));
    assert_eq!(texts(&both), wanted);
    assert_eq!(both["usage"]["prompt_tokens"], ids(one).len() + ids(two).len());
    assert_eq!(both["choices"][1]["index"], 1);
    let without = server.ask("/completions", &json!({ "prompt": one, "max_tokens": 16, "temperature": 0 }));
    assert_eq!(texts(&without), [wanted[0]]);
}

#[test]
fn several_answers_to_several_prompts_stand_in_order_and_stream() {
    let server = Running::new();
    let prompts = ["Psalms 151:1<sep>", "春日山中 李白<sep>"];
    let body = json!({ "prompt": prompts, "n": 2, "best_of": 2, "max_tokens": 12, "seed": 5, "echo": true, "logprobs": 2 });
    let reply = server.ask(COMPLETIONS, &body);
    assert_eq!(texts(&reply).len(), 4);
    for (i, text) in texts(&reply).iter().enumerate() {
        assert!(text.starts_with(prompts[i / 2]), "{text}");
        let alone = json!({ "prompt": prompts[i / 2], "max_tokens": 12, "seed": 5 + i % 2, "echo": true });
        assert_eq!(texts(&server.ask(COMPLETIONS, &alone)), [*text]);
    }
    let mut streamed = vec![(String::new(), Vec::new(), Vec::new()); 4];
    for chunk in server.chunks(COMPLETIONS, &body) {
        let choice = &chunk["choices"][0];
        let (text, tokens, offsets) = &mut streamed[choice["index"].as_u64().unwrap() as usize];
        text.push_str(choice["text"].as_str().unwrap());
        tokens.extend(choice["logprobs"]["token_logprobs"].as_array().into_iter().flatten().cloned());
        offsets.extend(choice["logprobs"]["text_offset"].as_array().into_iter().flatten().cloned());
    }
    for ((text, tokens, offsets), choice) in streamed.into_iter().zip(reply["choices"].as_array().unwrap()) {
        assert_eq!(choice["text"], text);
        assert_eq!(choice["logprobs"]["token_logprobs"], Value::from(tokens));
        assert_eq!(choice["logprobs"]["text_offset"], Value::from(offsets));
    }
}

/// What `local-completions` of lm-evaluation-harness sends and reads.
#[test]
fn likelihoods_are_the_models() {
    let server = Running::new();
    let prompts =
        [ids("Psalms 23:1<sep>The LORD is my shepherd;"), ids("春日<sep>国破山河在"), vec![7], {
            // Its answer begins with <eod>, which must be told all the same.
            let all = ids("Psalms 151:1<sep>And it came to pass.");
            [all, vec![engine().tokenizer().eod().unwrap()]].concat()
        }];
    let reply = server.ask(COMPLETIONS, &json!({
        "model": "demo", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true,
    }));
    for (i, prompt) in prompts.iter().enumerate() {
        let choice = &reply["choices"][i];
        let logprobs = &choice["logprobs"];
        let list = |name: &str| logprobs[name].as_array().unwrap();
        let (of_tokens, tops) = (list("token_logprobs"), list("top_logprobs"));
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(name).len(), prompt.len() + 1, "{name} of {i}");
        }
        assert!(of_tokens[0].is_null() && tops[0].is_null());
        let wanted = scores(prompt, 1);
        for (place, score) in (1..).zip(&wanted) {
            let logprob = of_tokens[place].as_f64().unwrap();
            assert_eq!(logprob as f32, score.logprob, "{place} of {i}");
            // As the client sees whether the token is the greedy choice.
            let best = tops[place]
                .as_object()
                .unwrap()
                .values()
                .map(|v| v.as_f64().unwrap())
                .fold(f64::MIN, f64::max);
            assert_eq!(best == logprob, score.best[0].0 == score.token);
            assert_eq!(best as f32, score.best[0].1);
        }
        // The one that was generated is the greedy one.
        let best = tops[prompt.len()].as_object().unwrap();
        assert_eq!(best.len(), 1);
        assert_eq!(best.values().next().unwrap(), &of_tokens[prompt.len()]);
        // Offsets are of characters, and where tokens begin in the text.
        let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
        let offsets: Vec<_> = list("text_offset").iter().map(|o| o.as_u64().unwrap() as usize).collect();
        assert!(offsets.is_sorted() && *offsets.last().unwrap() <= text.len(), "{offsets:?}");
    }
}

/// A question with several answers to it, as lm-evaluation-harness asks: what they have in common is computed once.
#[test]
fn choices_of_a_question_share_it() {
    let server = Running::new();
    let question = ids(
        "Isaiah 45:11-16<sep>Thus saith the LORD, the Holy One of Israel, and his Maker, Ask me of things to come concerning my sons, and concerning the work of my hands command ye me. I have made the earth, and created man upon it: I, even my hands, have stretched out the heavens, and lead me",
    );
    let choices = [" beside the still waters.", " beside the sea.", " to Jerusalem.", " out."];
    let prompts: Vec<_> = choices.iter().map(|choice| [&question[..], &ids(choice)].concat()).collect();
    let body = |prompts: &[Vec<u32>]| json!({ "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": true });
    let check = |reply: &Value, prompts: &[Vec<u32>]| {
        for (i, prompt) in prompts.iter().enumerate() {
            let found = reply["choices"][i]["logprobs"]["token_logprobs"].as_array().unwrap();
            let wanted = scores(prompt, 0);
            assert_eq!(found.len(), prompt.len() + 1);
            for (found, wanted) in found[1..].iter().zip(&wanted) {
                assert_eq!(found.as_f64().unwrap() as f32, wanted.logprob, "{i}");
            }
        }
    };
    // What the server counts, and not the engine, which other tests use, too.
    let counts = || {
        let names =
            ["yuan_prompt_tokens_total", "yuan_prompt_tokens_cached_total", "yuan_tokens_predicted_total"];
        let [whole, cached, predicted] = server.counters(names).map(|count| count as usize);
        [whole - cached, cached, predicted]
    };
    let before = counts();
    let reply = server.ask(COMPLETIONS, &body(&prompts));
    let [run, cached, predicted] = {
        let after = counts();
        [0, 1, 2].map(|i| after[i] - before[i])
    };
    check(&reply, &prompts);
    // What stands there in any of them is run once; the last token before a place where two part is run for each, for the likelihood of the next.
    let different: std::collections::BTreeSet<_> =
        prompts.iter().flat_map(|prompt| (1..=prompt.len()).map(|n| &prompt[..n])).collect();
    let whole: usize = prompts.iter().map(Vec::len).sum();
    assert_eq!(run, different.len() + prompts.len() - 1);
    assert_eq!(cached, whole - run);
    assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], cached);
    assert_eq!(predicted, prompts.len(), "the tokens that follow cost no pass of their own");
    // Each by itself, in whatever order, streamed or not: the same. By pages, all but the last few tokens of the question are there.
    let before = counts();
    for (prompt, choice) in prompts.iter().zip(reply["choices"].as_array().unwrap()).rev() {
        let alone = server.ask(COMPLETIONS, &body(std::slice::from_ref(prompt)));
        assert_eq!(alone["choices"][0]["logprobs"], choice["logprobs"]);
        let chunks = server.chunks(COMPLETIONS, &body(std::slice::from_ref(prompt)));
        assert_eq!(
            chunks[0]["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[..],
            choice["logprobs"]["token_logprobs"].as_array().unwrap()[..prompt.len()]
        );
    }
    let again = counts()[0] - before[0];
    assert!(question.len() >= 64);
    assert!(again <= prompts.iter().map(|prompt| 2 * (prompt.len() - 64)).sum(), "{again}");
    // Another question does not wait for these, and answers stand in the order of their prompts.
    let mixed = [ids("春日<sep>国破山河在"), prompts[2].clone(), vec![7, 8], prompts[0].clone()];
    check(&server.ask(COMPLETIONS, &body(&mixed)), &mixed);
}

#[test]
fn an_answers_own_tokens_are_told_without_echo() {
    let server = Running::new();
    let prompt = ids("Psalms 151:1<sep>");
    let body = json!({ "prompt": prompt, "temperature": 0.8, "seed": 4, "max_tokens": 25, "logprobs": 0 });
    let choice = &server.ask(COMPLETIONS, &body)["choices"][0];
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    // The answer's ids, by the library.
    let mut session = Session::new(engine(), CONTEXT, KvType::F16).unwrap();
    session.sync(&prompt, |_| ControlFlow::Continue(())).unwrap();
    let settings = yuan::sampler::Settings { temperature: 0.8, seed: Some(4), ..Default::default() };
    let mut sampler = yuan::sampler::Sampler::new(settings).unwrap();
    let mut all = prompt.clone();
    session
        .generate_scored(&mut sampler, &yuan::session::Limits::tokens(25), None, |token, _| {
            all.extend(token.map(|t| t.id));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(tokens.len(), all.len() - prompt.len());
    let found = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    for (found, wanted) in found.iter().zip(&scores(&all, 0)[prompt.len() - 1..]) {
        assert_eq!(found.as_f64().unwrap() as f32, wanted.logprob);
    }
    assert_eq!(choice["logprobs"]["text_offset"][0], 0);
}

#[test]
fn a_prompt_alone_can_be_scored() {
    let server = Running::new();
    let prompt = ids("Psalms 23:1<sep>The LORD is my shepherd;");
    let body = json!({ "prompt": prompt, "max_tokens": 0, "logprobs": 5, "echo": true });
    let choice = &server.ask(COMPLETIONS, &body)["choices"][0];
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), prompt.len());
    assert_eq!(choice["text"], engine().tokenizer().decode(&prompt));
    assert_eq!(choice["finish_reason"], "length");
}

#[test]
fn biases_penalties_and_bans_are_the_samplers() {
    let server = Running::new();
    let body = |more: Value| {
        let mut body = json!({ "prompt": "Psalms 151:1<sep>", "max_tokens": 20, "temperature": 0, "ignore_eos": true, "logprobs": 0 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.ask(COMPLETIONS, &body)["choices"][0].clone()
    };
    let plain = body(json!({}));
    let word = ids("the")[0];
    assert_eq!(
        body(json!({ "logit_bias": {word.to_string(): 100} }))["logprobs"]["tokens"],
        json!(vec![" the"; 20])
    );
    assert_ne!(body(json!({ "repetition_penalty": 3 }))["text"], plain["text"]);
    assert_ne!(body(json!({ "presence_penalty": 9 }))["text"], plain["text"]);
    assert_eq!(body(json!({ "top_k": 1, "temperature": 1 }))["text"], plain["text"]);
    assert_eq!(body(json!({ "top_p": 0, "temperature": 1 }))["text"], plain["text"]);
}

#[test]
fn what_is_not_supported_is_refused_and_what_is_impossible() {
    let server = Running::new();
    let refuse = |body: Value| refused(&server.post(COMPLETIONS, &body), 400);
    assert!(refuse(json!({ "prompt": "a", "best_of": 3 })).contains("best_of"));
    assert!(refuse(json!({ "prompt": [5000] })).contains("no token 5000"));
    for (field, value) in [
        ("n", json!(0)),
        ("n", json!(1000)),
        ("logprobs", json!(101)),
        ("max_tokens", json!(-5)),
        ("temperature", json!(-1)),
        ("top_p", json!(2)),
        ("logit_bias", json!({"4096": 1})),
        ("stop", json!({"a": 1})),
        ("seed", json!("x")),
        ("n", json!(-1)),
        ("echo", json!("yes")),
        ("stream", json!(7)),
        ("max_tokens", json!(1.5)),
        ("model", json!(3)),
    ] {
        let mut body = json!({ "prompt": "a" });
        body[field] = value;
        refuse(body);
    }
    for prompt in [
        json!(""),
        json!([]),
        json!([[]]),
        json!([""]),
        json!([-1]),
        json!([4294967296u64]),
        json!([1, "a"]),
        json!(3),
        json!(null),
        json!([[1], []]),
    ] {
        refuse(json!({ "prompt": prompt }));
    }
    let long = vec![3; CONTEXT + 1];
    let (status, reply) = server.post(COMPLETIONS, &json!({ "prompt": long }));
    assert_eq!((status, &reply["error"]["code"]), (413, &json!("context_length_exceeded")));
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("1025") && message.contains("1024"), "{message}");
    // What fills the context exactly still has one token to say.
    let full =
        server.ask(COMPLETIONS, &json!({ "prompt": vec![3; CONTEXT], "max_tokens": 9, "ignore_eos": true }));
    assert_eq!(
        (&full["usage"]["completion_tokens"], &full["choices"][0]["finish_reason"]),
        (&json!(1), &json!("length"))
    );
}
