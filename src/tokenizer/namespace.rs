//! Namespaces of templates, which alone can be changed after they were made, and so come to contain themselves; what shows such a value never
//! ends, and nothing of it is counted. Templates keep them in variables and use their fields: any other use of one is refused.
//!
//! The text is looked at word by word, without regard to what is a string or a comment. So some harmless templates are refused too, and none
//! that does harm is missed: for a namespace to become part of a value, its name or the function must stand where an expression is evaluated.

use std::collections::HashSet;

/// Signs and words behind which a value is taken.
const TAKING: [char; 8] = ['=', '[', '(', ',', ':', '{', '*', '%'];
const TAKING_WORDS: [&str; 7] = ["or", "and", "else", "if", "in", "not", "elif"];

/// What is wrong with the namespaces of a template, if anything is.
pub(super) fn misused(template: &str) -> Option<String> {
    let mut names = HashSet::new();
    for use_ in uses(template, |word| word == "namespace") {
        match use_.made() {
            Some(name) if use_.is_whole_call() => _ = names.insert(name),
            _ if use_.is_called() || use_.is_taken() => {
                return Some("namespace is used otherwise than in {% set NAME = namespace(…) %}".into());
            }
            _ => {}
        }
    }
    // Of all names in one go, since a template may have tens of thousands.
    let bare = uses(template, |word| names.contains(word)).find(|use_| use_.is_taken() && !use_.has_field());
    bare.map(|use_| format!("the namespace {} is used as a value; only its fields can be", use_.word))
}

/// A place where a word stands.
#[derive(Clone, Copy, Debug)]
struct Use<'t> {
    word: &'t str,
    before: &'t str,
    behind: &'t str,
}

/// The places of the whole words that are `wanted`.
fn uses<'t>(template: &'t str, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = Use<'t>> {
    let mut at = 0;
    let words = template.split_inclusive(|c| !is_in_word(c)).map(move |part| {
        let from = at;
        at += part.len();
        (from, part.trim_end_matches(|c| !is_in_word(c)))
    });
    words.filter(move |(_, word)| wanted(word)).map(|(from, word)| {
        let (before, behind) = (&template[..from], &template[from + word.len()..]);
        Use { word, before: before.trim_end(), behind: behind.trim_start() }
    })
}

fn is_in_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

impl<'t> Use<'t> {
    /// The variable of `set NAME =` before it.
    fn made(self) -> Option<&'t str> {
        let before = self.before.strip_suffix('=')?.trim_end();
        let (rest, name) = before.split_at(before.trim_end_matches(is_in_word).len());
        let set = rest.trim_end().strip_suffix("set")?;
        (!name.is_empty() && rest.ends_with(char::is_whitespace) && !set.ends_with(is_in_word))
            .then_some(name)
    }

    fn is_called(self) -> bool {
        self.behind.starts_with('(')
    }

    /// Whether a call and nothing else stands up to the end of the tag.
    fn is_whole_call(self) -> bool {
        let mut depth = 0;
        let end = self.behind.char_indices().find(|(_, c)| {
            depth += i32::from(*c == '(') - i32::from(*c == ')');
            depth <= 0
        });
        let rest = end.map_or("", |(at, c)| &self.behind[at + c.len_utf8()..]).trim_start();
        self.is_called() && rest.trim_start_matches(['-', '+']).starts_with("%}")
    }

    /// Whether it stands where a value is taken.
    fn is_taken(self) -> bool {
        let word = self.before.trim_end_matches(is_in_word).len();
        self.before.ends_with(TAKING) || TAKING_WORDS.contains(&&self.before[word..])
    }

    /// Whether one of its fields is meant, or it is the name of an argument.
    fn has_field(self) -> bool {
        let is_named = self.behind.starts_with('=') && !self.behind.starts_with("==");
        self.behind.starts_with(['.', '[']) || is_named
    }
}

#[cfg(test)]
mod tests {
    use super::misused;
    use crate::vocab::{CHAT_TEMPLATE, YUAN3_CHAT_TEMPLATE};

    #[test]
    fn templates_use_fields_of_namespaces() {
        for template in [
            CHAT_TEMPLATE,
            YUAN3_CHAT_TEMPLATE,
            "{% set ns = namespace(a=1) %}{% set ns.a = ns.a ~ ns['a'] %}{% if ns.a == 1 %}{{ f(ns=1) }}{% endif %}",
            "{%- set state=namespace( found = false ) -%}The state of things: a namespace functions {",
            "{{- 'namespace ' + tool_namespace -}}",
        ] {
            assert_eq!(misused(template), None, "{template}");
        }
    }

    /// A template comes from a file, and one of megabytes was looked at for minutes.
    #[test]
    fn any_number_of_namespaces_is_looked_at_in_one_go() {
        let many: String = (0..100_000).map(|i| format!("{{% set n{i} = namespace(x=1) %}}")).collect();
        assert_eq!(misused(&many), None);
        assert!(
            misused(&format!("{many}{{% set n0.x = n99999 %}}")).is_some_and(|said| said.contains("n99999"))
        );
    }

    #[test]
    fn namespaces_that_become_values_are_refused() {
        for template in [
            "{% set ns.x = ns %}",
            "{% set ns.x = [1, ns] %}",
            "{% set ns.x = {'a':\nns} %}",
            "{% set b = ns or 1 %}{% set ns.x = b %}",
            "{% set b = 0 or ns %}{% set ns.x = b %}",
            "{% for b in [ns] %}{% set ns.x = b %}{% endfor %}",
            "{% with b = ns %}{% set ns.x = b %}{% endwith %}",
            "{% macro f(b) %}{% set b.x = b %}{{ b }}{% endmacro %}{{ f(ns) }}",
            "{% set ns.x = dict(a=ns) %}",
            "{% set ns.x = '%}' and ns %}",
            "{% set m = namespace %}",
            "{% set ns.x = namespace() %}",
            "{% set a = namespace(b=namespace()) %}",
            "{% set a = 0 or namespace () %}",
            "{% set a = namespace(), (1) %}{% set b = a[0] %}{% set b.x = b %}",
            "{% set a = namespace(b=')'), 1 %}",
        ] {
            let template = format!("{{% set ns = namespace(x=1) %}}{template}");
            assert!(misused(&template).is_some(), "{template}");
        }
    }
}
