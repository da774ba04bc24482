//! The pull engine in a small world where bytes decide what happens: one outcome a block by the deadline, bytes of one
//! sealed version, nothing written after it settled.

use kvferry_agent::fuzz;

use crate::Target;

pub(super) const TARGET: Target = Target {
    name: "pull_engine",
    run: fuzz::pull_engine,
    seeds,
};

/// Any bytes are operations.
fn seeds() -> Vec<Vec<u8>> {
    (0..4u8)
        .map(|seed| {
            (0..160u8)
                .map(|n| n.wrapping_mul(37) ^ seed.wrapping_mul(n))
                .collect()
        })
        .collect()
}
