//! What readers are to prove their tickets with: each is good once, and for a moment.

use std::{collections::VecDeque, time::Instant};

use kvferry_security::ticket::{NONCE_BYTES, Nonce, PublicKey};

use super::config::{CHALLENGE_LIFE, MAX_CHALLENGES, MAX_CHALLENGES_PER_READER};

struct Challenge {
    reader: PublicKey,
    nonce: Nonce,
    since: Instant,
}

/// Challenges that wait for their proof, the oldest first.
#[derive(Default)]
pub(super) struct Challenges(VecDeque<Challenge>);

impl Challenges {
    /// Whoever shows a reader's ticket again and again, stolen or not, crowds out that reader's challenges only.
    pub(super) fn add(&mut self, now: Instant, reader: PublicKey, nonce: Nonce) {
        self.0
            .retain(|one| now.duration_since(one.since) < CHALLENGE_LIFE);
        let own = |one: &Challenge| one.reader == reader;
        if self.0.iter().filter(|one| own(one)).count() >= MAX_CHALLENGES_PER_READER {
            if let Some(oldest) = self.0.iter().position(own) {
                self.0.remove(oldest);
            }
        } else if self.0.len() >= MAX_CHALLENGES {
            self.0.pop_front();
        }
        self.0.push_back(Challenge {
            reader,
            nonce,
            since: now,
        });
    }

    /// The challenge of that nonce to that reader, if it still waits. It does so no more.
    pub(super) fn take(&mut self, now: Instant, reader: PublicKey, nonce: &[u8]) -> Option<Nonce> {
        let nonce = Nonce(<[u8; NONCE_BYTES]>::try_from(nonce).ok()?);
        let place = self
            .0
            .iter()
            .position(|one| one.nonce == nonce && one.reader == reader)?;
        let found = self.0.remove(place)?;
        (now.duration_since(found.since) < CHALLENGE_LIFE).then_some(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(n: usize) -> Nonce {
        let mut bytes = [0; NONCE_BYTES];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Nonce(bytes)
    }

    const READER: PublicKey = PublicKey([1; 32]);
    const OTHER: PublicKey = PublicKey([2; 32]);

    #[test]
    fn a_challenge_is_good_once_for_its_reader_and_for_a_moment() {
        let (mut all, now) = (Challenges::default(), Instant::now());
        all.add(now, READER, nonce(1));
        assert_eq!(all.take(now, OTHER, &nonce(1).0), None);
        assert_eq!(all.take(now, READER, &nonce(2).0), None);
        assert_eq!(all.take(now, READER, &[1; 31]), None);
        assert_eq!(all.take(now, READER, &nonce(1).0), Some(nonce(1)));
        assert_eq!(all.take(now, READER, &nonce(1).0), None, "played again");
        all.add(now, READER, nonce(3));
        assert_eq!(all.take(now + CHALLENGE_LIFE, READER, &nonce(3).0), None);
    }

    #[test]
    fn a_flood_crowds_out_its_own_and_is_bounded() {
        let (mut all, now) = (Challenges::default(), Instant::now());
        all.add(now, OTHER, nonce(0));
        for n in 1..=3 * MAX_CHALLENGES {
            all.add(now, READER, nonce(n));
        }
        assert_eq!(all.0.len(), 1 + MAX_CHALLENGES_PER_READER);
        assert!(all.take(now, OTHER, &nonce(0).0).is_some());
        for n in 0..3 * MAX_CHALLENGES {
            let mut reader = [3; 32];
            reader[..8].copy_from_slice(&n.to_le_bytes());
            all.add(now, PublicKey(reader), nonce(n));
        }
        assert_eq!(all.0.len(), MAX_CHALLENGES);
    }
}
