//! Names the shared library by its ABI, as the loader expects.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Raised together with KVF_ABI_VERSION; a test compares them.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkvferry.so.1");
}
