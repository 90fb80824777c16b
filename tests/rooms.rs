//! The rules of the rooms (ARCHITECTURE.md), enforced on the source text.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// For every room of the library the rooms that it may import. `config`, `error`, `limits` and `vocab` are plain data, open to all, and so
/// is `files`, by which every room writes its outputs.
const ROOMS: [(&str, &[&str]); 14] = [
    ("checkpoint", &[]),
    ("quantize", &["checkpoint"]),
    ("container", &["checkpoint"]),
    ("convert", &["checkpoint", "quantize", "container"]),
    ("tokenizer", &[]),
    ("grammar", &["tokenizer"]),
    ("machine", &[]),
    ("pager", &["container", "machine"]),
    ("gpu", &["machine", "pager"]),
    ("model", &["container", "machine", "pager", "gpu"]),
    ("calibrate", &["checkpoint", "container", "model"]),
    ("sampler", &[]),
    ("session", &["container", "tokenizer", "grammar", "machine", "pager", "model", "sampler"]),
    ("capi", &["machine", "pager", "gpu", "tokenizer", "grammar", "model", "sampler", "session"]),
];
const COMMON: [&str; 7] = ["config", "error", "files", "limits", "list", "vocab", "workers"];

/// Files that may say `unsafe`, by the beginning of their path.
const UNSAFE: [&str; 12] = [
    "kernels/src/",
    "src/container/in_page_error.rs",
    "src/container/map.rs",
    "src/container/sigbus.rs",
    "src/container/watch.rs",
    // Models, for tests only.
    "src/pager/models.rs",
    "src/pager/slot.rs",
    "src/machine/apple.rs",
    "src/machine/system.rs",
    "src/machine/windows.rs",
    "src/gpu/",
    "src/capi/",
];

/// Lines of a source file, so that it has one idea.
const LONGEST: usize = 500;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, as (path from the root, text).
fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of the repository") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    let relative = |p: &Path| p.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    paths.iter().map(|p| (relative(p), fs::read_to_string(p).expect("UTF-8 source"))).collect()
}

/// The text without comments, without what stands in quotation marks, and without what only tests have.
fn code(text: &str) -> String {
    without_tests(&without_literals(text))
}

fn without_literals(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let raw = rest.trim_start_matches('b').strip_prefix('r').filter(|_| !ends_in_word(&out));
        let raw = raw.map(|r| (r.trim_start_matches('#'), r.len() - r.trim_start_matches('#').len()));
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some((body, hashes)) = raw.filter(|(body, _)| body.starts_with('"')) {
            let end = format!("\"{}", "#".repeat(hashes));
            let body_at = rest.len() - body.len() + 1;
            body_at + rest[body_at..].find(&end).expect("a string that ends") + end.len()
        } else if c == '"' {
            1 + quoted(&rest[1..], '"')
        } else if c == '\'' && is_char(&rest[1..]) {
            1 + quoted(&rest[1..], '\'')
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        rest = &rest[length..];
        out.push(' ');
    }
    out
}

/// Bytes up to and with the mark that ends a literal.
fn quoted(text: &str, mark: char) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == mark => return i + c.len_utf8(),
            _ => {}
        }
    }
    panic!("a literal that does not end");
}

/// Whether a character is quoted here, and no lifetime named.
fn is_char(text: &str) -> bool {
    text.starts_with('\\') || text.chars().nth(1) == Some('\'')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn ends_in_word(text: &str) -> bool {
    text.ends_with(is_word)
}

/// Without the items, modules mostly, behind `#[cfg(test)]`: up to their semicolon, or to the brace that closes them.
fn without_tests(code: &str) -> String {
    let mut parts = code.split("#[cfg(test)]");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut depth = 0;
        let end = part.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth == 0 && matches!(c, ';' | '}')
        });
        out.push_str(&part[end.map_or(part.len(), |(i, _)| i + 1)..]);
    }
    out
}

