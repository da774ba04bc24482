//! The header in the repository is what the source says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{path::Path, process::Command};

#[test]
fn the_header_is_up_to_date() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("regenerate.sh");
    let output = Command::new(script)
        .arg("--check")
        .output()
        .expect("it runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_shared_library_is_named_by_its_abi() {
    let build = include_str!("../build.rs");
    let soname = format!("libkvferry.so.{}\"", kvferry::KVF_ABI_VERSION);
    assert!(build.contains(&soname), "build.rs names {soname}");
}

#[test]
fn the_guide_lists_every_status_and_every_call() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let (header, guide) = (read("include/kvferry.h"), read("../../docs/c-api.md"));
    let statuses = header
        .split("typedef enum kvf_status {")
        .nth(1)
        .and_then(|rest| rest.split("} kvf_status;").next())
        .unwrap();
    let rows = statuses
        .lines()
        .filter_map(|line| line.trim().split_once(" = "));
    let mut count = 0;
    for (name, number) in rows.filter(|(name, _)| name.starts_with("KVF_")) {
        let row = format!("| `{name}` | {} |", number.trim_end_matches(','));
        assert!(guide.contains(&row), "docs/c-api.md has {row}");
        count += 1;
    }
    assert_eq!(count, 40);
    let calls = header
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(')
        .filter_map(|word| word.split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("kvf_"));
    for name in calls {
        assert!(
            guide.contains(&format!("`{name}`")),
            "docs/c-api.md has {name}"
        );
    }
}
