//! Ways in for `tests/fuzz` (feature `fuzzing`): what is private and reads what came from outside, each as one function.

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

pub use crate::service::fuzz::{Calls, locate_as_sent, session_events};

/// Operations against the directory and its model.
///
/// # Panics
/// Where they differ.
pub fn directory(bytes: &[u8]) {
    crate::directory::fuzz(bytes);
}

/// Operations against the machine of sources and its model.
///
/// # Panics
/// Where they differ.
pub fn sources(bytes: &[u8]) {
    crate::sources::fuzz(bytes);
}

/// Most operations of one run: a model is asked everything after each.
const MAX_OPERATIONS: usize = 100;

/// A value for every four bytes: where bytes are cut out, doubled or moved, so are operations.
#[allow(clippy::expect_used)] // none of the strategies refuses
pub(crate) fn chosen<S: Strategy>(strategy: &S, bytes: &[u8]) -> Vec<S::Value> {
    let value = |four: &[u8]| {
        let seed = four
            .iter()
            .fold(1u64, |all, byte| all << 8 | u64::from(*byte));
        // Seeds that differ in a bit must not begin alike.
        let mixed = u128::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let random = TestRng::from_seed(RngAlgorithm::XorShift, &(mixed | 1).to_be_bytes());
        let mut runner = TestRunner::new_with_rng(Config::default(), random);
        let tree = strategy.new_tree(&mut runner).expect("a value");
        tree.current()
    };
    bytes.chunks(4).take(MAX_OPERATIONS).map(value).collect()
}
