//! `yuan`: run a Yuan 2.0 model.

use std::{env, ffi::OsString, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod answer;
mod bandwidth;
mod bench;
mod chat;
mod compare;
mod config;
mod demo;
mod doctor;
mod fits;
mod forecast;
mod generate;
mod grammar;
mod habits;
mod inspect;
mod list;
mod logits;
mod perplexity;
mod plan;
mod pull;
mod remove;
mod replay;
mod sampling;
mod serve;
mod tokenize;
mod trace;

use yuan_tools::shell::{Completions, Man};

/// Run Yuan2.0-M32 on the machine you own
#[derive(Parser)]
#[command(
    name = "yuan",
    version = yuan::VERSION,
    max_term_width = 110,
    after_help = "\
Examples:
  yuan demo
  yuan pull m32
  yuan chat m32
  yuan generate model.gguf -p '写一首关于秋天的诗<sep>' -n 128
  yuan chat model.gguf --temp 0.7
  yuan serve model.gguf
  yuan bench model.gguf -p 512 -n 128
A model is a file, or a name of `yuan list`; where there is one only, none needs to be named. Containers are made by `yuan pull` and yuan-quant."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Convert the demo model and stream an English and a Chinese text from it
    Demo(demo::Demo),
    /// Continue a prompt
    Generate(generate::Generate),
    /// Hold a conversation with a model
    Chat(chat::Chat),
    /// Serve a model over HTTP, for clients of OpenAI, Anthropic, ollama and llama-server
    Serve(Box<serve::Serve>),
    /// Fetch a published model, by its name, and convert it
    Pull(pull::Pull),
    /// Show the models of this machine
    List(list::List),
    /// Remove a model of this machine
    Rm(remove::Remove),
    /// Show the tokens of a text
    Tokenize(tokenize::Tokenize),
    /// Write the logits of given tokens to a NumPy file
    Logits(logits::Logits),
    /// Measure how well a model predicts a text, and how far it is from another model
    Perplexity(perplexity::Perplexity),
    /// Say in one table what smaller containers of a model cost and gain
    Compare(Box<compare::Compare>),
    /// Show what a container holds
    Inspect(inspect::Inspect),
    /// Measure the speed of prefill and decode
    Bench(bench::Bench),
    /// Say how a model would run on this machine, and why
    Plan(plan::Plan),
    /// Check this machine, and a model, and say what to do about what is wrong
    Doctor(doctor::Doctor),
    /// Record which experts a run uses
    Trace(trace::Trace),
    /// Compute from a trace how other memories, drives and policies would do
    Replay(replay::Replay),
    /// Print a script for your shell, by which Tab completes commands and options
    Completions(Completions),
    /// Write manual pages into a folder
    Man(Man),
}

fn main() -> ExitCode {
    // A negative number is a value, and no option that nobody knows.
    let command = Cli::command().mut_subcommands(|command| command.allow_negative_numbers(true));
    let mut arguments: Vec<OsString> = env::args_os().collect();
    if arguments.get(1).is_some_and(|name| name == "bench") {
        // llama-bench's spelling of an option that is no letter.
        arguments
            .iter_mut()
            .filter(|argument| *argument == "-pg")
            .for_each(|argument| *argument = "--pg".into());
    }
    let mut failure = None;
    let command = match arguments.get(1).is_some_and(|name| name == "serve") {
        false => command,
        true => command.mut_subcommand("serve", |serve| {
            let serve = config::with_variables(serve);
            config::with_file(serve.clone(), &arguments).unwrap_or_else(|error| {
                failure = Some(error);
                serve
            })
        }),
    };
    if let Some(error) = failure {
        return yuan_tools::console::run(|| Err(error));
    }
    let command = habits::allowed(command);
    let matches =
        command.clone().try_get_matches_from(&arguments).unwrap_or_else(|e| habits::exit(&e, &arguments));
    if let Some(("serve", asked)) = matches.subcommand()
        && asked.get_flag("print_config")
        && let Some(serve) = command.find_subcommand("serve")
    {
        return yuan_tools::console::run(|| config::print(serve, asked));
    }
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let log = if let Command::Serve(serve) = &cli.command { serve.log() } else { None };
    yuan_tools::console::run_with(log, || match cli.command {
        Command::Demo(c) => c.run(),
        Command::Generate(c) => c.run(),
        Command::Chat(c) => c.run(),
        Command::Serve(c) => c.run(),
        Command::Pull(c) => c.run(),
        Command::List(c) => c.run(),
        Command::Rm(c) => c.run(),
        Command::Tokenize(c) => c.run(),
        Command::Logits(c) => c.run(),
        Command::Perplexity(c) => c.run(),
        Command::Compare(c) => c.run(),
        Command::Inspect(c) => c.run(),
        Command::Bench(c) => c.run(),
        Command::Plan(c) => c.run(),
        Command::Doctor(c) => c.run(command),
        Command::Trace(c) => c.run(),
        Command::Replay(c) => c.run(),
        Command::Completions(c) => c.run(command),
        Command::Man(c) => c.run(command),
    })
}
