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