/// Every path of the code that begins with one of `roots`, groups in braces taken apart.
fn paths(code: &str, roots: &[&str]) -> Vec<Vec<String>> {
    let (mut found, mut rest, mut before) = (Vec::new(), code, ' ');
    while let Some(c) = rest.chars().next() {
        let root = roots.iter().find(|root| rest.strip_prefix(**root).is_some_and(|r| r.starts_with("::")));
        if root.is_some() && !is_word(before) && before != ':' {
            rest = tree(rest, &[], &mut found);
        } else {
            rest = &rest[c.len_utf8()..];
        }
        before = c;
    }
    found
}

/// The paths at the beginning of `code`, behind `prefix`; what is left of the code.
fn tree<'c>(code: &'c str, prefix: &[String], found: &mut Vec<Vec<String>>) -> &'c str {
    let mut rest = code.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        rest = group.trim_start();
        while !rest.is_empty() && !rest.starts_with('}') {
            rest = tree(rest, prefix, found).trim_start_matches(|c| c != ',' && c != '}');
            rest = rest.trim_start_matches(',').trim_start();
        }
        return rest.strip_prefix('}').unwrap_or(rest);
    }
    let name = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
    rest = &rest[name.len()..];
    let path = [prefix, &[name.to_owned()]].concat();
    match rest.strip_prefix("::") {
        Some(behind) => tree(behind, &path, found),
        None => {
            found.push(path);
            rest
        }
    }
}

/// The first segments, from the root of the library, of what the code in the file `path` (`src/pager/slot.rs`) names. A module that stands
/// within a file counts as the file.
fn imports(path: &str, code: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let module: Vec<&str> = path.split('/').collect();
    let mut found = Vec::new();
    for path in paths(code, &["crate", "self", "super"]) {
        let up = path.iter().filter(|s| *s == "super").count();
        let named = path.iter().find(|s| !["crate", "self", "super"].contains(&s.as_str()));
        match path[0].as_str() {
            "crate" => found.extend(named.cloned()),
            _ if up >= module.len() => found.extend(named.cloned()),
            _ => found.push(module[0].to_owned()),
        }
    }
    found.retain(|n| n.starts_with(|c: char| c.is_lowercase()));
    found
}

#[test]
fn a_room_imports_only_what_the_table_allows() {
    for (path, text) in sources("src") {
        let room = path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_owned();
        if room == "lib" {
            continue;
        }
        let allowed: &[&str] = match ROOMS.iter().find(|(name, _)| *name == room) {
            Some((_, allowed)) => allowed,
            None if COMMON.contains(&room.as_str()) => &[],
            None => {
                panic!("{path}: the room {room} is not in the table of tests/rooms.rs and ARCHITECTURE.md")
            }
        };
        for import in imports(&path, &code(&text)) {
            let known = ROOMS.iter().any(|(name, _)| *name == import);
            assert!(
                !known || import == room || allowed.contains(&import.as_str()),
                "{path} imports {import}: the room {room} may only import {allowed:?}"
            );
        }
    }
}

#[test]
fn imports_are_found_in_groups_and_upwards() {
    let of = |path: &str, code: &str| imports(path, code);
    assert_eq!(
        of("src/x/y.rs", "use crate::{a::{b, c}, d::E as F, g};\ncrate::h::i()"),
        ["a", "a", "d", "g", "h"]
    );
    assert_eq!(of("src/x/mod.rs", "use super::a::b; super::super::c"), ["a", "c"]);
    assert_eq!(of("src/x/y.rs", "use super::{super::{a::b, c::*}, z};"), ["a", "c", "x"]);
    assert_eq!(of("src/x/y/z.rs", "self::super::super::a; super::super::super::b"), ["x", "b"]);
}

#[test]
fn only_the_code_of_tests_is_passed_over() {
    let text = r##"
        const A: &str = "crate::no {"; // crate::no
        const B: char = '{'; const C: &str = r#""crate::no"#; fn f<'a>() { crate::a() }
        #[cfg(test)]
        mod tests { fn t() { crate::no() } }
        #[cfg(test)]
        mod other;
        fn g() { crate::b() }
    "##;
    assert_eq!(imports("src/x.rs", &code(text)), ["a", "b"]);
}

