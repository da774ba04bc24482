//! An answer about claims, hash by hash.

use crate::pb;

impl pb::ClaimResponse {
    /// The state of each hash, in their order. One that this release does not know is unspecified, where the generated
    /// `states()` leaves it out: what follows would be taken for other hashes' states.
    pub fn state_of_each(&self) -> impl Iterator<Item = pb::ClaimState> + '_ {
        let known = |state: &i32| pb::ClaimState::try_from(*state).unwrap_or_default();
        self.states.iter().map(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_not_known_keeps_its_place() {
        let answer = pb::ClaimResponse {
            states: vec![77, pb::ClaimState::Granted.into()],
            ..pb::ClaimResponse::default()
        };
        let states: Vec<_> = answer.state_of_each().collect();
        assert_eq!(
            states,
            [pb::ClaimState::Unspecified, pb::ClaimState::Granted]
        );
    }
}
