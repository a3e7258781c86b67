//! Every `fwhactl` that the documentation shows is one that works: its command line is read, and its flow filter.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use clap::{Parser, error::ErrorKind};
use fwha::{
    api::FlowFilter,
    args::{CtlVerb, FlowsVerb, Fwhactl},
};

/// README.md and docs/*.md.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension() == Some(OsStr::new("md")));
    docs.chain([root.join("README.md")]).collect()
}

/// Commands in blocks, as lines (after a root's prompt or without), and in code spans.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    for (n, part) in text.split("```").enumerate() {
        if n % 2 == 1 {
            let lines = part.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
            commands.extend(lines.filter_map(|line| line.split([';', '#']).next()).map(str::to_owned));
        } else {
            commands.extend(part.split('`').skip(1).step_by(2).map(|span| span.replace("\\|", "|")));
        }
    }
    commands.retain(|command| command.starts_with("fwhactl "));
    commands
}

/// The words of a command. What may be left out is there, of alternatives the first is taken, and `…` stands for something.
fn words(command: &str) -> Vec<String> {
    let command = command.split(" | ").next().unwrap();
    let plain = command.replace(['[', ']'], " ");
    let word = |word: &str| {
        let first = word.split('|').next().unwrap();
        match first {
            "VERB" => "status".to_owned(),
            "TERM…" | "…" => "proto=tcp".to_owned(),
            "src=…" | "dst=…" => first.replace('…', "10.0.0.0/8"),
            "sport=…" | "dport=…" => first.replace('…', "22"),
            word => word.to_owned(),
        }
    };
    plain.split_whitespace().map(word).collect()
}

fn problem(command: &str) -> Option<String> {
    let args = match Fwhactl::try_parse_from(words(command)) {
        Ok(args) => args,
        // The name of a verb, not what is to be typed.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => return None,
        Err(error) => return Some(error.to_string()),
    };
    let CtlVerb::Flows(flows) = args.verb else { return None };
    let terms = match flows.verb {
        None => flows.filter.terms,
        Some(FlowsVerb::Count(filter)) => filter.terms,
        Some(FlowsVerb::Delete(delete)) => delete.filter.terms,
        Some(FlowsVerb::Diff(_)) => Vec::new(),
    };
    let mut filter = FlowFilter::default();
    terms.iter().find_map(|term| filter.set(term).err())
}

#[test]
fn every_fwhactl_of_the_documentation_is_understood() {
    let mut found = 0;
    for document in documents() {
        for command in commands(&fs::read_to_string(&document).unwrap()) {
            found += 1;
            let problem = problem(&command);
            assert_eq!(problem, None, "`{command}` in {}", document.display());
        }
    }
    assert!(found > 70, "{found} commands only: are they found at all?");
}

#[test]
fn a_command_that_does_not_work_is_noticed() {
    let text = "Try `fwhactl flows list src=…`, or\n```sh\nfwhactl flows src=10.0.0.1 # of one\n# fwhactl status --all\n```\n";
    let problems: Vec<bool> = commands(text).iter().map(|command| problem(command).is_some()).collect();
    assert_eq!(problems, [true, false, true]);
}
