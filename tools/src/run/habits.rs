//! What people type who come from llama.cpp and ollama: names that mean the same are taken, and for others there is a word on what is here in their place.

use std::ffi::OsString;

use clap::{Arg, Command, Error};
use yuan_tools::tell;

/// Names of llama.cpp for options of ours, by ours.
const ALIASES: [(&str, &[&str]); 5] = [
    ("context", &["ctx-size"]),
    ("tokens", &["n-predict", "predict"]),
    ("batch-tokens", &["batch-size"]),
    ("temp", &["temperature"]),
    ("ignore-eod", &["ignore-eos"]),
];

/// The short option of the context.
const CONTEXT: (&str, char) = ("context", 'c');

/// Options and commands of others, and what to say.
const ADVICE: [(&[&str], &str); 16] = [
    (
        &["-ngl", "--n-gpu-layers", "--gpu-layers"],
        "layers are not counted here: --gpu-memory SIZE says how much of the GPU is used, and --gpu off that none is",
    ),
    (&["-cnv", "--conversation", "-i", "--interactive"], "`yuan chat MODEL` holds a conversation"),
    (&["-st", "--single-turn"], "`yuan generate MODEL --chat -p QUESTION` answers one question"),
    (&["-hf", "--hf-repo"], "`yuan pull OWNER/NAME` fetches a model, and commands then take its name"),
    (&["-sys", "--system-prompt"], "`yuan chat MODEL --system TEXT`"),
    (
        &["-ctk", "-ctv", "--cache-type-k", "--cache-type-v"],
        "--kv TYPE, or --kv KEYS:VALUES, as in q8_0:q4_0",
    ),
    (&["-fa", "--flash-attn"], "attention needs no switch here"),
    (&["--jinja", "--chat-template"], "the model's own chat template is always used"),
    (&["--no-mmap"], "--paging streamed reads experts into memory of the program"),
    (&["--mlock"], "--memory SIZE says how much memory the program may keep"),
    (&["-tb"], "--threads-batch N"),
    (&["-np", "--parallel"], "`yuan serve` takes as many requests at a time as there is memory for"),
    (
        &["-md", "--model-draft", "--draft-max", "--draft-min"],
        "drafts come from the text itself: --draft auto, off, or 1 to 3",
    ),
    (&["-j"], "--json-schema FILE"),
    (&["run"], "`yuan chat MODEL` holds a conversation, `yuan generate MODEL -p TEXT` continues a text"),
    (&["ls", "remove", "show"], "`yuan list`, `yuan rm`, `yuan inspect`"),
];

/// The command with the names that mean the same.
pub fn allowed(command: Command) -> Command {
    command.mut_subcommands(|command| {
        command.mut_args(|arg| {
            let arg = match arg.get_long() {
                Some(long) if long == CONTEXT.0 && arg.get_short().is_none() => arg.short(CONTEXT.1),
                _ => arg,
            };
            named(arg)
        })
    })
}

/// The option with the names that mean the same.
pub fn named(arg: Arg) -> Arg {
    let theirs = ALIASES.iter().find(|(ours, _)| arg.get_long() == Some(ours));
    theirs.map_or(arg.clone(), |(_, theirs)| arg.aliases(*theirs))
}

/// Ends the program as clap does, with a word of advice where what was asked is known from elsewhere.
pub fn exit(error: &Error, arguments: &[OsString]) -> ! {
    let advice = advice(arguments);
    // `-hf` was read as a question for help.
    if let (false, Some((name @ "-hf", advice))) = (error.use_stderr(), advice) {
        tell!("error: unexpected argument '{name}' found\n\n  tip: {advice}");
        std::process::exit(2);
    }
    let _ = error.print();
    if let (true, Some((name, advice))) = (error.use_stderr(), advice) {
        tell!("\n  tip: {name}: {advice}");
    }
    std::process::exit(error.exit_code())
}

/// The first argument that is another program's, and what is here in its place.
fn advice(arguments: &[OsString]) -> Option<(&str, &'static str)> {
    let texts = arguments.iter().skip(1).filter_map(|argument| argument.to_str());
    texts.take_while(|text| *text != "--").find_map(|text| {
        let name = text.split_once('=').map_or(text, |(name, _)| name);
        let (_, advice) = ADVICE.iter().find(|(theirs, _)| theirs.contains(&name))?;
        Some((name, *advice))
    })
}