/// What sources of the tools do without: `yuan` runs models and converts none, but for its demo; the C surface is for others.
const TOOLS: [(&str, &[&str]); 6] = [
    ("tools/src/", &["capi"]),
    ("tools/src/run/", &["capi", "convert", "quantize"]),
    ("tools/src/run/demo.rs", &["capi"]),
    // It knows files, and no models.
    (
        "tools/hub/src/",
        &["capi", "checkpoint", "container", "convert", "gpu", "model", "pager", "quantize", "session"],
    ),
    ("tools/serve/src/", &["capi", "convert", "gpu", "quantize"]),
    ("tools/src/quant/", &["capi", "gpu", "pager", "sampler", "session"]),
];

fn tools() -> impl Iterator<Item = (String, String)> {
    ["tools/src", "tools/serve/src", "tools/hub/src"].into_iter().flat_map(sources)
}

#[test]
fn tools_import_only_what_they_are_for() {
    for (path, text) in tools() {
        let rules = TOOLS.iter().filter(|(begins, _)| path.starts_with(begins));
        let (_, without) = rules.max_by_key(|(begins, _)| begins.len()).expect("a rule for every tool");
        for import in paths(&code(&text), &["yuan"]) {
            assert!(!without.contains(&import[1].as_str()), "{path} imports {}", import.join("::"));
        }
    }
}

#[test]
fn the_table_flows_one_way() {
    for (i, (room, allowed)) in ROOMS.iter().enumerate() {
        for import in *allowed {
            assert!(
                ROOMS[..i].iter().any(|(name, _)| name == import),
                "{room} imports {import}, which stands behind it"
            );
        }
    }
}

#[test]
fn kernels_know_no_files_threads_or_environment() {
    for (path, text) in sources("kernels/src") {
        let code = code(&text);
        for word in ["std::fs", "std::thread", "std::env", "std::io", "std::net", "println!", "rayon"] {
            assert!(!code.contains(word), "{path} uses {word}: kernels take slices and give slices");
        }
    }
}

#[test]
fn unsafe_stays_in_its_rooms() {
    for folder in ["src", "kernels/src", "tools/src", "tools/serve/src", "tools/hub/src", "fuzz/src"] {
        for (path, text) in sources(folder) {
            let said =
                code(&text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
            assert!(!said || UNSAFE.iter().any(|room| path.starts_with(room)), "{path} says unsafe");
        }
    }
}

/// Every target has its program, its entry in the manifest, and its seeds.
#[test]
fn fuzz_targets_are_complete() {
    let (manifest, list) = (root().join("fuzz/Cargo.toml"), root().join("fuzz/src/lib.rs"));
    let (manifest, list) = (fs::read_to_string(manifest).unwrap(), fs::read_to_string(list).unwrap());
    let programs = sources("fuzz/fuzz_targets");
    assert_eq!(programs.len(), list.matches("::seeds)").count(), "programs, and targets with seeds");
    for (path, _) in programs {
        let name = path.trim_start_matches("fuzz/fuzz_targets/").trim_end_matches(".rs");
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{path} is not in the manifest"
        );
        assert!(list.contains(&format!("(\"{name}\", ")), "{name} is not in the list of targets");
    }
}

#[test]
fn tools_reach_weights_and_kernels_only_through_the_library() {
    for (path, text) in tools() {
        assert!(!text.contains("yuan_kernels"), "{path} reaches past the library");
    }
}

#[test]
fn the_library_prints_nothing() {
    for (path, text) in sources("src") {
        let code = code(&text);
        assert!(
            !code.contains("println!") && !code.contains("print!("),
            "{path} prints: the library returns and logs"
        );
    }
}

/// These two panic when nobody can hear.
#[test]
fn tools_speak_by_their_own_macros() {
    for (path, text) in tools() {
        let code = code(&text);
        assert!(!code.contains("println!") && !code.contains("print!("), "{path}: use say! and tell!");
    }
}

#[test]
fn files_have_one_idea() {
    for folder in
        ["src", "kernels", "tools/src", "tools/serve", "tools/hub", "tests", "fuzz/src", "fuzz/fuzz_targets"]
    {
        for (path, text) in sources(folder) {
            assert!(
                text.lines().count() <= LONGEST,
                "{path} has more than {LONGEST} lines: is there more than one idea in it?"
            );
        }
    }
}
