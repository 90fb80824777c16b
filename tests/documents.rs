//! What the README says in both languages is the same; the book is whole: all of its chapters are there, and what they include and link to.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Lines outside of the examples that are fenced.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").step_by(2).flat_map(str::lines)
}

/// Commands: indented lines, without their comments.
fn commands(text: &str) -> BTreeSet<&str> {
    let indented = lines(text).filter_map(|line| line.strip_prefix("    "));
    indented
        .map(|line| line.split(" #").next().unwrap_or(line).trim_end())
        .filter(|l| !l.is_empty())
        .collect()
}

/// The numbers of each row of a table.
fn figures(text: &str) -> Vec<BTreeSet<&str>> {
    let of_row = |row| {
        let words = str::split(row, |c: char| !c.is_ascii_digit() && !".,".contains(c));
        words.map(|w| w.trim_matches(['.', ','])).filter(|w| !w.is_empty()).collect::<BTreeSet<_>>()
    };
    lines(text).filter(|line| line.starts_with('|')).map(of_row).filter(|row| !row.is_empty()).collect()
}

/// Files that it links to.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    targets.filter(|target| !target.contains("://") && !target.is_empty())
}

fn read(path: impl AsRef<Path>) -> String {
    let path = common::root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Where the book's chapters are.
const CHAPTERS: &str = "docs/src";

/// The files of the book's chapters.
fn chapters() -> Vec<PathBuf> {
    let files = fs::read_dir(common::root().join(CHAPTERS)).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|e| e == "md")).collect()
}

#[test]
fn the_chinese_readme_has_commands_and_figures_of_the_english_texts() {
    let (english, chinese) = (read("README.md"), read("README.zh.md"));
    let book: String = chapters().iter().map(read).collect();
    let known: BTreeSet<&str> = commands(&english).union(&commands(&book)).copied().collect();
    let here = commands(&chinese);
    assert!(here.len() > 20, "{here:#?}");
    assert!(here.is_subset(&known), "not in README.md or the book: {:#?}", here.difference(&known));
    let rows = [figures(&english), figures(&book)].concat();
    for row in figures(&chinese) {
        assert!(rows.iter().any(|known| row.is_subset(known)), "no English table has a row with {row:?}");
    }
    for (name, text) in [("README.md", &english), ("README.zh.md", &chinese)] {
        for target in links(text) {
            assert!(common::root().join(target).exists(), "{name} links to {target}");
        }
    }
}

#[test]
fn every_chapter_of_the_book_is_in_its_summary_and_the_other_way_round() {
    let summary = read("docs/src/SUMMARY.md");
    let named: Vec<&str> = links(&summary).collect();
    let all: BTreeSet<&str> = named.iter().copied().collect();
    assert_eq!(named.len(), all.len(), "a chapter stands there twice");
    let files: Vec<String> =
        chapters().iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let files: BTreeSet<&str> =
        files.iter().map(String::as_str).filter(|name| *name != "SUMMARY.md").collect();
    assert_eq!(all, files);
    assert!(all.len() > 20);
}

/// `{{#include FILE}}` and `{{#include FILE:ANCHOR}}`: the file is there, and the anchor has a beginning and an end.
#[test]
fn what_the_book_includes_and_links_to_is_there() {
    let folder = common::root().join(CHAPTERS);
    let mut included = 0;
    for chapter in chapters() {
        let text = read(&chapter);
        for what in text.split("{{#include ").skip(1) {
            let what = what.split("}}").next().unwrap();
            let (file, anchor) = what.split_once(':').unwrap_or((what, ""));
            let source = read(folder.join(file));
            for mark in ["ANCHOR", "ANCHOR_END"].into_iter().filter(|_| !anchor.is_empty()) {
                let mark = format!("{mark}: {anchor} ");
                assert_eq!(source.matches(&mark).count(), 1, "{}: {what}", chapter.display());
            }
            included += 1;
        }
        for target in links(&text) {
            assert!(folder.join(target).exists(), "{} links to {target}", chapter.display());
        }
    }
    assert!(included > 20, "{included}");
}
