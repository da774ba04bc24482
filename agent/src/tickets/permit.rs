//! What a reader that was let in may do, and how long.

use std::time::{Duration, Instant};

use kvferry_proto::NodeId;
use kvferry_security::ticket::Ticket;

use crate::region::Region;

/// Of one connection, one session, one reader. Made only by a [`Gate`](super::Gate).
#[derive(Debug, Clone)]
pub struct Permit {
    ticket: Ticket,
    until: Instant,
}

impl Permit {
    pub(super) fn new(ticket: Ticket, left: Duration) -> Self {
        let until = Instant::now() + left;
        Self { ticket, until }
    }

    /// Who reads.
    #[must_use]
    pub fn reader(&self) -> &NodeId {
        &self.ticket.reader
    }

    /// May it be read?
    #[must_use]
    pub fn covers(&self, region: &Region) -> bool {
        self.ticket.covers(&region.namespace.name)
    }

    /// When it ends.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Has it ended?
    #[must_use]
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    pub(crate) fn ticket(&self) -> &Ticket {
        &self.ticket
    }
}
