//! The list of VRRP's rules in `docs/vrrp-conformance.md` names tests that there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// All Rust sources below a directory.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// The names of functions that take nothing, as tests do, or that a property test gives values to.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines().map(str::trim).peekable();
    std::iter::from_fn(move || {
        while let Some(line) = lines.next() {
            let function = lines.peek().and_then(|next| next.strip_prefix("fn "));
            if line == "#[test]"
                && let Some((name, _)) = function.and_then(|f| f.split_once('('))
            {
                return Some(name);
            }
        }
        None
    })
}

#[test]
fn every_rule_of_vrrp_has_tests_and_they_exist() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let mut files = Vec::new();
    for dir in ["fwha-proto/src", "fwha/src", "tests/tests"] {
        sources(&root.join(dir), &mut files)?;
    }
    let texts: Vec<String> = files.iter().map(fs::read_to_string).collect::<Result<_, _>>()?;
    let known: BTreeSet<&str> = texts.iter().flat_map(|text| tests_in(text)).collect();

    let list = fs::read_to_string(root.join("docs/vrrp-conformance.md"))?;
    let (rules, _) = list.split_once("## What differs").context("the last chapter")?;
    let mut named = BTreeSet::new();
    for row in rules.lines().filter(|l| l.starts_with("| ") && !l.ends_with("| tests |")) {
        let cell = row.trim_end_matches(" |").rsplit_once(" | ").context("three columns")?.1;
        let tests: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        named.extend(tests);
    }
    let missing: Vec<&&str> = named.difference(&known).collect();
    assert!(missing.is_empty(), "there are no such tests: {missing:#?}");
    let of_rules = known.iter().filter(|name| name.starts_with("rule_"));
    let unnamed: Vec<&&str> = of_rules.filter(|name| !named.contains(*name)).collect();
    assert!(unnamed.is_empty(), "the list lacks {unnamed:#?}");
    Ok(())
}
