//! Variables of the environment that programs of ours read: which are set, and whether they make sense.

use std::{collections::BTreeMap, env, ffi::OsString, path::Path};

use clap::Command;
use serde_json::json;
use yuan_tools::models::resolve;

use super::finding::Finding;
use crate::config::with_variables;

/// Variables that are no options of `yuan serve`.
const OURS: [&str; 7] = [
    "YUAN_CACHE",
    "YUAN_KERNELS",
    "YUAN_LIBRARY",
    "YUAN_MODEL",
    "YUAN_MODELS",
    "YUAN_PREFETCH",
    "YUAN_API_KEY",
];
/// Those of others that programs of ours read.
const THEIRS: [&str; 9] = [
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HF_HOME",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "MODELSCOPE_DOMAIN",
    "RUST_LOG",
    "HTTPS_PROXY",
    "TMPDIR",
];

/// What the variables say.
pub fn variables(command: &Command) -> Vec<Finding> {
    let all: BTreeMap<String, OsString> =
        env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
    let serve = command.find_subcommand("serve").cloned().map(with_variables);
    judge(&all, serve)
}

fn judge(all: &BTreeMap<String, OsString>, serve: Option<Command>) -> Vec<Finding> {
    let options: Vec<String> = serve
        .iter()
        .flat_map(Command::get_arguments)
        .filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned()))
        .collect();
    let known = |name: &str| OURS.contains(&name) || options.iter().any(|option| option == name);
    let mut findings = Vec::new();
    let set: Vec<_> = all.keys().filter(|name| known(name) || THEIRS.contains(&name.as_str())).collect();
    if !set.is_empty() {
        let shown = |name: &String| {
            let secret = ["KEY", "TOKEN"].iter().any(|word| name.ends_with(word));
            let value = if secret { "(not shown)".into() } else { all[name].to_string_lossy() };
            format!("{name}={value}")
        };
        let says = set.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
        findings.push(Finding::ok("environment", says).with(json!({ "set": set })));
    }
    for (name, value) in all.iter().filter(|(name, _)| name.starts_with("YUAN_")) {
        let text = value.to_string_lossy();
        let wrong = |says: String, remedy: &str| Finding::wrong("environment", says, remedy);
        match name.as_str() {
            "YUAN_PREFETCH" if text.parse::<u64>().map_or(true, |bytes| bytes > 1 << 20) => {
                findings.push(wrong(
                    format!("YUAN_PREFETCH={text} is no distance: no model opens"),
                    "unset it, or give bytes from 0 to 1048576",
                ))
            }
            "YUAN_CACHE" if !text.is_empty() && Path::new(value).exists() && !Path::new(value).is_dir() => {
                findings.push(Finding::note(
                    "environment",
                    format!("YUAN_CACHE={text} is no folder: what is measured is measured again each time"),
                    "name a folder, or set it to nothing so that nothing is kept",
                ));
            }
            "YUAN_MODEL" if !text.is_empty() => {
                if let Err(error) = resolve(Path::new(value)) {
                    findings.push(wrong(
                        format!("YUAN_MODEL: {error}"),
                        "name a file or a model of `yuan list`, or unset it",
                    ));
                }
            }
            name if !known(name) => {
                let near = OURS
                    .iter()
                    .copied()
                    .chain(options.iter().map(String::as_str))
                    .find(|ours| alike(ours, name));
                let near = near.map_or_else(
                    || "unset it, unless another program wants it".to_owned(),
                    |ours| format!("is {ours} meant?"),
                );
                findings.push(Finding::note(
                    "environment",
                    format!("{name} is no variable of ours, and does nothing"),
                    near,
                ));
            }
            _ => {}
        }
    }
    if let Some(serve) = serve.filter(|_| all.keys().any(|name| options.contains(name)))
        && let Err(error) = serve.no_binary_name(true).try_get_matches_from(Vec::<OsString>::new())
    {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        let says = format!("`yuan serve` does not start: {}", first.trim_start_matches("error: "));
        findings.push(Finding::wrong(
            "environment",
            says,
            "unset the variable of that option, or correct it; `yuan serve --help` says what it takes",
        ));
    }
    findings
}

/// Whether two names differ by a letter or two.
fn alike(a: &str, b: &str) -> bool {
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let exchanged = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = exchanged.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()] <= 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Mark;
    use clap::Arg;

    fn of(set: &[(&str, &str)]) -> Vec<Finding> {
        let port = Arg::new("port").long("port").value_parser(clap::value_parser!(u16));
        let all = set.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        judge(&all, Some(with_variables(Command::new("serve").arg(port))))
    }

    #[test]
    fn what_is_set_is_shown_but_for_secrets() {
        assert_eq!(of(&[("PATH", "/bin")]), []);
        let shown = of(&[
            ("YUAN_MODELS", "/m"),
            ("YUAN_API_KEY", "secret"),
            ("HF_TOKEN", "hf_secret"),
            ("PATH", "/bin"),
        ]);
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].mark, shown[0].says.contains("YUAN_MODELS=/m")), (Mark::Ok, true));
        assert!(!format!("{shown:?}").contains("secret"), "{shown:?}");
    }

    #[test]
    fn senseless_values_and_unknown_names_are_told() {
        let marks = |set: &[(&str, &str)]| of(set).iter().map(|finding| finding.mark).collect::<Vec<_>>();
        assert_eq!(marks(&[("YUAN_PREFETCH", "1024")]), [Mark::Ok]);
        assert_eq!(marks(&[("YUAN_PREFETCH", "far")]), [Mark::Ok, Mark::Wrong]);
        assert_eq!(marks(&[("YUAN_MODEL", "no-such-model")]), [Mark::Ok, Mark::Wrong]);
        assert_eq!(marks(&[("YUAN_CACHE", "")]), [Mark::Ok]);
        let typo = of(&[("YUAN_KERNEL", "avx2")]);
        assert_eq!((typo[0].mark, typo[0].remedy.as_deref()), (Mark::Note, Some("is YUAN_KERNELS meant?")));
        assert_eq!(of(&[("YUAN_SOMETHING_ELSE", "")])[0].mark, Mark::Note);
    }

    #[test]
    fn distances_of_names() {
        assert!(alike("YUAN_MODEL", "YUAN_MODLE") && alike("YUAN_CACHE", "YUAN_CACH") && alike("a", "a"));
        assert!(!alike("YUAN_CACHE", "YUAN_MODELS") && !alike("", "abc"));
    }
}
