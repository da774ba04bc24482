//! Operations against the machine of sources and its model.

use kvferry_coordinator::fuzz;

use crate::Target;

pub(super) const TARGET: Target = Target {
    name: "sources",
    run: fuzz::sources,
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
