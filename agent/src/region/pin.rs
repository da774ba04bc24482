//! Promises not to reuse slots for a while.

use std::time::Duration;

use kvferry_proto::{BlockHash, NamespaceName};

use super::{
    ClientId, DEFAULT_PIN_TTL, Held, MAX_PIN_TTL, PinError, PinId, ReleaseError, Store,
    state::State,
};

impl Store {
    /// Pins those of the blocks that are here, and says where each of them lies. `ttl` is
    /// [`DEFAULT_PIN_TTL`] where it is None. A pin without any block is one too.
    ///
    /// # Errors
    /// [`PinError`]; nothing was pinned then.
    pub fn pin(
        &self,
        now: Duration,
        client: ClientId,
        namespace: &NamespaceName,
        hashes: &[BlockHash],
        ttl: Option<Duration>,
    ) -> Result<(PinId, Vec<Option<Held>>), PinError> {
        let expires = now.saturating_add(bounded(ttl)?);
        let mut state = self.state.lock();
        state.expire_pins(now);
        let Some(table) = state.namespaces.get(namespace) else {
            let namespace = namespace.clone();
            return Err(PinError::UnknownNamespace { namespace });
        };
        let found: Vec<_> = hashes
            .iter()
            .map(|hash| state.held(table.find(hash)?))
            .collect();
        let blocks = found.iter().flatten().count();
        state.pins.admit(client, None, blocks, &self.limits)?;
        let pin = state.pins.open(client, expires);
        for held in found.iter().flatten() {
            state.pin(pin, held);
        }
        Ok((pin, found))
    }

    /// Pins blocks the caller knows the place of: with a new pin, or with one of its own, which
    /// then lasts `ttl` from now at least. Says for each whether it was still there.
    ///
    /// # Errors
    /// [`PinError`]; nothing was pinned then.
    pub fn pin_held(
        &self,
        now: Duration,
        client: ClientId,
        extend: Option<PinId>,
        blocks: &[Held],
        ttl: Option<Duration>,
    ) -> Result<(PinId, Vec<bool>), PinError> {
        let expires = now.saturating_add(bounded(ttl)?);
        let mut state = self.state.lock();
        state.expire_pins(now);
        let there: Vec<_> = blocks.iter().map(|held| state.is_there(held)).collect();
        let count = there.iter().filter(|there| **there).count();
        state.pins.admit(client, extend, count, &self.limits)?;
        let pin = match extend {
            Some(pin) => {
                state.pins.prolong(pin, expires);
                pin
            }
            None => state.pins.open(client, expires),
        };
        for (held, there) in blocks.iter().zip(&there) {
            if *there {
                state.pin(pin, held);
            }
        }
        Ok((pin, there))
    }

    /// Ends a pin.
    ///
    /// # Errors
    /// [`ReleaseError::UnknownPin`]: there is nothing to release.
    pub fn release(&self, client: ClientId, pin: PinId) -> Result<(), ReleaseError> {
        let mut state = self.state.lock();
        if !state.pins.is_of(client, pin) {
            return Err(ReleaseError::UnknownPin { pin });
        }
        state.unpin(pin);
        Ok(())
    }
}

impl State {
    fn is_there(&self, held: &Held) -> bool {
        self.held(held.place())
            .is_some_and(|now| now.generation == held.generation)
    }
}

fn bounded(ttl: Option<Duration>) -> Result<Duration, PinError> {
    let ttl = ttl.unwrap_or(DEFAULT_PIN_TTL);
    if ttl > MAX_PIN_TTL {
        return Err(PinError::TtlTooLong {
            ttl_ms: ttl.as_millis(),
            max_ms: MAX_PIN_TTL.as_millis(),
        });
    }
    Ok(ttl)
}
