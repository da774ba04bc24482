//! Who pinned what until when. Which slots are pinned is counted in the slot tables.

use std::{collections::BTreeSet, time::Duration};

use hashbrown::{HashMap, HashSet};
use kvferry_proto::Generation;

use super::{ClientId, PinError, PinId, StoreLimits, words::Place};

/// One block of a pin. The generation tells it from what the slot may hold later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pinned {
    pub(super) place: Place,
    pub(super) generation: Generation,
}

#[derive(Debug)]
struct Pin {
    client: ClientId,
    expires: Duration,
    blocks: Vec<Pinned>,
}

#[derive(Debug, Default)]
struct OfClient {
    pins: HashSet<PinId>,
    blocks: usize,
}

#[derive(Debug, Default)]
pub(super) struct Pins {
    pins: HashMap<PinId, Pin>,
    expiries: BTreeSet<(Duration, PinId)>,
    clients: HashMap<ClientId, OfClient>,
    last: u64,
}

impl Pins {
    pub(super) fn len(&self) -> usize {
        self.pins.len()
    }

    /// Room for a pin of `blocks` blocks, or for as many more in the pin `extend`?
    pub(super) fn admit(
        &self,
        client: ClientId,
        extend: Option<PinId>,
        blocks: usize,
        limits: &StoreLimits,
    ) -> Result<(), PinError> {
        let (pins, held) = self
            .clients
            .get(&client)
            .map_or((0, 0), |of| (of.pins.len(), of.blocks));
        match extend {
            Some(pin) if !self.is_of(client, pin) => return Err(PinError::UnknownPin { pin }),
            None if pins >= limits.pins_per_client => {
                let max = limits.pins_per_client;
                return Err(PinError::TooManyPins { max });
            }
            _ => {}
        }
        let max = limits.pinned_blocks_per_client;
        if held.saturating_add(blocks) > max {
            return Err(PinError::TooManyPinnedBlocks { max });
        }
        Ok(())
    }

    pub(super) fn is_of(&self, client: ClientId, pin: PinId) -> bool {
        self.pins.get(&pin).is_some_and(|pin| pin.client == client)
    }

    /// Is there such a pin, and may its client pin one block more?
    pub(super) fn has_room(&self, pin: PinId, limits: &StoreLimits) -> bool {
        self.pins.get(&pin).is_some_and(|pin| {
            let of = self.clients.get(&pin.client);
            of.map_or(0, |of| of.blocks) < limits.pinned_blocks_per_client
        })
    }

    /// A new pin, without blocks.
    pub(super) fn open(&mut self, client: ClientId, expires: Duration) -> PinId {
        self.last += 1;
        let id = PinId(self.last);
        self.pins.insert(
            id,
            Pin {
                client,
                expires,
                blocks: Vec::new(),
            },
        );
        self.expiries.insert((expires, id));
        self.clients.entry(client).or_default().pins.insert(id);
        id
    }

    /// Lets a pin last until `expires`, where it would end before.
    pub(super) fn prolong(&mut self, id: PinId, expires: Duration) {
        if let Some(pin) = self.pins.get_mut(&id)
            && pin.expires < expires
        {
            self.expiries.remove(&(pin.expires, id));
            pin.expires = expires;
            self.expiries.insert((expires, id));
        }
    }

    pub(super) fn add(&mut self, id: PinId, block: Pinned) {
        if let Some(pin) = self.pins.get_mut(&id) {
            pin.blocks.push(block);
            self.clients.entry(pin.client).or_default().blocks += 1;
        }
    }

    /// Ends a pin and gives what it named.
    pub(super) fn close(&mut self, id: PinId) -> Option<Vec<Pinned>> {
        let pin = self.pins.remove(&id)?;
        self.expiries.remove(&(pin.expires, id));
        if let Some(of) = self.clients.get_mut(&pin.client) {
            of.pins.remove(&id);
            of.blocks -= pin.blocks.len();
            if of.pins.is_empty() {
                self.clients.remove(&pin.client);
            }
        }
        Some(pin.blocks)
    }

    /// A pin whose time is over.
    pub(super) fn expired(&self, now: Duration) -> Option<PinId> {
        let (expires, pin) = *self.expiries.first()?;
        (expires <= now).then_some(pin)
    }

    pub(super) fn next_expiry(&self) -> Option<Duration> {
        self.expiries.first().map(|(expires, _)| *expires)
    }

    /// In the order they were made.
    pub(super) fn of_client(&self, client: ClientId) -> Vec<PinId> {
        let of = self.clients.get(&client);
        let mut pins: Vec<_> = of
            .into_iter()
            .flat_map(|of| of.pins.iter().copied())
            .collect();
        pins.sort_unstable();
        pins
    }
}
