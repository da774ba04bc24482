//! Tickets at the two ends of a read: the owner's [`Gate`] and the reader's [`Wallet`].
//!
//! ```text
//! coordinator ── Welcome: public keys ──> Gate (owner)        Wallet (reader) ── IssueTicket ──> coordinator
//!                                           ^                        │
//!                                           └── ticket, then proof ──┘    once per connection
//! ```
//!
//! What a ticket is and how it is signed is `kvferry_security::ticket`'s; how it travels is each transport's. What is
//! checked once is kept as a [`Permit`] with the connection: a read asks it for the region's namespace and nothing else.

mod gate;
mod permit;
mod wallet;

pub use gate::{Checked, Gate, GateCounters, Needs, RequireTickets};
pub use permit::Permit;
pub use wallet::{Held, Issued, NoTicket, TicketOffice, TicketRequest, Wallet, WalletCounters};

use std::sync::Arc;

use kvferry_security::ticket::PublicKey;

/// Both ends of one agent.
#[derive(Debug, Clone)]
pub(crate) struct Tickets {
    pub(crate) gate: Arc<Gate>,
    pub(crate) wallet: Arc<Wallet>,
}

impl Tickets {
    /// A coordinator said what it signs with.
    pub(crate) fn heard(&self, coordinator: usize, keys: Vec<PublicKey>) {
        self.gate.heard(coordinator, keys);
        self.wallet.use_tickets(self.gate.knows_keys());
    }
}
