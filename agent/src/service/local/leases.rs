//! Which coordinator gave which lease, and which connection it ends with.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;

use crate::{coordinators::Granted, region::ClientId};

/// Leases of all engines of a host. Each is one call's; those that have expired are forgotten.
pub(super) const MAX_LEASES: usize = 1 << 14;

/// Leases that were given to engines of this agent.
#[derive(Debug, Default)]
pub(crate) struct Leases(Mutex<HashMap<u64, Lease>>);

#[derive(Debug)]
struct Lease {
    granted: Granted,
    /// None for one that outlasts its connection.
    client: Option<ClientId>,
    expires: Duration,
}

impl Leases {
    /// Is there room for another?
    pub(super) fn has_room(&self) -> bool {
        self.0.lock().len() < MAX_LEASES
    }

    pub(super) fn add(&self, now: Duration, granted: Granted, client: Option<ClientId>) {
        let lease = Lease {
            granted,
            client,
            expires: now.saturating_add(granted.ttl),
        };
        self.0.lock().insert(granted.token, lease);
    }

    /// Who gave the lease of this token.
    pub(super) fn get(&self, token: u64) -> Option<Granted> {
        self.0.lock().get(&token).map(|lease| lease.granted)
    }

    /// It was renewed, which never shortens it.
    pub(super) fn renewed(&self, now: Duration, token: u64, ttl: Duration) {
        if let Some(lease) = self.0.lock().get_mut(&token) {
            lease.expires = lease.expires.max(now.saturating_add(ttl));
        }
    }

    pub(super) fn remove(&self, token: u64) {
        self.0.lock().remove(&token);
    }

    /// Forgets what a connection leaves behind; it comes back to be released.
    pub(super) fn take_of(&self, client: ClientId) -> Vec<Granted> {
        let mut leases = self.0.lock();
        let gone = leases.extract_if(|_, lease| lease.client == Some(client));
        gone.map(|(_, lease)| lease.granted).collect()
    }

    /// Forgets what has expired at the coordinator, too.
    pub(crate) fn expire(&self, now: Duration) {
        self.0.lock().retain(|_, lease| lease.expires > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_known_until_it_ends() {
        let leases = Leases::default();
        let ms = Duration::from_millis;
        let granted = |token| Granted {
            token,
            coordinator: 0,
            ttl: ms(10),
        };
        leases.add(ms(0), granted(1), Some(ClientId(7)));
        leases.add(ms(0), granted(2), None);
        leases.add(ms(0), granted(3), Some(ClientId(8)));
        assert_eq!(leases.take_of(ClientId(7)), [granted(1)]);
        assert_eq!((leases.get(1), leases.get(2)), (None, Some(granted(2))));
        leases.renewed(ms(5), 2, ms(10));
        leases.renewed(ms(6), 2, ms(1));
        leases.expire(ms(10));
        assert_eq!((leases.get(2), leases.get(3)), (Some(granted(2)), None));
        leases.expire(ms(15));
        assert_eq!(leases.get(2), None);
    }
}
