//! Descriptors that engines left with the agent, until a request names their token.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    os::fd::OwnedFd,
};

use parking_lot::Mutex;

/// Most unclaimed descriptors of all engines together.
const MAX_DEPOSITS: usize = 256;
/// Most unclaimed descriptors of one connection: an engine registers its regions one after another.
const MAX_DEPOSITS_EACH: usize = 16;

/// The box. A deposit goes when it is taken, or with the connection it came on.
#[derive(Debug, Default)]
pub struct DepositBox {
    kept: Mutex<Kept>,
    /// Makes tokens that cannot be guessed by one who does not hold them.
    keys: RandomState,
}

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    deposits: HashMap<u64, (u64, OwnedFd)>,
}

impl DepositBox {
    /// Takes out what was left under the token; None for a token that is unknown, used or expired.
    pub fn take(&self, token: u64) -> Option<OwnedFd> {
        let taken = self.kept.lock().deposits.remove(&token);
        taken.map(|(_, descriptor)| descriptor)
    }

    /// Keeps a descriptor for a connection. None when there is no room.
    pub(super) fn put(&self, connection: u64, descriptor: OwnedFd) -> Option<u64> {
        let mut kept = self.kept.lock();
        let own = kept.deposits.values().filter(|(c, _)| *c == connection);
        if own.count() >= MAX_DEPOSITS_EACH || kept.deposits.len() >= MAX_DEPOSITS {
            return None;
        }
        loop {
            kept.next = kept.next.wrapping_add(1);
            let token = self.keys.hash_one(kept.next);
            if token != 0 && !kept.deposits.contains_key(&token) {
                kept.deposits.insert(token, (connection, descriptor));
                return Some(token);
            }
        }
    }

    /// Nothing lies in it.
    #[cfg(feature = "fuzzing")]
    pub(super) fn is_empty(&self) -> bool {
        self.kept.lock().deposits.is_empty()
    }

    /// The connection has ended.
    pub(super) fn expire(&self, connection: u64) {
        self.kept
            .lock()
            .deposits
            .retain(|_, (c, _)| *c != connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deposits_are_taken_once_bounded_and_expire() {
        let descriptor = || OwnedFd::from(tempfile::tempfile().unwrap());
        let deposits = DepositBox::default();
        let token = deposits.put(1, descriptor()).unwrap();
        assert!(deposits.take(token ^ 1).is_none());
        assert!(deposits.take(token).is_some());
        assert!(deposits.take(token).is_none());
        let tokens: Vec<_> = (0..MAX_DEPOSITS_EACH)
            .map(|_| deposits.put(1, descriptor()).unwrap())
            .collect();
        assert!(deposits.put(1, descriptor()).is_none());
        let other = deposits.put(2, descriptor()).unwrap();
        deposits.expire(1);
        assert!(tokens.iter().all(|token| deposits.take(*token).is_none()));
        assert!(deposits.take(other).is_some());
    }
}
