//! Compiles the .proto files with protox: no protoc on the build machine.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 11] = [
    "types",
    "coordinator",
    "agent",
    "peer",
    "sources",
    "tensors",
    "watch",
    "replication",
    "claims",
    "locations",
    "tickets",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = FILES.map(|name| format!("kvferry/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    // Kept beside the generated code: the reflection service serves it.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        out.join("kvferry_descriptor.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        // Payloads and hashes are sliced out of the receive buffer, not copied.
        .bytes(".kvferry.v1")
        // Rare and large beside the others, which would all be as large.
        .boxed(".kvferry.v1.CoordinatorMessage.message.replicate")
        .compile_fds(descriptors)?;
    Ok(())
}
