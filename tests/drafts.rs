//! Drafts change how long answers take, and nothing of them: tokens, texts, likelihoods, samplers and states are the same with and without.

mod common;

use std::{
    ops::ControlFlow,
    sync::{Arc, Barrier},
    thread,
};

use common::{mutate::Random, sessions::*};
use yuan::{
    Error,
    model::KvType,
    sampler::{Sampler, Settings},
    session::{Drafts, Engine, Finish, Guesses, Hint, Limits, Session, Token},
    tokenizer::Special,
};

/// Prompts of all kinds. Those that ask for something said before have much to be drafted.
const PROMPTS: [&str; 8] = [
    "1 Chronicles 27:7-12<sep>",
    "In the beginning God created the heaven and the earth. And the earth was without form, and void. In the beginning God created",
    "十五夜观灯 王维<sep>",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。床前明月光，疑是地上霜。举头望",
    "fn main() {\n    for i in 0..10 {\n        println!(\"{i}\");\n    }\n    for j in 0..10 {\n        println!(",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):\n",
    "{\"name\": \"李白\", \"home\": \"绵州\"}, {\"name\": \"杜甫\", \"home\": \"巩县\"}, {\"name\": \"",
    "a b c a b c a b c a b c",
];

/// How an answer is asked for.
#[derive(Clone, Debug)]
struct Asked {
    prompt: Vec<u32>,
    settings: Settings,
    limits: Limits,
    /// With the likelihood of every token.
    top: Option<usize>,
    kv: KvType,
}

/// Who drafts it.
#[derive(Clone, Copy, Debug)]
enum By {
    /// The session, if at all.
    Itself(Drafts),
    /// Somebody who knows the answer, and is right so often out of 100.
    Right(u32),
}

/// All that is seen of an answer.
#[derive(Debug, PartialEq)]
struct Seen {
    tokens: Vec<Token>,
    text: String,
    finish: Finish,
    sampler: Vec<u8>,
    timeline: Vec<u32>,
    /// Of the token behind the last.
    logits: Vec<u32>,
}

/// Texts of this number's kind: greedy and random, with and without penalties, stop strings, likelihoods, grammars.
fn asked(engine: &Engine, number: u64, most: usize) -> Asked {
    let mut random = Random::new(number);
    let temperature = [0.0, 0.0, 0.7, 1.2][random.below(4)];
    let penalties = random.below(3) == 0;
    let settings = Settings {
        temperature,
        top_k: [0, 1, 40][random.below(3)],
        top_p: [1.0, 0.95][random.below(2)],
        repeat_penalty: if penalties { 1.1 } else { 1.0 },
        presence_penalty: if penalties { 0.2 } else { 0.0 },
        logit_bias: if random.below(4) == 0 {
            vec![(300, 1.0), (301, f32::NEG_INFINITY)]
        } else {
            Vec::new()
        },
        seed: Some(number),
        ..Settings::default()
    };
    let stop_texts: Vec<_> =
        ["the", "，", "\n\n"].iter().take(random.below(2) * 3).map(|s| (*s).to_owned()).collect();
    let limits = Limits {
        stop_texts,
        ignore_eod: random.below(2) == 0,
        constraint: constraint(engine, random.below(4)),
        ..Limits::tokens(most)
    };
    Asked {
        prompt: engine.tokenizer().encode(PROMPTS[number as usize % PROMPTS.len()], Special::Parse),
        settings,
        limits,
        top: [None, None, Some(3)][random.below(3)],
        kv: KvType::SAMPLES[random.below(KvType::SAMPLES.len())],
    }
}

#[cfg(feature = "grammar")]
fn constraint(engine: &Engine, kind: usize) -> Option<yuan::grammar::Constraint> {
    use yuan::grammar::Grammar;
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "tags": { "type": "array", "items": { "enum": ["poet", "李白"] }, "minItems": 1, "maxItems": 5 },
            "住址": { "const": "绵州 昌隆" },
        },
        "required": ["name", "tags", "住址"],
        "additionalProperties": false,
    });
    (kind == 0).then(|| engine.constraint(&Grammar::JsonSchema(schema)).unwrap())
}

#[cfg(not(feature = "grammar"))]
fn constraint(_: &Engine, _: usize) -> Option<yuan::grammar::Constraint> {
    None
}

