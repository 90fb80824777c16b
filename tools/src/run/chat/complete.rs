//! Tab: the commands of a conversation, its settings, and files.

use rustyline::{
    Context, Helper, Result,
    completion::{Completer, FilenameCompleter, Pair},
    highlight::Highlighter,
    hint::Hinter,
    validate::Validator,
};

use super::{COMMANDS, settings::Settings};

/// What Tab knows.
pub struct Commands {
    names: Vec<String>,
    settings: Vec<String>,
    files: FilenameCompleter,
}

impl Default for Commands {
    fn default() -> Self {
        let first = |line: &str| {
            line.split_whitespace().next().filter(|word| word.starts_with('/')).map(str::to_owned)
        };
        let names = COMMANDS.lines().filter_map(first).filter(|name| !name.starts_with("//")).collect();
        let settings = Settings::names().into_iter().map(|(name, _)| name).collect();
        Self { names, settings, files: FilenameCompleter::new() }
    }
}

impl Completer for Commands {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, ctx: &Context<'_>) -> Result<(usize, Vec<Pair>)> {
        let line = &line[..pos];
        let beginning = |names: &[String], word: &str, start: usize| {
            let names = names.iter().filter(|name| name.starts_with(word));
            let pair = |name: &String| Pair { display: name.clone(), replacement: format!("{name} ") };
            (start, names.map(pair).collect())
        };
        match line.split_once(' ') {
            None if line.starts_with('/') => Ok(beginning(&self.names, line, 0)),
            Some(("/save" | "/load", _)) => self.files.complete(line, pos, ctx),
            Some(("/set", word)) if !word.contains(' ') => {
                Ok(beginning(&self.settings, word, pos - word.len()))
            }
            _ => Ok((pos, Vec::new())),
        }
    }
}

impl Hinter for Commands {
    type Hint = String;
}

impl Highlighter for Commands {}

impl Validator for Commands {}

impl Helper for Commands {}

#[cfg(test)]
mod tests {
    use rustyline::history::MemHistory;

    use super::*;

    fn of(line: &str) -> Vec<String> {
        let history = MemHistory::new();
        let (start, found) = Commands::default().complete(line, line.len(), &Context::new(&history)).unwrap();
        found.into_iter().map(|pair| format!("{}{}", &line[..start], pair.replacement)).collect()
    }

    #[test]
    fn tab_completes_commands_and_settings() {
        assert_eq!(of("/reg"), ["/regenerate "]);
        assert_eq!(of("/s"), ["/system ", "/set ", "/save ", "/stats "]);
        assert_eq!(of("/set top"), ["/set top_k ", "/set top_p "]);
        assert_eq!(
            of("/"),
            Commands::default().names.iter().map(|name| format!("{name} ")).collect::<Vec<_>>()
        );
        for nothing in ["", "春", "what is /re", "/set temp 0", "//re", "/nothing"] {
            assert!(of(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn tab_completes_files_behind_save_and_load() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("春.session"), "").unwrap();
        let begun = format!("/load {}/春", folder.path().display());
        assert_eq!(of(&begun), [format!("{begun}.session")]);
    }
}
