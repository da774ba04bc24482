//! Tickets: any coordinator signs them, with the same keys.

use std::time::Duration;

use bytes::Bytes;
use kvferry_proto::pb;
use tokio::time::Instant;

use super::{CoordinatorError, Coordinators};
use crate::{
    tickets::{Issued, NoTicket, TicketOffice, TicketRequest},
    transport::BoxFuture,
};

/// A ticket is waited for by a pull: a coordinator signs one in a fraction of a millisecond.
const ISSUE_BOUND: Duration = Duration::from_secs(2);

impl TicketOffice for Coordinators {
    fn issue(&self, request: TicketRequest) -> BoxFuture<'_, Result<Issued, NoTicket>> {
        let message = pb::IssueTicketRequest {
            reader: request.reader.to_string(),
            reader_key: Bytes::copy_from_slice(&request.reader_key.0),
            owner: request.owner.to_string(),
            incarnation: request.incarnation.get(),
            namespaces: Vec::new(),
        };
        Box::pin(async move {
            let deadline = Instant::now() + ISSUE_BOUND;
            let asked = self.ask(
                &self.tickets,
                deadline,
                message,
                async |mut client, request| client.issue_ticket(request).await,
            );
            let (_, answer) = asked.await.map_err(no_ticket)?;
            Ok(Issued {
                bytes: answer.ticket.to_vec(),
                ttl: Duration::from_millis(answer.ttl_ms.into()),
            })
        })
    }
}

fn no_ticket(error: CoordinatorError) -> NoTicket {
    match error {
        CoordinatorError::Unreachable { .. } | CoordinatorError::Nonsense { .. } => {
            NoTicket::Unavailable {
                detail: error.to_string(),
            }
        }
        CoordinatorError::NamespaceUnknown { message }
        | CoordinatorError::Refused { message, .. } => NoTicket::Denied { message },
    }
}
