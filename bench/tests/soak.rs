//! A few seconds of the soak: does it do all it says, and is the curve there? Nothing about speed, and
//! nothing about the verdict: two seconds are no curve.

use std::process::Command;

use serde_json::Value;

#[test]
fn a_short_soak_does_everything_and_leaves_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_coordinator-soak"))
        .args([
            "--minutes",
            "0.07",
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
    let after = lines.pop().unwrap();

    let samples: Vec<&Value> = lines.iter().map(|line| &line["sample"]).collect();
    assert!(samples.len() >= 16, "{} samples", samples.len());
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
        assert!(most(key) > Some(0), "{key}: {told}");
    }
    assert!(most("nodes") >= Some(8));

    let done = last["done"].as_object().unwrap();
    for (kind, count) in done {
        // Ten seconds must pass before a watcher is cut off; what is refused and who starves is a matter of chance, and
        // a wish is only ordered where somebody holds the block.
        if !["watch_cut", "refused", "ordered", "starved"].contains(&kind.as_str()) {
            assert!(count.as_u64() > Some(0), "{kind} never happened: {last}");
        }
    }
    assert!(
        last["fit"]["growth"].is_f64() && last["fit"]["growth_error"].is_f64(),
        "{last}"
    );
    assert_eq!(last["settled"], true, "{after}");
    let flat = last["verdict"] == "flat";
    assert_eq!(output.status.code(), Some(i32::from(!flat)), "{last}");
}
