//! Options of `yuan serve` from a file and from the environment. The command line goes before the environment, that before the file, and that before what
//! stands where nothing is said.

use std::{env, ffi::OsString, fs, path::Path};

use anyhow::{Context, anyhow, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, builder::BoolishValueParser};
use toml::{Table, Value};
use yuan_tools::say;

/// Options that no file and no variable can give; the model has a variable of its own, and is an argument in a file.
const NOT: [&str; 4] = ["config", "print-config", "help", "version"];
/// The model as an option, whose variable all commands know.
const MODEL: &str = "model";

/// Gives each option of a command a variable: `YUAN_THREADS_BATCH` for `--threads-batch`.
pub fn with_variables(command: Command) -> Command {
    command.mut_args(|arg| {
        let name = arg.get_long().filter(|name| !NOT.contains(name) && *name != MODEL).map(variable);
        match name {
            // Names live as long as the program.
            Some(name) if arg.get_env().is_none() => truth(arg.env(&*String::leak(name))),
            _ => arg,
        }
    })
}

/// A switch may be told as 1 or yes, too.
fn truth(arg: Arg) -> Arg {
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        arg.value_parser(BoolishValueParser::new())
    } else {
        arg
    }
}

fn variable(option: &str) -> String {
    format!("YUAN_{}", option.replace('-', "_").to_uppercase())
}

/// The command, in which what the file of `--config` has is said where nothing else is.
///
/// # Errors
/// The file cannot be read, is no TOML, or has an option that there is not, or one of the wrong type.
pub fn with_file(command: Command, arguments: &[OsString]) -> anyhow::Result<Command> {
    let Some(file) = named(arguments) else { return Ok(command) };
    let file = Path::new(&file);
    let text = fs::read_to_string(file)
        .with_context(|| format!("cannot read {}, the file of --config", file.display()))?;
    let table: Table = text.parse().map_err(|e| anyhow!("{} is no TOML file: {e}", file.display()))?;
    table.iter().try_fold(command, |command, (name, value)| {
        set(command, name, value).with_context(|| format!("in {}", file.display()))
    })
}

/// The file that the command line or the environment names.
fn named(arguments: &[OsString]) -> Option<OsString> {
    let mut arguments = arguments.iter().skip(2);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--") => break,
            Some("--config") => return arguments.next().cloned(),
            Some(text) if text.starts_with("--config=") => {
                return text.split_once('=').map(|(_, file)| file.into());
            }
            _ => {}
        }
    }
    env::var_os("YUAN_CONFIG").filter(|file| !file.is_empty())
}

fn set(command: Command, name: &str, value: &Value) -> anyhow::Result<Command> {
    let arg = |arg: &&Arg| {
        let positional = arg.is_positional() && arg.get_id() == name;
        !NOT.contains(&name) && (arg.get_long() == Some(name) || positional)
    };
    let Some(arg) = command.get_arguments().find(arg) else {
        bail!("there is no option {name:?}; `yuan serve --print-config` shows those that there are");
    };
    let values = match value {
        Value::Array(list) if matches!(arg.get_action(), ArgAction::Append) => {
            list.iter().map(|value| text(name, value)).collect::<anyhow::Result<Vec<_>>>()?
        }
        value => vec![text(name, value)?],
    };
    let id = arg.get_id().clone();
    // They live as long as the program.
    let values: Vec<&str> = values.into_iter().map(|value| &*String::leak(value)).collect();
    Ok(command.mut_arg(id, |arg| arg.required(false).default_values(values)))
}

fn text(name: &str, value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(value.to_string()),
        _ => bail!("{name} is {value}; give a text, a number, true or false"),
    }
}

/// Prints all options as they are, in the form of such a file.
///
/// # Errors
/// Standard output is closed.
pub fn print(command: &Command, matches: &ArgMatches) -> anyhow::Result<()> {
    let mut table = Table::new();
    for arg in command.get_arguments() {
        let name = arg.get_long().unwrap_or(arg.get_id().as_str());
        let Ok(Some(values)) = matches.try_get_raw(arg.get_id().as_str()) else { continue };
        if NOT.contains(&name) {
            continue;
        }
        let mut values: Vec<_> = values.map(|value| typed(&value.to_string_lossy())).collect();
        let value = match arg.get_action() {
            ArgAction::Append => Some(values.into()),
            _ => values.pop(),
        };
        table.extend(value.map(|value| (name.to_owned(), value)));
    }
    say!("{}", toml::to_string(&table)?.trim_end())
}

/// A number or a truth where the text is one.
fn typed(text: &str) -> Value {
    let number = text.parse().map(Value::Integer).or_else(|_| text.parse().map(Value::Boolean));
    number.unwrap_or_else(|_| text.into())
}
