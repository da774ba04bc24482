//! Operations against the store of regions and its model.

use kvferry_agent::fuzz;

use crate::Target;

pub(super) const TARGET: Target = Target {
    name: "store",
    run: fuzz::store,
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
