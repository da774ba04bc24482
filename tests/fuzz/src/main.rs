//! libFuzzer's program: one for all targets, which the environment chooses from. Use `tests/fuzz/run`.
#![no_main]

use std::sync::OnceLock;

use kvferry_fuzz::Target;

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

/// What to run. The environment, because the arguments are libFuzzer's.
#[allow(clippy::panic)] // a wrong name ends the program with it
fn chosen() -> &'static Target {
    let name = std::env::var("KVFERRY_FUZZ_TARGET").unwrap_or_default();
    Target::find(&name).unwrap_or_else(|| panic!("KVFERRY_FUZZ_TARGET={name:?} names no target"))
}

/// Leaves the target's seeds where libFuzzer will look for inputs.
fn write_seeds(target: &Target) {
    // An empty name would be whatever folder this runs in.
    let folder = std::env::var_os("KVFERRY_FUZZ_SEEDS");
    let Some(folder) = folder.filter(|folder| !folder.is_empty()) else {
        return;
    };
    for (n, seed) in (target.seeds)().iter().enumerate() {
        let path = std::path::Path::new(&folder).join(format!("{n}"));
        if let Err(error) = std::fs::write(&path, seed) {
            eprintln!("{}: {error}", path.display());
        }
    }
}

libfuzzer_sys::fuzz_target!(
    init: {
        write_seeds(CHOSEN.get_or_init(chosen));
    },
    |bytes: &[u8]| {
        (CHOSEN.get_or_init(chosen).run)(bytes);
    }
);
