//! Locations: which blocks lie in shared storage. Each coordinator keeps its own list, so all are told.

use std::sync::atomic::Ordering;

use kvferry_proto::{InvalidMessage, pb, pb::locations_client::LocationsClient};
use kvferry_security::tls::Line;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{CoordinatorError, Coordinators, client::ask_in_turn};

type Client = LocationsClient<Line>;

impl Coordinators {
    /// Tells every coordinator where blocks lie. The answer of the first that took it comes back.
    ///
    /// # Errors
    /// [`CoordinatorError`] where none took it: the last one's.
    pub async fn put_locations(
        &self,
        message: pb::PutLocationsRequest,
        deadline: Instant,
    ) -> Result<pb::PutLocationsResponse, CoordinatorError> {
        let tell = async |mut client: Client, request| client.put_locations(request).await;
        self.tell_all(deadline, message, tell).await
    }

    /// Tells every coordinator where blocks do not lie any more.
    ///
    /// # Errors
    /// As [`put_locations`](Self::put_locations).
    pub async fn remove_locations(
        &self,
        message: pb::RemoveLocationsRequest,
        deadline: Instant,
    ) -> Result<pb::RemoveLocationsResponse, CoordinatorError> {
        let tell = async |mut client: Client, request| client.remove_locations(request).await;
        self.tell_all(deadline, message, tell).await
    }

    /// Asks where so many blocks lie.
    ///
    /// # Errors
    /// [`CoordinatorError`]; a block without a location is none.
    pub async fn find_locations(
        &self,
        message: pb::FindLocationsRequest,
        asked: usize,
        deadline: Instant,
    ) -> Result<pb::FindLocationsResponse, CoordinatorError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let ask = async |mut client: Client, request| client.find_locations(request).await;
        let (at, found) = ask_in_turn(&self.locations, first, deadline, message, ask).await?;
        check(&found, asked).map_err(|source| CoordinatorError::Nonsense {
            address: self.locations[at].0.clone(),
            source,
        })?;
        Ok(found)
    }

    /// One after the other, each with its share of the time that is left.
    async fn tell_all<M: Clone, A>(
        &self,
        deadline: Instant,
        message: M,
        tell: impl AsyncFn(Client, Request<M>) -> Result<Response<A>, Status> + Copy,
    ) -> Result<A, CoordinatorError> {
        let mut answer = Err(CoordinatorError::Unreachable {
            tried: 0,
            address: "none".to_owned(),
            detail: "none is configured".to_owned(),
        });
        for (told, one) in (0u32..).zip(&self.locations) {
            let now = Instant::now();
            let to_tell = (self.locations.len() as u32).saturating_sub(told).max(1);
            let until = now + deadline.saturating_duration_since(now) / to_tell;
            let only = std::slice::from_ref(one);
            match ask_in_turn(only, 0, until, message.clone(), tell).await {
                Ok((_, taken)) if answer.is_err() => answer = Ok(taken),
                Ok(_) => {}
                Err(error) if answer.is_err() => answer = Err(error),
                Err(error) => tracing::warn!("a coordinator was not told of locations: {error}"),
            }
        }
        answer
    }
}

fn check(found: &pb::FindLocationsResponse, asked: usize) -> Result<(), InvalidMessage> {
    let got = found.location_of.len();
    if got != asked {
        return Err(InvalidMessage::Columns {
            what: "location_of",
            got,
            want: asked,
        });
    }
    let max = found.locations.len() as u64;
    match found.location_of.iter().find(|row| u64::from(**row) > max) {
        Some(row) => Err(InvalidMessage::OutOfBounds {
            what: "a location's row",
            got: (*row).into(),
            max,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut found = pb::FindLocationsResponse {
            locations: vec!["x".into()],
            location_of: vec![0, 1],
        };
        assert_eq!(check(&found, 2), Ok(()));
        assert!(check(&found, 3).is_err());
        found.location_of[0] = 2;
        assert!(check(&found, 2).is_err());
    }
}
