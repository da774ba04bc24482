//! What this library is.

use std::ffi::c_char;

/// Raised when something that was compiled against an older header would no longer work.
pub const KVF_ABI_VERSION: u32 = 1;

/// The KVF_ABI_VERSION the library was made with. A program compares it with its header's before it
/// calls anything else.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_abi_version() -> u32 {
    KVF_ABI_VERSION
}

/// The library's version, for people ("0.1.0"). Lasts as long as the process.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_version() -> *const c_char {
    const VERSION: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(
        concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes(),
    ) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}
