//! An owner's door: in clear, or by TLS and nothing else.

use std::io;

use kvferry_proto::Incarnation;
use kvferry_security::tls::{DataRefusal, DoorCounts, Handshake, ServerTls};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    frame::RefusalReason,
    session::{SessionEnd, refuse},
    stream::{Sealed, Stream},
};

/// Lets in who speaks what is spoken here, before `until`.
pub(super) async fn let_in(
    socket: TcpStream,
    tls: Option<&ServerTls>,
    until: Instant,
    counts: &DoorCounts,
    incarnation: Incarnation,
) -> Result<Stream, SessionEnd> {
    let Some(tls) = tls else {
        return Ok(Stream::Clear(socket));
    };
    let (outcome, end) = match timeout_at(until, tls.accept_data(socket)).await {
        Ok(Ok((socket, session))) => {
            counts.of(Handshake::Done).inc();
            return Ok(Stream::Tls(Box::new(Sealed::new(socket, session))));
        }
        // A probe of the port, say.
        Ok(Err(DataRefusal::Gone(error))) => {
            return Err(match error.kind() {
                io::ErrorKind::UnexpectedEof => SessionEnd::Closed,
                _ => error.into(),
            });
        }
        Ok(Err(DataRefusal::Clear(socket))) => {
            // Nothing of what it says is looked at; it is told what to speak.
            refuse(&socket, incarnation, RefusalReason::Tls);
            let mut closed = Stream::Clear(socket);
            closed.shutdown().await;
            (Handshake::Clear, SessionEnd::Clear)
        }
        Ok(Err(DataRefusal::Refused(refusal))) => (Handshake::Refused, SessionEnd::Tls(refusal)),
        Err(_) => (Handshake::Late, SessionEnd::HandshakeTimeout),
    };
    counts.of(outcome).inc();
    Err(end)
}
