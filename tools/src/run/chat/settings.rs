//! `/set`: what can be changed while a conversation runs.

use anyhow::{Context, anyhow, ensure};
use clap::{Args, Command, FromArgMatches, builder::Resettable};
use yuan_tools::numbers::Most;

use crate::{habits, sampling::Sampling};

/// How answers are chosen, and how long they may be.
#[derive(Args, Clone)]
pub struct Settings {
    /// The most tokens of an answer (-1: what the context has room for)
    #[arg(long = "tokens", short = 'n', value_name = "N", default_value_t = Most::Room)]
    pub most: Most,
    #[command(flatten)]
    pub sampling: Sampling,
}

impl Settings {
    /// The names that can be set, each with what it is.
    pub fn names() -> Vec<(String, String)> {
        let command = command();
        let named = command.get_arguments().filter(|arg| arg.get_action().takes_values());
        named
            .filter_map(|arg| Some((arg.get_long()?.replace('-', "_"), arg.get_help()?.to_string())))
            .collect()
    }

    /// These settings with one of them changed: `temp 0.7`, also as ollama has it: `parameter temperature 0.7`.
    ///
    /// # Errors
    /// There is no such setting, or no such value of it.
    pub fn with(&self, change: &str) -> anyhow::Result<Self> {
        let change = change.strip_prefix("parameter ").unwrap_or(change).trim();
        let (name, value) = change.split_once(char::is_whitespace).unwrap_or((change, ""));
        let long = name.trim_start_matches('-').replace('_', "-");
        let command = command();
        let known = command.get_arguments().find(|arg| {
            let short = arg.get_short().map(String::from);
            arg.get_action().takes_values()
                && (arg.get_long_and_visible_aliases().is_some_and(|names| names.contains(&long.as_str()))
                    || arg.get_all_aliases().is_some_and(|names| names.contains(&long.as_str()))
                    || short.as_deref() == Some(long.as_str()))
        });
        let long = known
            .and_then(|arg| arg.get_long())
            .ok_or_else(|| anyhow!("there is no setting {name:?}; /set lists them"))?;
        ensure!(!value.trim().is_empty(), "give a value: /set {name} VALUE");
        let argument = format!("--{long}={}", value.trim());
        let matches = command.clone().try_get_matches_from([argument]).map_err(|error| {
            let told = error.to_string();
            let first = told.lines().next().unwrap_or_default();
            anyhow!("{}", first.strip_prefix("error: ").unwrap_or(first).to_owned())
        })?;
        let mut changed = self.clone();
        changed.update_from_arg_matches(&matches).context("cannot change the setting")?;
        Ok(changed)
    }

    /// Names and values, a line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("tokens {}", self.most)];
        lines.extend(self.sampling.named().into_iter().map(|(name, value)| format!("{name} {value}")));
        lines
    }
}

/// The options by themselves, without what they are when nobody says them.
fn command() -> Command {
    let command = Settings::augment_args(Command::new("/set").no_binary_name(true).disable_help_flag(true));
    command.mut_args(|arg| {
        let arg = if arg.get_long() == Some("tokens") { arg.alias("num-predict") } else { arg };
        habits::named(arg).default_value(Resettable::Reset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Settings {
        let matches =
            Settings::augment_args(Command::new("x")).try_get_matches_from(["x", "--top-k", "7"]).unwrap();
        Settings::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn one_setting_is_changed_and_no_other() {
        let has = |settings: &Settings, line: &str| settings.lines().iter().any(|l| l == line);
        let settings = fresh();
        assert!(has(&settings, "temp 0") && has(&settings, "top_k 7") && has(&settings, "tokens -1"));
        for change in ["temp 0.7", "temperature 0.7", "parameter temperature 0.7", "--temp 0.7"] {
            let changed = settings.with(change).unwrap();
            assert!(has(&changed, "temp 0.7") && has(&changed, "top_k 7"), "{change}: {:?}", changed.lines());
        }
        for (change, line) in [
            ("n 12", "tokens 12"),
            ("num_predict 12", "tokens 12"),
            ("top_p 0.9", "top_p 0.9"),
            ("seed 5", "seed 5"),
            ("stop 完", "stop 完"),
            ("repeat-last-n -1", "repeat_last_n -1"),
        ] {
            assert!(has(&settings.with(change).unwrap(), line), "{change}");
        }
        assert_eq!(settings.with("n 5").unwrap().with("n -1").unwrap().lines(), settings.lines());
    }

    #[test]
    fn what_cannot_be_set_is_said() {
        for (change, part) in [
            ("colour red", "no setting \"colour\""),
            ("temp", "give a value"),
            ("temp hot", "invalid value 'hot'"),
            ("n 99999999999", "invalid value"),
            ("ignore_eod on", "no setting"),
            ("", "no setting"),
        ] {
            let error = fresh().with(change).err().expect(change).to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{change}: {error}");
        }
    }

    #[test]
    fn all_that_is_listed_can_be_set() {
        let names: Vec<String> = Settings::names().into_iter().map(|(name, _)| name).collect();
        let shown = fresh().lines();
        assert!(names.len() > 9, "{names:?}");
        for line in shown {
            assert!(names.iter().any(|name| line.split(' ').next() == Some(name)), "{line} of {names:?}");
        }
    }
}
