//! Headers of safetensors files, as the command line reads them.

use std::{fs::File, io::Write, os::fd::AsRawFd};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::Target;

pub(super) const TARGET: Target = Target {
    name: "safetensors",
    run,
    seeds,
};

// The command's own file: a program has no library to take it from.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../../src/safetensors.rs"]
mod command;

fn run(bytes: &[u8]) {
    let mut file = File::from(memfd_create("kvferry-fuzz", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let Ok(read) = command::Safetensors::open(path.as_ref()) else {
        return;
    };
    assert_eq!(read.data_start + read.data_bytes, bytes.len() as u64);
    assert!(!read.tensors.is_empty());
    for tensor in &read.tensors {
        assert!(tensor.offset + tensor.bytes <= read.data_bytes);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let file = |header: &str, data: usize| {
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.as_bytes());
        out.resize(out.len() + data, 7);
        out
    };
    vec![
        file(
            r#"{"a":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}}"#,
            4,
        ),
        file(
            r#"{"__metadata__":{"x":"y"},"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},"b":{"dtype":"F8_E4M3","shape":[],"data_offsets":[2,3]}}   "#,
            3,
        ),
        file("{}", 0),
    ]
}
