//! Why a call did not succeed, for programs and for people.

use std::ffi::c_char;

use kvferry_client::Failure;

use crate::kvf_status;

/// Bytes of a message, with its NUL.
pub const KVF_MESSAGE_BYTES: usize = 512;

/// What happened, to whom (agent, peer, region, block), and what to do: for people. Owned by the caller;
/// nothing in it needs to be freed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_error {
    /// The same as the call's return value.
    pub status: kvf_status,
    /// UTF-8, ends with a NUL; empty with KVF_OK; cut where it is longer.
    pub message: [c_char; KVF_MESSAGE_BYTES],
}

/// As C is told it.
pub(crate) fn to_c(failure: &Failure) -> kvf_error {
    kvf_error {
        status: failure.cause.into(),
        message: to_c_text(&failure.message),
    }
}

impl kvf_error {
    /// What a call that succeeded leaves.
    pub(crate) const NONE: Self = Self {
        status: kvf_status::KVF_OK,
        message: [0; KVF_MESSAGE_BYTES],
    };
}

/// Text in a field of fixed size: cut between characters, ended with a NUL, without one before.
pub(crate) fn to_c_text<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    let mut end = text.len().min(N.saturating_sub(1));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    for (place, byte) in field.iter_mut().zip(text.as_bytes().iter().take(end)) {
        *place = match byte {
            0 => b' ' as c_char,
            byte => *byte as c_char,
        };
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters_and_always_ends() {
        assert_eq!(to_c_text::<4>("ab"), [97, 98, 0, 0]);
        assert_eq!(to_c_text::<4>("abé"), [97, 98, 0, 0]);
        assert_eq!(to_c_text::<4>("a\0b"), [97, 32, 98, 0]);
        assert_eq!(to_c_text::<1>("abc"), [0]);
    }
}
