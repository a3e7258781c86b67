//! What fuzzing has kept, once more: every input that reached something new, and every one that a mistake was found by.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use fwha_fuzz::Target;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The paths in a directory, in order.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let read =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("read {}: {error}", directory.display()));
    let mut paths: Vec<_> = read.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn no_input_of_the_corpora_finds_anything() {
    for target in Target::ALL {
        let inputs = entries(&corpora().join(target.name));
        assert!(!inputs.is_empty(), "the corpus of {} is empty", target.name);
        for path in inputs {
            let data = fs::read(&path).unwrap();
            assert!(catch_unwind(|| (target.run)(&data)).is_ok(), "{} with {}", target.name, path.display());
        }
    }
}

#[test]
fn every_corpus_has_its_target() {
    for directory in entries(&corpora()) {
        let name = directory.file_name().unwrap().to_str().unwrap();
        assert!(Target::named(name).is_some(), "{} is of no target", directory.display());
    }
}
