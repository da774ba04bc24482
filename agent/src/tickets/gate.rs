//! The owner's end: whom it lets in.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use kvferry_observe::{ByLabel, Counter};
use kvferry_proto::{Incarnation, NodeId};
use kvferry_security::ticket::{
    CLOCK_DRIFT, KeyRing, MAX_KEYS, Nonce, PublicKey, Purpose, Refusal, Ticket, UnixMillis,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Permit;

/// Whether readers need tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequireTickets {
    /// Where a coordinator signs some. Nobody is let in before one has said so.
    #[default]
    Auto,
    /// Yes: where no coordinator signs any, nobody gets in.
    Always,
    /// No: whoever reaches the port reads.
    Never,
}

/// What a reader needs now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// A ticket.
    Ticket,
    /// To come back: no coordinator has said yet.
    Patience,
}

/// What happened at the gate.
#[derive(Debug, Default)]
pub struct GateCounters {
    /// Readers that were let in with a ticket, over any transport.
    pub admitted: Counter,
    /// Tickets that went on where the one before ended.
    pub renewed: Counter,
    /// Readers and renewals turned away.
    pub refused: ByLabel<Refusal, Counter>,
    /// Connections and sessions that were ended with their ticket.
    pub expired: Counter,
}

/// Says who is let in.
pub struct Gate {
    /// Who is behind it; None where it lets everybody in.
    owner: Option<(NodeId, Incarnation)>,
    require: RequireTickets,
    /// What each coordinator said last, by its place in the configuration.
    told: Mutex<HashMap<usize, Vec<PublicKey>>>,
    ring: Mutex<Arc<KeyRing>>,
    /// A [`Needs`], for who asks at every request.
    needs: AtomicU8,
    counters: GateCounters,
}

/// A ticket that is good, of somebody who is still to prove that it is theirs.
#[derive(Debug)]
pub struct Checked {
    ticket: Ticket,
    bytes: Vec<u8>,
    now: UnixMillis,
}

impl Gate {
    /// In front of this lifetime of this node.
    #[must_use]
    pub fn new(owner: NodeId, incarnation: Incarnation, require: RequireTickets) -> Self {
        Self::of(Some((owner, incarnation)), require)
    }

    /// One that lets everybody in.
    #[must_use]
    pub fn open() -> Self {
        Self::of(None, RequireTickets::Never)
    }

    fn of(owner: Option<(NodeId, Incarnation)>, require: RequireTickets) -> Self {
        let needs = match require {
            RequireTickets::Auto => Needs::Patience,
            RequireTickets::Always => Needs::Ticket,
            RequireTickets::Never => Needs::Nothing,
        };
        Self {
            owner,
            require,
            told: Mutex::default(),
            ring: Mutex::default(),
            needs: AtomicU8::new(needs as u8),
            counters: GateCounters::default(),
        }
    }

    /// A coordinator said what it signs with. What it said before is void; what others said is not, nor is anything
    /// when it goes away. Once a ticket is needed it stays so: a coordinator that comes back without its key must not
    /// open what was closed.
    pub fn heard(&self, coordinator: usize, keys: impl IntoIterator<Item = PublicKey>) {
        let mut told = self.told.lock();
        told.insert(coordinator, keys.into_iter().take(MAX_KEYS).collect());
        let ring = KeyRing::new(told.values().flatten().copied());
        let before = self.needs();
        let needs = match (self.require, ring.is_empty()) {
            (RequireTickets::Never, _) => Needs::Nothing,
            (RequireTickets::Auto, true) if before != Needs::Ticket => Needs::Nothing,
            (RequireTickets::Always | RequireTickets::Auto, _) => Needs::Ticket,
        };
        if needs == Needs::Ticket && ring.is_empty() {
            tracing::warn!(
                "no coordinator signs tickets, and nobody is let in without: give them their ticket_key"
            );
        } else if before != needs {
            tracing::info!(
                tickets = needs == Needs::Ticket,
                "whether readers need tickets is known"
            );
        }
        *self.ring.lock() = Arc::new(ring);
        self.needs.store(needs as u8, Ordering::Release);
    }

    /// Does any coordinator sign tickets, as far as is known?
    #[must_use]
    pub fn knows_keys(&self) -> bool {
        !self.ring.lock().is_empty()
    }

    /// What a reader needs now. Costs a load.
    #[must_use]
    pub fn needs(&self) -> Needs {
        match self.needs.load(Ordering::Relaxed) {
            n if n == Needs::Nothing as u8 => Needs::Nothing,
            n if n == Needs::Ticket as u8 => Needs::Ticket,
            _ => Needs::Patience,
        }
    }

    /// Is the ticket good here and now?
    ///
    /// # Errors
    /// [`Refusal`], counted.
    pub fn check(&self, bytes: &[u8]) -> Result<Checked, Refusal> {
        let checked = self.look_at(bytes);
        checked.map_err(|refusal| self.refuse(refusal))
    }

    fn look_at(&self, bytes: &[u8]) -> Result<Checked, Refusal> {
        let (owner, incarnation) = match &self.owner {
            Some(owner) if self.needs() != Needs::Patience => owner,
            _ => return Err(Refusal::NotReady),
        };
        let ring = Arc::clone(&self.ring.lock());
        let now = UnixMillis::now();
        let ticket = ring.verify(now, owner, *incarnation, bytes)?;
        Ok(Checked {
            ticket,
            bytes: bytes.to_vec(),
            now,
        })
    }

