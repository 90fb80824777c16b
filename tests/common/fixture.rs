//! Where the golden fixtures are, and what becomes of a test for which something is missing.

use std::{
    env,
    fmt::Display,
    path::{Path, PathBuf},
};

/// A file or folder of the fixtures: in the repository (`tests/fixtures`), or in the full set (`YUAN_FIXTURES`, or `../shared/fixtures` beside the
/// repository). Where it is in neither, the test is skipped.
///
/// # Panics
/// As [`skip`].
pub fn fixture(path: &str) -> Option<PathBuf> {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = folders.find(|f| f.join("tests/fixtures").is_dir()).expect("the repository has fixtures");
    let full = root.join(env::var_os("YUAN_FIXTURES").unwrap_or_else(|| "../shared/fixtures".into()));
    let found = [root.join("tests/fixtures"), full.clone()].map(|folder| folder.join(path));
    let found = found.into_iter().find(|file| file.exists());
    if found.is_none() {
        skip(format!("no fixture {path} in tests/fixtures or {}", full.display()));
    }
    found
}

/// Says that a test, or a part of one, is skipped, and why.
///
/// # Panics
/// In CI (`CI` is set), where nothing may be skipped.
#[track_caller]
pub fn skip(why: impl Display) {
    let in_ci = env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    assert!(!in_ci, "in CI nothing may be skipped: {why}");
    eprintln!("skipped: {why}");
}
