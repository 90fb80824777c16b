//! The rules of the rooms (ARCHITECTURE.md), enforced on the source text.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// For every room of the library the rooms that it may import. `config`, `error`, `limits` and `vocab` are plain data, open to all, and so
/// is `files`, by which every room writes its outputs.
const ROOMS: [(&str, &[&str]); 12] = [
    ("checkpoint", &[]),
    ("quantize", &["checkpoint"]),
    ("container", &["checkpoint"]),
    ("convert", &["checkpoint", "quantize", "container"]),
    ("tokenizer", &[]),
    ("machine", &[]),
    ("pager", &["container", "machine"]),
    ("gpu", &["machine", "pager"]),
    ("model", &["container", "machine", "pager", "gpu"]),
    ("sampler", &[]),
    ("session", &["container", "tokenizer", "machine", "pager", "model", "sampler"]),
    ("capi", &["machine", "pager", "gpu", "tokenizer", "model", "sampler", "session"]),
];
const COMMON: [&str; 5] = ["config", "error", "files", "limits", "vocab"];

/// Files that may say `unsafe`, by the beginning of their path.
const UNSAFE: [&str; 8] = [
    "kernels/src/",
    "src/container/map.rs",
    "src/container/sigbus.rs",
    // Models, for tests only.
    "src/pager/models.rs",
    "src/pager/slot.rs",
    "src/machine/system.rs",
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

/// The text without comments, and without its unit tests, which stand at the end of a file.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]").next().unwrap_or(text);
    body.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// The first segments of the paths behind every `crate::`, groups in braces included.
fn imports(code: &str) -> Vec<String> {
    let name =
        |s: &str| s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.push(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    found.push(name(&group[start..]));
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.push(name(&group[start..]));
                    start = i + 1;
                }
                _ => {}
            }
        }
    }
    found.retain(|n| n.starts_with(|c: char| c.is_lowercase()));
    found
}

#[test]
fn a_room_imports_only_what_the_table_allows() {
    for (path, text) in sources("src") {
        let room = path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_owned();
        if room == "lib" || COMMON.contains(&room.as_str()) {
            continue;
        }
        let (_, allowed) = ROOMS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| {
            panic!("{path}: the room {room} is not in the table of tests/rooms.rs and ARCHITECTURE.md")
        });
        for import in imports(&code(&text)) {
            let known = ROOMS.iter().any(|(name, _)| *name == import);
            assert!(
                !known || import == room || allowed.contains(&import.as_str()),
                "{path} imports {import}: the room {room} may only import {allowed:?}"
            );
        }
    }
}

#[test]
fn imports_are_found_in_groups() {
    assert_eq!(imports("use crate::{a::{b, c}, d::E, f};\ncrate::g::h()"), ["a", "d", "f", "g"]);
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
    for folder in ["src", "kernels/src", "tools/src"] {
        for (path, text) in sources(folder) {
            let said =
                code(&text).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
            assert!(!said || UNSAFE.iter().any(|room| path.starts_with(room)), "{path} says unsafe");
        }
    }
}

#[test]
fn tools_reach_weights_and_kernels_only_through_the_library() {
    for (path, text) in sources("tools/src") {
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
    for (path, text) in sources("tools/src") {
        let code = code(&text);
        assert!(!code.contains("println!") && !code.contains("print!("), "{path}: use say! and tell!");
    }
}

#[test]
fn files_have_one_idea() {
    for folder in ["src", "kernels", "tools/src", "tests"] {
        for (path, text) in sources(folder) {
            assert!(
                text.lines().count() <= LONGEST,
                "{path} has more than {LONGEST} lines: is there more than one idea in it?"
            );
        }
    }
}
