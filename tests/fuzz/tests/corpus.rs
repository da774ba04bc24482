//! Every target over its seeds and its corpus: what was found once is never found again.

#![allow(clippy::unwrap_used)] // a test

use std::{fs, path::Path};

use kvferry_fuzz::TARGETS;

/// Runs before tests are about speed: a corpus that grows over this is to be minimised (tests/fuzz/run NAME --merge).
const MAX_CORPUS_BYTES: u64 = 1 << 20;

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn no_input_that_is_known_breaks_a_promise() {
    for target in TARGETS {
        for (n, seed) in (target.seeds)().iter().enumerate() {
            run(target, &format!("seed {n}"), seed);
        }
        for (path, input) in corpus(target.name) {
            run(target, &path, &input);
        }
        run(target, "nothing", &[]);
    }
}

fn run(target: &kvferry_fuzz::Target, what: &str, input: &[u8]) {
    let run = target.run;
    let outcome = std::panic::catch_unwind(|| run(input));
    assert!(outcome.is_ok(), "{}: {what}", target.name);
}

#[test]
fn each_target_has_a_corpus_and_each_corpus_a_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut bytes = 0;
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name();
        let name = name.to_str().unwrap();
        assert!(TARGETS.iter().any(|target| target.name == name), "{name}");
    }
    for target in TARGETS {
        let files = corpus(target.name);
        assert!(!files.is_empty(), "{} has none", target.name);
        bytes += files
            .iter()
            .map(|(_, input)| input.len() as u64)
            .sum::<u64>();
    }
    assert!(bytes <= MAX_CORPUS_BYTES, "{bytes} bytes");
}
