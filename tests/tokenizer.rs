//! The tokenizer against the authors' vocabulary and SentencePiece's own answers, and what it promises of any text.

mod common;

use std::{char::REPLACEMENT_CHARACTER, collections::HashMap, fs, path::Path, sync::LazyLock};

use common::{demo, fixture};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Value;
use yuan::{
    checkpoint::vocab::{read_vocab, read_vocab_of},
    config::Family,
    tokenizer::{Conversation, Message, Special, Tokenizer},
    vocab::{Piece, PieceKind, Vocab},
};

/// The tokenizer of a folder.
fn open(folder: &Path) -> Tokenizer {
    Tokenizer::new(read_vocab(folder, None).expect("a vocabulary")).expect("a tokenizer")
}

/// The authors' tokenizer, and those of the small models.
static YUAN: LazyLock<Option<Tokenizer>> = LazyLock::new(|| Some(open(&fixture("yuan-tokenizer")?)));
static SMALL: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let folders = ["tiny-a", "tiny-b", "dense"].map(|m| fixture(&format!("models/{m}")));
    folders.into_iter().flatten().chain([demo()]).map(|f| open(&f)).collect()
});

/// All tokenizers that there are.
fn all() -> impl Iterator<Item = &'static Tokenizer> {
    YUAN.iter().chain(SMALL.iter())
}

/// A tokenizer of these pieces with these scores, after the 256 bytes and before the specials.
fn tokenizer(pieces: &[(&str, f32)], special: &[&str]) -> Tokenizer {
    let bytes = (0..=255).map(|b: u8| (format!("<0x{b:02X}>"), 0.0, PieceKind::Byte));
    let normal = pieces
        .iter()
        .map(|(t, s)| ((*t).to_owned(), *s))
        .chain(special.iter().map(|t| ((*t).to_owned(), 0.0)));
    let pieces = bytes.chain(normal.map(|(t, s)| (t, s, PieceKind::Normal)));
    Tokenizer::new(Vocab::from_pieces(
        pieces.map(|(text, score, kind)| Piece { text, score, kind }).collect(),
    ))
    .unwrap()
}

/// Emits every piece of a stream.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut chunks: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    chunks.push(stream.finish());
    chunks
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .expect("ids")
        .iter()
        .map(|id| u32::try_from(id.as_u64().expect("an id")).unwrap())
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().expect("texts").iter().map(text).collect()
}

/// The tokenizers of Yuan 3.0: the one that its authors' converter makes of the vocabulary of Yuan 2.0, and that of the tiny model.
fn yuan3() -> Option<[Tokenizer; 2]> {
    let (real, tiny) = (fixture("yuan-tokenizer")?, fixture("models/yuan3-tiny")?);
    let real = read_vocab_of(&real, Family::Yuan3, Some(136_064)).expect("a vocabulary");
    Some([Tokenizer::new(real).expect("a tokenizer"), open(&tiny)])
}

#[test]
fn every_golden_item_of_yuan3_is_reproduced() {
    let (Some([real, tiny]), Some(path)) = (yuan3(), fixture("goldens/yuan3-text.json")) else { return };
    let goldens: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!((real.len(), tiny.len()), (136_064, 2048));
    for item in goldens["items"].as_array().unwrap() {
        let (given, ids_of_real) = (text(&item["text"]), ids(&item["real_ids"]));
        assert_eq!(real.encode(given, Special::Parse), ids_of_real, "{given:?}");
        assert_eq!(tiny.encode(given, Special::Parse), ids(&item["tiny_ids"]), "{given:?}");
        assert_eq!(real.decode(&ids_of_real), given, "{given:?}");
    }
    for chat in goldens["chats"].as_array().unwrap() {
        let given = text(&chat["text"]);
        assert_eq!(real.encode(given, Special::Parse), ids(&chat["real_ids"]), "{given:?}");
        assert_eq!(tiny.encode(given, Special::Parse), ids(&chat["tiny_ids"]), "{given:?}");
    }
    for (special, id) in goldens["special_ids"].as_object().unwrap() {
        assert_eq!(real.encode(special, Special::Parse), [id.as_u64().unwrap() as u32], "{special}");
    }
    assert_eq!(real.ends().collect::<Vec<_>>(), [77_185, 135_977]);
    assert_eq!(tiny.ends().map(|id| tiny.piece(id)).collect::<Vec<_>>(), ["<eod>", "<|end_of_sentence|>"]);
}

