//! What the README says in both languages is the same.

mod common;

use std::{collections::BTreeSet, fs};

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

#[test]
fn the_chinese_readme_has_commands_and_figures_of_the_english_one() {
    let read = |name: &str| fs::read_to_string(common::root().join(name)).unwrap();
    let (english, chinese) = (read("README.md"), read("README.zh.md"));
    let (known, here) = (commands(&english), commands(&chinese));
    assert!(here.len() > 20, "{here:#?}");
    assert!(here.is_subset(&known), "not in README.md: {:#?}", here.difference(&known));
    let rows = figures(&english);
    for row in figures(&chinese) {
        assert!(rows.iter().any(|known| row.is_subset(known)), "README.md has no row with {row:?}");
    }
    for (name, text) in [("README.md", &english), ("README.zh.md", &chinese)] {
        for target in links(text) {
            assert!(common::root().join(target).exists(), "{name} links to {target}");
        }
    }
}