/// What somebody drafts who knows that `answer` comes behind the first `begun` tokens: `right` of 100 are right, and others are any token or none at all.
fn knows(answer: Vec<u32>, begun: usize, right: u32) -> Guesses {
    let mut random = Random::new(7);
    Box::new(move |timeline, most| {
        let rest = answer.iter().skip(timeline.len() - begun).take(most);
        let mut guess = |&token: &u32| match random.below(100) < right as usize {
            true => token,
            false => [token ^ 1, 0, u32::MAX, 511][random.below(4)],
        };
        rest.map(&mut guess).collect()
    })
}

fn see(engine: &Arc<Engine>, asked: &Asked, by: By, known: &[u32]) -> (Seen, Session) {
    let Asked { prompt, settings, limits, top, kv } = asked;
    let mut session = Session::new(engine.clone(), prompt.len() + limits.most + 1, *kv).unwrap();
    match by {
        By::Itself(drafts) => session.set_drafts(drafts),
        By::Right(right) => {
            session.set_drafts(Drafts::Tokens(3));
            session.draft_by(Some(knows(known.to_vec(), prompt.len(), right)));
        }
    }
    session.sync(prompt, go).unwrap();
    let mut sampler = Sampler::new(settings.clone()).unwrap();
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let finish = session.generate_scored(&mut sampler, limits, *top, |token, piece| {
        tokens.extend(token);
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    let finish = finish.unwrap();
    let timeline = session.tokens().to_vec();
    let logits = bits(session.logits().unwrap());
    (Seen { tokens, text, finish, sampler: sampler.to_bytes(), timeline, logits }, session)
}

/// The answer without drafts, and its tokens.
fn plain(engine: &Arc<Engine>, asked: &Asked) -> (Seen, Vec<u32>) {
    let (seen, _) = see(engine, asked, By::Itself(Drafts::Off), &[]);
    let ids = seen.tokens.iter().map(|token| token.id).collect();
    (seen, ids)
}

const BY: [By; 6] = [
    By::Itself(Drafts::Auto),
    By::Itself(Drafts::Tokens(3)),
    By::Itself(Drafts::Tokens(1)),
    By::Right(0),
    By::Right(90),
    By::Right(100),
];

/// How many texts: few, unless the environment says more (`YUAN_DRAFT_TEXTS=500`).
fn texts(few: u64) -> u64 {
    std::env::var("YUAN_DRAFT_TEXTS").map_or(few, |n| n.parse().expect("YUAN_DRAFT_TEXTS is a number"))
}

/// Resident and streamed; each text alone, and among seven others that are drafted in other ways.
#[test]
fn texts_are_the_same_with_drafts_and_without() {
    let folder = common::folder();
    let resident = demo(&folder);
    let streamed = {
        let options = common::paging::keeping_for(resident.container(), 8, 8 * 400);
        Engine::open(resident.container().path(), &options).unwrap()
    };
    let texts: Vec<_> = (0..texts(24)).map(|number| asked(&resident, number, 64)).collect();
    let wanted: Vec<_> = texts.iter().map(|asked| plain(&resident, asked)).collect();
    for engine in [&resident, &streamed] {
        let before = engine.counts();
        for (i, (asked, (wanted, known))) in texts.iter().zip(&wanted).enumerate() {
            for by in [BY[i % BY.len()], BY[(i + 1 + i / BY.len()) % BY.len()]] {
                assert!(see(engine, asked, by, known).0 == *wanted, "text {i}, {by:?}: {asked:?}");
            }
        }
        for (first, (texts, wanted)) in texts.chunks(8).zip(wanted.chunks(8)).enumerate() {
            let begin = Barrier::new(texts.len());
            thread::scope(|scope| {
                for (i, (asked, (wanted, known))) in texts.iter().zip(wanted).enumerate() {
                    let begin = &begin;
                    scope.spawn(move || {
                        begin.wait();
                        let by = BY[(first + i) % BY.len()];
                        assert!(
                            see(engine, asked, by, known).0 == *wanted,
                            "text {first}.{i}, {by:?}: {asked:?}"
                        );
                    });
                }
            });
        }
        let counts = engine.counts();
        let (drafted, accepted) = (counts.drafted - before.drafted, counts.accepted - before.accepted);
        assert!(accepted > 0 && accepted < drafted && counts.panics == 0, "{accepted} of {drafted}");
        assert!(counts.most_sequences > 1);
    }
}

fn endless_greedy(engine: &Engine, most: usize) -> Asked {
    Asked {
        prompt: engine.tokenizer().encode(PROMPTS[0], Special::Parse),
        settings: Settings { seed: Some(1), ..Settings::default() },
        limits: endless(most),
        top: None,
        kv: KvType::F16,
    }
}

/// Every draft that is right saves a pass; one that is wrong costs no pass more.
#[test]
fn drafts_that_are_right_save_their_passes() {
    let folder = common::folder();
    let engine = demo(&folder);
    let asked = endless_greedy(&engine, 200);
    let (wanted, known) = plain(&engine, &asked);
    for right in [0, 90, 100] {
        let before = engine.counts();
        let (seen, session) = see(&engine, &asked, By::Right(right), &known);
        assert!(seen == wanted);
        let (counts, done) = (engine.counts(), session.drafted());
        let (passes, tokens) = (counts.passes - before.passes, counts.tokens - before.tokens);
        assert_eq!(
            (counts.drafted - before.drafted, counts.accepted - before.accepted),
            (done.tokens, done.accepted)
        );
        // A pass for the prompt, one for its logits, one for each token that was not drafted right, the first of which those logits give, and one for the logits at the end.
        assert_eq!(passes, 3 + 199 - done.accepted, "{done:?}");
        assert_eq!(tokens, asked.prompt.len() as u64 + 200 - done.accepted + done.tokens);
        match right {
            0 => assert_eq!(done.accepted, 0),
            90 => assert!(passes < 100 && done.accepted < done.tokens, "{passes}: {done:?}"),
            _ => assert!(passes == 3 + 50 && done.accepted == done.tokens, "{passes}: {done:?}"),
        }
    }
}

/// Two sessions of one engine, saved at the same time: the files do not differ, whatever was refused on the way, and wherever the answer was broken off.
#[test]
fn refused_drafts_leave_no_trace() {
    let folder = common::folder();
    let engine = demo(&folder);
    for (kv, most) in [(KvType::F16, 1), (KvType::F16, 70), (KvType::Q8_0, 64), (KvType::Q8_0, 200)] {
        let asked = Asked { kv, ..endless_greedy(&engine, most) };
        let known = plain(&engine, &asked).1;
        for (right, broken) in [(0, None), (50, Some(33)), (90, None), (100, Some(18)), (100, None)] {
            let saved = [None, Some(right)].map(|right| {
                let mut session = Session::new(engine.clone(), 600, kv).unwrap();
                session.set_drafts(right.map_or(Drafts::Off, |_| Drafts::Tokens(3)));
                session.draft_by(right.map(|right| knows(known.clone(), asked.prompt.len(), right)));
                session.sync(&asked.prompt, go).unwrap();
                let mut sampler = Sampler::new(asked.settings.clone()).unwrap();
                let mut left = broken.unwrap_or(usize::MAX);
                let finish = session.generate(&mut sampler, &asked.limits, |_, _| {
                    left -= 1;
                    if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                });
                finish.unwrap();
                (session, sampler)
            });
            let bytes = saved.map(|(session, sampler)| {
                let file = folder.path().join("saved.session");
                session.save(&file, Some(&sampler)).unwrap();
                std::fs::read(file).unwrap()
            });
            assert!(bytes[0] == bytes[1], "{kv:?}, {most} tokens, {right} %, {broken:?}");
        }
    }
}

/// A draft that would end the answer, stand behind the context or be no token at all is not run, and an answer ends where it ends without.
#[test]
fn drafts_end_where_answers_do() {
    let folder = common::folder();
    let engine = demo(&folder);
    let prompt = engine.tokenizer().encode(PROMPTS[2], Special::Parse);
    let run = |context: usize, limits: &Limits, guesses: Option<Guesses>| {
        let mut session = Session::new(engine.clone(), context, KvType::F16).unwrap();
        session.set_drafts(guesses.as_ref().map_or(Drafts::Off, |_| Drafts::Tokens(3)));
        session.draft_by(guesses);
        session.sync(&prompt, go).unwrap();
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let mut sampler = Sampler::new(Settings::default()).unwrap();
        let finish = session.generate_scored(&mut sampler, limits, None, |token, piece| {
            tokens.extend(token);
            text.push_str(piece);
            ControlFlow::Continue(())
        });
        let ended = finish.map_err(|error| matches!(error, Error::ContextFull { .. }));
        (tokens, text, ended, session.tokens().to_vec(), session.drafted())
    };
    let (all, ..) = run(400, &endless(200), None);
    let ids: Vec<u32> = all.iter().map(|token| token.id).collect();
    let right = |right| Some(knows(ids.clone(), prompt.len(), right));
    let shifting = Limits { shift: Some(4), ..endless(120) };
    let stopping = Limits { stop_tokens: vec![ids[50]], ..endless(200) };
    let stopped = Limits { stop_texts: vec![engine.tokenizer().decode(&ids[40..43])], ..endless(200) };
    for (context, limits) in [
        (prompt.len() + 30, &endless(200)),
        (prompt.len() + 1, &endless(200)),
        (prompt.len(), &endless(2)),
        (prompt.len() + 40, &shifting),
        (400, &stopping),
        (400, &stopped),
        (400, &endless(1)),
        (400, &endless(2)),
    ] {
        let wanted = run(context, limits, None);
        for percent in [0, 50, 100] {
            let found = run(context, limits, right(percent));
            assert_eq!(
                (&found.0, &found.1, &found.2, &found.3),
                (&wanted.0, &wanted.1, &wanted.2, &wanted.3),
                "{context}"
            );
        }
        let nonsense: Guesses = Box::new(|_, _| vec![u32::MAX, 1 << 30, 0, 0, 0, 0]);
        let found = run(context, limits, Some(nonsense));
        assert_eq!((found.0, found.4.tokens), (wanted.0, 0));
    }
    let stop: Guesses = {
        let stop = ids[50];
        Box::new(move |_, _| vec![stop; 3])
    };
    assert_eq!(run(400, &stopping, Some(stop)).4.tokens, 0, "nothing is drafted behind the end");
}

/// What a session does in its life, drafted or not: the same.
#[test]
fn a_session_goes_back_and_on_with_drafts_as_without() {
    let folder = common::folder();
    let engine = tiny(&folder, 5);
    let life = |seed: u64, drafts: bool| {
        let (mut random, mut noise) = (Random::new(seed), Random::new(seed + 1000));
        let mut session = Session::new(engine.clone(), 900, KvType::F16).unwrap();
        session.set_drafts(if drafts { Drafts::Tokens(3) } else { Drafts::Off });
        if seed.is_multiple_of(2) {
            // A text of the same few tokens is often right.
            session.draft_by(Some(Box::new(move |timeline, most| {
                (0..most).map(|_| timeline[noise.below(timeline.len())]).collect()
            })));
        }
        let mut seen = Vec::new();
        for _ in 0..20 {
            let back = random.below(session.position() + 1);
            let mut timeline = session.tokens()[..back].to_vec();
            timeline.extend(tokens(1 + random.below(40), random.next()).iter().map(|token| token % 40));
            session.sync(&timeline, go).unwrap();
            let settings = Settings {
                temperature: [0.0, 1.0][random.below(2)],
                logit_bias: (0..40).map(|id| (id, 9.0)).collect(),
                seed: Some(random.next()),
                ..Settings::default()
            };
            let mut sampler = Sampler::new(settings).unwrap();
            let most = random.below(60).min(900 - timeline.len());
            let (ids, ..) = common::sessions::answer(&mut session, &mut sampler, &endless(most));
            seen.push((ids, sampler.to_bytes(), bits(session.logits().unwrap())));
        }
        (seen, session.drafted())
    };
    let mut drafted = 0;
    for seed in 0..8 {
        let (wanted, none) = life(seed, false);
        let (found, done) = life(seed, true);
        assert!(found == wanted, "seed {seed}");
        assert_eq!(none.tokens, 0);
        drafted += done.tokens;
    }
    assert!(drafted > 100, "{drafted}");
}

/// A hint that an answer quotes is quoted in a few passes, by itself.
#[test]
fn an_answer_is_drafted_from_a_hint() {
    let folder = common::folder();
    let engine = demo(&folder);
    let asked = endless_greedy(&engine, 120);
    let (_, known) = plain(&engine, &asked);
    let mut session = Session::new(engine.clone(), 300, KvType::F16).unwrap();
    session.draft_from(Hint::new(&known).unwrap());
    session.set_drafts(Drafts::Tokens(3));
    session.sync(&asked.prompt, go).unwrap();
    let (ids, ..) = answer(&mut session, &mut Sampler::new(Settings::default()).unwrap(), &endless(120));
    assert_eq!(ids, known);
    let done = session.drafted();
    assert!(done.accepted > 80, "{done:?}");
}
