//! A few seconds of the soak: does it do all it says, and is the curve there? Nothing about speed, and
//! nothing about the verdict: two seconds are no curve.

// clippy.toml lets tests unwrap; it does not see that helpers beside them are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use serde_json::Value;

/// For how long, in minutes. On a machine that is busy with other things some of it does not happen in so short a time: then in
/// a longer one.
const LENGTHS: [&str; 3] = ["0.07", "0.3", "1.5"];

#[test]
fn a_short_soak_does_everything_and_leaves_nothing() {
    let mut lacking = Vec::new();
    for minutes in LENGTHS {
        lacking = soak(minutes);
        if lacking.is_empty() {
            return;
        }
    }
    panic!("never happened: {lacking:?}");
}

/// What did not happen in so many minutes. All else must be in order, however short that was.
fn soak(minutes: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_coordinator-soak"))
        .args([
            "--minutes",
            minutes,
            "--nodes",
            "8",
            "--blocks-per-node",
            "2000",
        ])
        .args(["--samples", "24", "--json"])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let mut lines: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = lines.pop().unwrap_or_else(|| panic!("nothing: {errors}"));
    let after = lines
        .pop()
        .unwrap_or_else(|| panic!("{last} alone: {errors}"));
    assert_eq!(last["settled"], true, "{after}");
    let flat = last["verdict"] == "flat";
    assert_eq!(output.status.code(), Some(i32::from(!flat)), "{last}");

    let mut lacking = Vec::new();
    let samples: Vec<&Value> = lines.iter().map(|line| &line["sample"]).collect();
    if samples.len() < 16 {
        lacking.push(format!("{} samples", samples.len()));
    }
    let most = |key: &str| samples.iter().filter_map(|s| s[key].as_u64()).max();
    for key in [
        "resident_bytes",
        "files",
        "blocks",
        "copies",
        "claims",
        "locations",
        "wishes",
    ] {
        if most(key) == Some(0) {
            lacking.push(format!("{key} in a sample"));
        }
        assert!(most(key).is_some(), "{key}: {told}");
    }
    if most("nodes") < Some(8) {
        lacking.push("all nodes in a sample".to_owned());
    }
    if !(last["fit"]["growth"].is_f64() && last["fit"]["growth_error"].is_f64()) {
        lacking.push("a fit".to_owned());
    }
    for (kind, count) in last["done"].as_object().unwrap() {
        // Ten seconds must pass before a watcher is cut off; what is refused and who starves is a matter of chance, and
        // a wish is only ordered where somebody holds the block.
        let chance = ["watch_cut", "refused", "ordered", "starved"].contains(&kind.as_str());
        if !chance && count.as_u64() == Some(0) {
            lacking.push(kind.clone());
        }
    }
    lacking
}