    /// Lets in who proves that the ticket is theirs.
    ///
    /// # Errors
    /// [`Refusal::BadProof`], counted.
    pub fn admit(
        &self,
        checked: Checked,
        purpose: Purpose,
        nonce: &Nonce,
        proof: &[u8],
    ) -> Result<Permit, Refusal> {
        if !checked
            .ticket
            .is_proven(purpose, nonce, &checked.bytes, proof)
        {
            return Err(self.refuse(Refusal::BadProof));
        }
        self.counters.admitted.inc();
        Ok(checked.permit())
    }

    /// A later ticket of who was let in. The key was proven on the same connection; so only who has it can go on.
    ///
    /// # Errors
    /// [`Refusal`], counted; the permit stays what it was.
    pub fn renew(&self, permit: &Permit, bytes: &[u8]) -> Result<Permit, Refusal> {
        let checked = self.check(bytes)?;
        let before = permit.ticket();
        if checked.ticket.reader != before.reader || checked.ticket.reader_key != before.reader_key
        {
            return Err(self.refuse(Refusal::OtherReader));
        }
        self.counters.renewed.inc();
        Ok(checked.permit())
    }

    /// Counts it.
    pub(crate) fn refuse(&self, refusal: Refusal) -> Refusal {
        self.counters.refused.of(refusal).inc();
        refusal
    }

    /// Counts a connection or session that is ended with its ticket.
    pub(crate) fn expired(&self) {
        self.counters.expired.inc();
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &GateCounters {
        &self.counters
    }
}

impl Checked {
    /// Whose it says it is; not proven.
    pub(crate) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    fn permit(self) -> Permit {
        let end = self.ticket.expires.after(CLOCK_DRIFT);
        Permit::new(self.ticket, self.now.until(end))
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Gate");
        debug.field("owner", &self.owner);
        debug.field("needs", &self.needs());
        debug.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvferry_security::ticket::{Issuer, ReaderKey, Scope, SigningKey};

    use super::*;

    fn gate(require: RequireTickets) -> Gate {
        let incarnation = Incarnation::new(42).unwrap();
        Gate::new(NodeId::new("owner").unwrap(), incarnation, require)
    }

    fn issuer(seed: u8) -> Issuer {
        Issuer::new(SigningKey::from_seed(&[seed; 32]).unwrap())
    }

    fn ticket(reader: &str, key: &ReaderKey) -> Vec<u8> {
        let ticket = Ticket {
            reader: NodeId::new(reader).unwrap(),
            reader_key: key.public(),
            owner: NodeId::new("owner").unwrap(),
            incarnation: Incarnation::new(42).unwrap(),
            scopes: vec![Scope::all()],
            expires: UnixMillis::now().after(Duration::from_secs(60)),
        };
        issuer(1).issue(Duration::from_secs(3600), &ticket).unwrap()
    }

    #[test]
    fn what_is_needed_follows_what_coordinators_say() {
        let auto = gate(RequireTickets::Auto);
        assert_eq!(
            auto.needs(),
            Needs::Patience,
            "not open while nothing is known"
        );
        auto.heard(0, []);
        assert_eq!(auto.needs(), Needs::Nothing);
        auto.heard(1, issuer(1).public());
        assert_eq!(auto.needs(), Needs::Ticket, "one of them signs");
        auto.heard(0, []);
        assert_eq!(auto.needs(), Needs::Ticket);
        auto.heard(1, []);
        assert_eq!(auto.needs(), Needs::Ticket, "what was closed is not opened");
        assert!(!auto.knows_keys());
        let always = gate(RequireTickets::Always);
        always.heard(0, []);
        assert_eq!(always.needs(), Needs::Ticket);
        let never = gate(RequireTickets::Never);
        never.heard(0, issuer(1).public());
        assert_eq!(never.needs(), Needs::Nothing);
    }

    #[test]
    fn a_former_key_is_believed_until_its_coordinator_drops_it() {
        let gate = gate(RequireTickets::Auto);
        let key = ReaderKey::from_seed(&[9; 32]).unwrap();
        gate.heard(0, issuer(2).public().into_iter().chain(issuer(1).public()));
        assert!(gate.check(&ticket("reader", &key)).is_ok());
        gate.heard(0, issuer(2).public());
        let refused = gate.check(&ticket("reader", &key)).unwrap_err();
        assert_eq!(refused, Refusal::UnknownKey);
        assert_eq!(gate.counters().refused.of(Refusal::UnknownKey).get(), 1);
    }

    #[test]
    fn only_who_was_let_in_goes_on() {
        let gate = gate(RequireTickets::Auto);
        gate.heard(0, issuer(1).public());
        let key = ReaderKey::from_seed(&[9; 32]).unwrap();
        let bytes = ticket("reader", &key);
        let nonce = Nonce([1; 32]);
        let proof = key.prove(Purpose::Data, &nonce, &bytes);
        let permit = gate
            .admit(gate.check(&bytes).unwrap(), Purpose::Data, &nonce, &proof)
            .unwrap();
        assert!(gate.renew(&permit, &ticket("reader", &key)).is_ok());
        let other = ReaderKey::from_seed(&[8; 32]).unwrap();
        for foreign in [ticket("reader", &other), ticket("other", &key)] {
            let refused = gate.renew(&permit, &foreign).unwrap_err();
            assert_eq!(refused, Refusal::OtherReader);
        }
        assert_eq!(gate.counters().admitted.get(), 1);
        assert_eq!(gate.counters().renewed.get(), 1);
    }
}