/// What people write makes no special token, but the numbered strings, which the model has seen as tokens only.
#[test]
fn text_of_yuan3_has_its_symbols_and_no_special_tokens() {
    let Some([real, tiny]) = yuan3() else { return };
    for tokenizer in [real, tiny] {
        let parsed = |text| tokenizer.encode(text, Special::Parse);
        for text in ["items123 of s001", "s000s999", "rooms1000"] {
            assert_eq!(tokenizer.encode(text, Special::AsText), parsed(text));
        }
        let text = "<think>s042</think><|User|>";
        let ids = tokenizer.encode(text, Special::AsText);
        let special = |id: &&u32| tokenizer.vocab().special.iter().any(|(_, special)| special == *id);
        assert_eq!(ids.iter().filter(special).count(), 0);
        assert!(ids.contains(&parsed("s042")[0]));
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn every_golden_item_is_reproduced() {
    let (Some(path), Some(yuan)) = (fixture("yuan-tokenizer/goldens.json"), YUAN.as_ref()) else { return };
    let goldens: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let (mut encoded, mut decoded, mut chunks) = (0, 0, 0);

    for item in goldens["items"].as_array().unwrap() {
        let (name, given) = (&item["id"], text(&item["text"]));
        let (sp_ids, hf_ids) = (ids(&item["sp_ids"]), ids(&item["hf_ids"]));
        assert_eq!(yuan.encode(given, Special::AsText), sp_ids, "{name}: ids of SentencePiece");
        assert_eq!(yuan.encode(given, Special::Parse), hf_ids, "{name}: ids of LlamaTokenizer");
        let pieces: Vec<&str> = sp_ids.iter().map(|&id| yuan.piece(id)).collect();
        assert_eq!(pieces, texts(&item["sp_pieces"]), "{name}: pieces");
        let pieces: Vec<&str> = hf_ids.iter().map(|&id| yuan.piece(id)).collect();
        assert_eq!(pieces, texts(&item["hf_tokens"]), "{name}: tokens");
        encoded += 2;

        assert_eq!(yuan.decode(&sp_ids), text(&item["sp_decode"]), "{name}: decode");
        // LlamaTokenizer drops a second space where the text itself begins with one.
        let own = if given.starts_with(' ') { " " } else { "" };
        let expected = format!("{own}{}", text(&item["hf_decode_skip_special"]));
        assert_eq!(yuan.decode_skipping_special(&hf_ids), expected, "{name}: skipping special");
        assert_eq!(yuan.decode(&hf_ids), text(&item["sp_decode"]), "{name}: decode with special tokens");
        assert_eq!(streamed(yuan, &sp_ids), texts(&item["sp_stream_chunks"]), "{name}: stream");
        (decoded, chunks) = (decoded + 3, chunks + sp_ids.len() + 1);
    }
    for item in goldens["prefix_decodes"].as_array().unwrap() {
        let (given, prefixes) = (ids(&item["ids"]), texts(&item["sp_decode_of_each_prefix"]));
        assert_eq!(yuan.encode(text(&item["text"]), Special::AsText), given);
        assert_eq!(streamed(yuan, &given), texts(&item["stream_chunks"]));
        for (i, prefix) in prefixes.iter().enumerate() {
            assert_eq!(yuan.decode(&given[..=i]), *prefix);
        }
        (encoded, decoded, chunks) = (encoded + 1, decoded + prefixes.len(), chunks + given.len() + 1);
    }
    for item in goldens["invalid_bytes"].as_array().unwrap() {
        for (given, expected) in [("ids", "sp_decode"), ("after_ok_ids", "after_ok_sp_decode")] {
            assert_eq!(yuan.decode(&ids(&item[given])), text(&item[expected]));
            decoded += 1;
        }
    }
    for (special, id) in goldens["special_ids"].as_object().unwrap() {
        assert_eq!(
            u64::from(yuan.encode(special, Special::Parse)[0]) == id.as_u64().unwrap(),
            special != "<n>" && special != "</s>"
        );
    }
    eprintln!(
        "{encoded} encodings, {decoded} decodings and {chunks} chunks of streams are as the goldens have them"
    );
    assert!(encoded >= 80 && decoded >= 120);
}

#[test]
fn texts_of_the_demo_model_come_back() {
    let folder = demo();
    let tokenizer = open(&folder);
    let held_out = fs::read_to_string(folder.join("heldout.txt")).unwrap();
    let (mut lines, mut tokens) = (0, 0);
    for line in held_out.lines() {
        for special in [Special::AsText, Special::Parse] {
            let ids = tokenizer.encode(line, special);
            assert_eq!(tokenizer.decode(&ids), line);
            assert_eq!(streamed(&tokenizer, &ids).concat(), line);
            tokens += ids.len();
        }
        lines += 1;
    }
    let documents = held_out.split_terminator("\n<eod>\n");
    let (english, chinese): (Vec<_>, Vec<_>) = documents.partition(|d| d.is_ascii());
    let count = |docs: &[&str]| docs.iter().map(|d| tokenizer.encode(d, Special::Parse).len()).sum::<usize>();
    // As the demo model's own report counts them: with the `<eod>`, without the first token, which nothing predicts.
    assert_eq!((english.len(), count(&english)), (58, 12_942));
    assert_eq!((chinese.len(), count(&chinese)), (254, 14_516));
    eprintln!("{lines} lines came back from {tokens} tokens");
}

#[test]
fn special_strings_in_text_stay_text() {
    for tokenizer in all() {
        let special: Vec<(String, u32)> = tokenizer.vocab().special.clone();
        for (text, id) in &special {
            for text in [text.clone(), format!("a {text} b"), format!("{text}{text}"), format!("<{text}>")] {
                let ids = tokenizer.encode(&text, Special::AsText);
                assert!(!special.iter().any(|(_, id)| ids.contains(id)), "{text} became special: {ids:?}");
                assert_eq!(tokenizer.decode(&ids), text);
                assert!(
                    tokenizer.encode(&text, Special::Parse).contains(id),
                    "{text} did not become special"
                );
            }
        }
    }
}

#[test]
fn empty_text_has_no_ids() {
    for tokenizer in all() {
        assert_eq!(tokenizer.encode("", Special::AsText), [0; 0]);
        assert_eq!(tokenizer.encode("", Special::Parse), [0; 0]);
        assert_eq!(tokenizer.decode(&[]), "");
        assert_eq!(tokenizer.stream().finish(), "");
    }
}

#[test]
fn endless_words_finish() {
    let Some(yuan) = YUAN.as_ref() else { return };
    let mega = 1 << 20;
    for text in ["a", "ab", " ", "<", "=", "你", "🍕", "\n", "▁", "<sep", "aA", "的一"] {
        let text = text.repeat(mega / text.len());
        for special in [Special::AsText, Special::Parse] {
            let ids = yuan.encode(&text, special);
            assert_eq!(yuan.decode(&ids), text.replace('▁', " "));
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_are_nothing() {
    for tokenizer in all() {
        assert_eq!(tokenizer.piece(u32::MAX), "");
        assert_eq!(tokenizer.decode(&[u32::MAX]), "");
    }
}

/// Merges as their definition says it, one after the other over the whole text.
fn merged(pieces: &[(String, f32)], text: &str) -> Vec<String> {
    let score = |text: &str| pieces.iter().find(|(piece, _)| piece == text).map(|(_, score)| *score);
    let mut symbols: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for i in 1..symbols.len() {
            let pair = score(&format!("{}{}", symbols[i - 1], symbols[i]));
            if let Some(score) = pair.filter(|s| best.is_none_or(|(b, _)| *s > b)) {
                best = Some((score, i));
            }
        }
        let Some((_, i)) = best else { return symbols };
        let right = symbols.remove(i);
        symbols[i - 1].push_str(&right);
    }
}

/// Any text without U+2581, which comes back as a space, and often with special strings.
fn any_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        any::<String>(),
        "[ a-z]{0,20}",
        "[你好世界的一是不了，。]{0,8}",
        select(
            &[
                "<sep>", "<eod>", "<n>", "<", ">", "<s", "</s>", "<unk>", "<0x0A>", "\n", "  ", "🍕",
                "\u{FEFF}"
            ][..]
        )
        .prop_map(str::to_owned),
    ];
    vec(word, 0..8).prop_map(|words| words.concat().replace('\u{2581}', "_"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn any_text_comes_back(text in any_text()) {
        for tokenizer in all() {
            for special in [Special::AsText, Special::Parse] {
                let ids = tokenizer.encode(&text, special);
                prop_assert_eq!(tokenizer.decode(&ids), text.as_str());
            }
        }
    }

    #[test]
    fn merges_follow_their_definition(
        pieces in vec(("[ab ]{1,5}", -3..3i8), 1..25),
        text in "[ab c]{0,40}",
    ) {
        let mut pieces: Vec<(String, f32)> =
            pieces.into_iter().map(|(t, s)| (t.replace(' ', "\u{2581}"), f32::from(s))).collect();
        // Letters are pieces mostly, so that merges have something to begin with; not always.
        pieces.extend(["a", "\u{2581}"].map(|t| (t.to_owned(), -9.0)));
        let listed: Vec<(&str, f32)> = pieces.iter().map(|(t, s)| (t.as_str(), *s)).collect();
        let tokenizer = tokenizer(&listed, &[]);
        let spaced = if text.is_empty() { String::new() } else { format!(" {text}").replace(' ', "\u{2581}") };
        let expected: Vec<String> = merged(&pieces, &spaced).into_iter().flat_map(|symbol| {
            let known = pieces.iter().any(|(t, _)| *t == symbol);
            if known { vec![symbol] } else { symbol.bytes().map(|b| format!("<0x{b:02X}>")).collect() }
        }).collect();
        let found: Vec<&str> =
            tokenizer.encode(&text, Special::AsText).into_iter().map(|id| tokenizer.piece(id)).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_stream_shows_what_decode_shows(
        ids in vec(prop_oneof![0..600u32, 0..259u32, 4060..4080u32, 77_180..77_190u32, 29_000..135_100u32], 0..40),
    ) {
        for tokenizer in all() {
            let chunks = streamed(tokenizer, &ids);
            prop_assert_eq!(chunks.concat(), tokenizer.decode(&ids));
            prop_assert_eq!(tokenizer.decode(&ids), decoded_at_once(tokenizer, &ids));
            // A character is shown when its last byte came, not later: never more than three bytes are missing.
            let mut shown = String::new();
            for (i, chunk) in chunks[..ids.len()].iter().enumerate() {
                shown.push_str(chunk);
                let now = tokenizer.decode(&ids[..=i]);
                let held = now.strip_prefix(&shown).expect("a stream never takes back");
                prop_assert!(held.chars().count() <= 3 && held.chars().all(|c| c == REPLACEMENT_CHARACTER));
            }
        }
    }

    #[test]
    fn characters_of_a_text_are_never_broken(text in any_text()) {
        for tokenizer in all() {
            let ids = tokenizer.encode(&text, Special::AsText);
            let chunks = streamed(tokenizer, &ids);
            prop_assert!(text.contains(REPLACEMENT_CHARACTER) || !chunks.concat().contains(REPLACEMENT_CHARACTER));
            prop_assert_eq!(chunks.last().map(String::as_str), Some(""));
        }
    }
}

/// Decoding by its definition, over all ids at once.
fn decoded_at_once(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let special: HashMap<u32, &str> =
        tokenizer.vocab().special.iter().map(|(t, id)| (*id, t.as_str())).collect();
    let kind = |id: u32| tokenizer.vocab().pieces.get(id as usize).map(|p| p.kind);
    let (mut text, mut start, mut rest) = (String::new(), true, ids);
    while let Some(&id) = rest.first() {
        let run = rest.iter().take_while(|id| kind(**id) == Some(PieceKind::Byte)).count();
        let bytes: Vec<u8> = rest[..run]
            .iter()
            .map(|id| u8::from_str_radix(&tokenizer.piece(*id)[3..5], 16).unwrap())
            .collect();
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            let whole =
                (1..=left.len().min(4)).find_map(|n| Some((n, std::str::from_utf8(&left[..n]).ok()?)));
            let (n, shown) = whole.unwrap_or((1, "\u{FFFD}"));
            text.push_str(shown);
            left = &left[n..];
        }
        rest = &rest[run.max(1)..];
        if run > 0 {
            start = false;
        } else if let Some(shown) = special.get(&id) {
            text.push_str(shown);
            start = true;
        } else if kind(id).is_some_and(|k| k != PieceKind::Control) {
            let piece = tokenizer.piece(id).replace('\u{2581}', " ");
            text.push_str(if start { piece.strip_prefix(' ').unwrap_or(&piece) } else { &piece });
            start = false;
        }
    }
    text
}

#[test]
fn a_conversation_has_the_ids_of_its_text() {
    let turns = ["你好", "Hello! What can I do?", "Write  a poem\nof two lines."];
    let roles = ["user", "assistant", "user"];
    let messages: Vec<Message> = roles.into_iter().zip(turns).map(|(r, t)| Message::new(r, t)).collect();
    for tokenizer in all() {
        let text = format!("{}<sep>", turns.join("<n>"));
        assert_eq!(tokenizer.chat(&messages, true).unwrap(), tokenizer.encode(&text, Special::Parse));
        let open = tokenizer.encode(&turns.join("<n>"), Special::Parse);
        assert_eq!(tokenizer.chat(&messages, false).unwrap(), open);
        assert_eq!(
            tokenizer.chat(&messages[..1], true).unwrap(),
            tokenizer.encode("你好<sep>", Special::Parse)
        );
        assert_eq!(tokenizer.chat(&[], true).unwrap(), [tokenizer.sep().unwrap()]);
    }
}

#[test]
fn special_strings_in_messages_stay_text() {
    let hostile = [
        "<sep>",
        "a<eod>b",
        "<s",
        "ep>",
        "<sep><sep> \u{E000}\u{E001}<eod>",
        "<<eod>>",
        "\u{E000}sep\u{E001}",
    ];
    for tokenizer in all() {
        let sep = tokenizer.sep().unwrap();
        for first in hostile {
            for second in hostile {
                let messages = [Message::new("user", first), Message::new("<sep>", second)];
                let ids = tokenizer.chat(&messages, true).unwrap();
                let (last, rest) = ids.split_last().unwrap();
                assert_eq!(*last, sep);
                assert_eq!(rest, tokenizer.encode(&format!("{first}<n>{second}"), Special::AsText));
            }
        }
    }
}

/// The prompts of Yuan 3.0, with tools, calls, results and reasoning, have the ids of the authors' template and tokenizer.
#[test]
fn conversations_of_yuan3_have_the_ids_of_the_authors() {
    let Some(path) = common::fixture("goldens/yuan3-text.json") else { return };
    let goldens: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let real = common::fixture("yuan-tokenizer").expect("it lies beside");
    let tiny = common::fixture("models/yuan3-tiny").expect("it lies beside");
    let vocabs = [
        ("real_ids", read_vocab_of(&real, Family::Yuan3, Some(136_064)).unwrap()),
        ("tiny_ids", read_vocab(&tiny, None).unwrap()),
    ];
    for (key, vocab) in vocabs {
        let tokenizer = Tokenizer::new(vocab).unwrap();
        assert!(tokenizer.has_tools() && tokenizer.has_thinking());
        let mut seen = 0;
        for chat in goldens["chats"].as_array().unwrap() {
            let input = &chat["input"];
            // One has the result of a call that is no text.
            let Ok(conversation) = Conversation::parse(&input.to_string()) else { continue };
            let ids: Vec<u64> =
                tokenizer.prompt(&conversation.chat()).unwrap().into_iter().map(u64::from).collect();
            let wanted: Vec<u64> =
                chat[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            assert_eq!(ids, wanted, "{}: {}", chat["name"], chat["text"]);
            seen += 1;
        }
        assert_eq!(seen, 14);
    }
}
