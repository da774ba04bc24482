//! Writes `include/kvferry.h` from the crate's source; with `--check`, only says whether it is up to date.

use std::{fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let check = std::env::args().nth(1).as_deref() == Some("--check");
    let capi = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let written = capi.join("include/kvferry.h");
    let mut made = Vec::new();
    let bindings = cbindgen::Config::from_file(capi.join("cbindgen.toml")).and_then(|config| {
        cbindgen::Builder::new()
            .with_config(config)
            .with_crate(&capi)
            .generate()
            .map_err(|error| error.to_string())
    });
    match bindings {
        Ok(bindings) => bindings.write(&mut made),
        Err(error) => {
            eprintln!("the header cannot be made: {error}");
            return ExitCode::FAILURE;
        }
    }
    let made = for_c(&String::from_utf8_lossy(&made));
    if check {
        if fs::read(&written).is_ok_and(|kept| kept == made.as_bytes()) {
            return ExitCode::SUCCESS;
        }
        eprintln!("include/kvferry.h is not what the source says: run ffi/capi/regenerate.sh");
        return ExitCode::FAILURE;
    }
    match fs::write(&written, made) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", written.display());
            ExitCode::FAILURE
        }
    }
}

/// Rust asks for a section on safety with every function; in C the header's own rules are that section.
fn for_c(header: &str) -> String {
    header
        .replace(" *\n * # Safety\n * The rules at the top.\n */", " */")
        .replace(" * # Safety\n * The rules at the top; the", " * The")
        .replace(" * # Safety\n * The rules at the top; ", " * ")
        .replace(" * # Safety\n * The rules at the top. ", " * ")
}
