//! Claims: the exclusive, expiring right to produce or store a block.
//!
//! A claim is exclusive at one coordinator. So they are asked in the order in which they are
//! configured, everywhere the same, and the next one only where one does not answer.

use std::time::Duration;

use kvferry_proto::{InvalidMessage, pb};
use tokio::time::Instant;

use super::{CoordinatorError, Coordinators, client::ask_in_turn};

/// What was granted, under one lease of one coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The lease's token there.
    pub token: u64,
    /// Which coordinator gave it.
    pub coordinator: usize,
    /// How long it lasts.
    pub ttl: Duration,
}

/// A coordinator's answer, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedBlocks {
    /// One per hash.
    pub states: Vec<pb::ClaimState>,
    /// None where nothing was granted.
    pub granted: Option<Granted>,
    /// Leases of others.
    pub holders: Vec<pb::ClaimHolder>,
    /// Into `holders`, one per hash that is claimed.
    pub holder_index: Vec<u32>,
}

impl Coordinators {
    /// Claims so many blocks.
    ///
    /// # Errors
    /// [`CoordinatorError`]; on an outage some may have been granted all the same, until they expire.
    pub async fn claim(
        &self,
        message: pb::ClaimRequest,
        asked: usize,
        deadline: Instant,
    ) -> Result<ClaimedBlocks, CoordinatorError> {
        let ask = async |mut client: Client, request| client.claim(request).await;
        let (at, answer) = ask_in_turn(&self.claims, 0, deadline, message, ask).await?;
        check(answer, asked, at).map_err(|source| CoordinatorError::Nonsense {
            address: self.claims[at].0.clone(),
            source,
        })
    }

    /// A lease lasts for so long from now at least; how many claims it holds comes back.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn renew_claims(
        &self,
        granted: Granted,
        ttl_ms: u32,
        deadline: Instant,
    ) -> Result<u32, CoordinatorError> {
        let message = pb::RenewClaimsRequest {
            token: granted.token,
            ttl_ms,
        };
        let ask = async |mut client: Client, request| client.renew_claims(request).await;
        let (_, answer) = ask_in_turn(self.only(granted), 0, deadline, message, ask).await?;
        Ok(answer.claims)
    }

    /// Gives claims back, all of the lease where none are named; how many there were comes back.
    ///
    /// # Errors
    /// [`CoordinatorError`].
    pub async fn release_claims(
        &self,
        granted: Granted,
        hashes: Option<pb::PackedHashes>,
        deadline: Instant,
    ) -> Result<u32, CoordinatorError> {
        let message = pb::ReleaseClaimsRequest {
            token: granted.token,
            hashes,
        };
        let ask = async |mut client: Client, request| client.release_claims(request).await;
        let (_, answer) = ask_in_turn(self.only(granted), 0, deadline, message, ask).await?;
        Ok(answer.released)
    }

    /// The one that gave it: another does not know it.
    fn only(&self, granted: Granted) -> &[(String, Client)] {
        let at = granted.coordinator;
        self.claims.get(at..=at).unwrap_or(&[])
    }
}

type Client = pb::claims_client::ClaimsClient<kvferry_security::tls::Line>;

pub(super) fn check(
    answer: pb::ClaimResponse,
    asked: usize,
    coordinator: usize,
) -> Result<ClaimedBlocks, InvalidMessage> {
    let column = |what, got, want| match got == want {
        true => Ok(()),
        false => Err(InvalidMessage::Columns { what, got, want }),
    };
    column("states", answer.states.len(), asked)?;
    let states: Vec<pb::ClaimState> = answer.state_of_each().collect();
    if states.contains(&pb::ClaimState::Unspecified) {
        return Err(InvalidMessage::Missing("a claim's state"));
    }
    let claimed = states.iter().filter(|s| **s == pb::ClaimState::Claimed);
    column("holder_index", answer.holder_index.len(), claimed.count())?;
    let holders = answer.holders.len();
    if let Some(row) = answer
        .holder_index
        .iter()
        .find(|row| **row as usize >= holders)
    {
        return Err(InvalidMessage::OutOfBounds {
            what: "a holder's row",
            got: (*row).into(),
            max: (holders as u64).saturating_sub(1),
        });
    }
    let granted = states.contains(&pb::ClaimState::Granted);
    if granted != (answer.token != 0) {
        return Err(InvalidMessage::Missing("the token of what was granted"));
    }
    Ok(ClaimedBlocks {
        granted: granted.then(|| Granted {
            token: answer.token,
            coordinator,
            ttl: Duration::from_millis(answer.ttl_ms.into()),
        }),
        states,
        holders: answer.holders,
        holder_index: answer.holder_index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> pb::ClaimResponse {
        use pb::ClaimState::{Claimed, Granted, Stored};
        pb::ClaimResponse {
            states: [Granted, Claimed, Stored].map(i32::from).to_vec(),
            token: 5,
            ttl_ms: 1_000,
            holders: vec![pb::ClaimHolder::default()],
            holder_index: vec![0],
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let granted = check(answer(), 3, 1).unwrap().granted.unwrap();
        assert_eq!((granted.token, granted.coordinator), (5, 1));
        let refused = |change: fn(&mut pb::ClaimResponse)| {
            let mut message = answer();
            change(&mut message);
            check(message, 3, 1).unwrap_err()
        };
        refused(|m| m.states.push(1));
        refused(|m| m.states[0] = 0);
        refused(|m| m.states[0] = 77);
        // Nothing else would tell it from an answer about fewer hashes.
        refused(|m| m.states[2] = 77);
        refused(|m| m.token = 0);
        refused(|m| m.states[0] = 2);
        refused(|m| m.holder_index[0] = 1);
        refused(|m| m.holder_index.clear());
        assert!(check(answer(), 4, 1).is_err());
    }
}
