//! TLS below what is not gRPC: the agents' data port.
//!
//! A [`DataSession`] knows no socket and waits for nothing: it is given ciphertext and gives plaintext, and the other way
//! round. Whoever has it has the socket, too.

use std::io::{self, BufRead, Write};

use rustls::Connection;
use tokio::net::TcpStream;

use super::{plaintext, refusal::TlsRefusal, server::ServerTls};
use crate::ticket::Binding;

/// What is said to be spoken: a connection meant for this port leads to no other of the same certificate.
pub(super) const DATA: &[u8] = b"kvferry-data/1";
/// What a session's ticket proof is bound by (RFC 5705, RFC 8446 7.5).
const BINDING_LABEL: &[u8] = b"EXPORTER-kvferry-ticket-proof";
/// Ciphertext taken at a time: four records. More would not make a call to the kernel noticeably cheaper, and would leave
/// the first level cache before it is looked at.
const INBOX_BYTES: usize = 64 << 10;
/// Plaintext of one record: the most there may be.
const RECORD_BYTES: usize = 16 << 10;
/// Plaintext sealed at a time, and so, about, what is kept for a peer that takes nothing: eight records go to the kernel in
/// one call.
const SEALED_BYTES: usize = 128 << 10;

/// Why a connection to the data port is not let in.
#[derive(Debug)]
pub enum DataRefusal {
    /// It speaks in clear. It may be told so.
    Clear(TcpStream),
    /// Its certificate, or what it said, is no good.
    Refused(TlsRefusal),
    /// It went before it said anything.
    Gone(io::Error),
}

impl ServerTls {
    /// Lets in who speaks TLS to the data port, and shows a certificate where a CA is set. The caller bounds the time.
    ///
    /// # Errors
    /// [`DataRefusal`].
    pub async fn accept_data(
        &self,
        stream: TcpStream,
    ) -> Result<(TcpStream, DataSession), DataRefusal> {
        match plaintext::begins_tls(&stream).await {
            Ok(true) => {}
            Ok(false) => return Err(DataRefusal::Clear(stream)),
            Err(error) => return Err(DataRefusal::Gone(error)),
        }
        let refused = |error: &io::Error| DataRefusal::Refused(TlsRefusal::of_client(error));
        let accepted = self.data_acceptor().accept(stream).await;
        let (stream, connection) = accepted.map_err(|error| refused(&error))?.into_inner();
        let session = DataSession::new(connection.into()).map_err(|error| refused(&error))?;
        Ok((stream, session))
    }
}

/// A connection's TLS, after its handshake.
pub struct DataSession {
    connection: Connection,
    binding: Binding,
    /// Ciphertext that was received and not looked at: `start..end`.
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
    /// Where plaintext is put together.
    record: Box<[u8]>,
}

impl DataSession {
    /// Fails where the peer means another port.
    pub(super) fn new(mut connection: Connection) -> io::Result<Self> {
        if connection.alpn_protocol() != Some(DATA) {
            let what = "it did not say that it means the data port";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let binding = connection.export_keying_material([0; 32], BINDING_LABEL, None);
        let binding = binding.map_err(io::Error::other)?;
        // `SEALED_BYTES` bounds it, and nobody waits inside.
        connection.set_buffer_limit(None);
        Ok(Self {
            connection,
            binding: Binding(binding),
            inbox: vec![0; INBOX_BYTES].into(),
            start: 0,
            end: 0,
            record: vec![0; RECORD_BYTES].into(),
        })
    }

    /// What both ends of this session know, and nobody else.
    #[must_use]
    pub fn binding(&self) -> Binding {
        self.binding
    }

    /// Seals what `fill` puts into the buffers it is given, until it puts nothing or enough is sealed. Gives how many
    /// bytes. To be called when nothing is left to [`flush`](Self::flush).
    ///
    /// # Errors
    /// What `fill` says. Records before that may be sealed; the connection is of no more use.
    pub fn seal(
        &mut self,
        mut fill: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut sealed = 0;
        while sealed < SEALED_BYTES {
            let filled = fill(&mut self.record)?.min(RECORD_BYTES);
            if filled == 0 {
                break;
            }
            self.connection.writer().write_all(&self.record[..filled])?;
            sealed += filled;
        }
        Ok(sealed)
    }

    /// Has ciphertext to be sent.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Hands over ciphertext, until there is none.
    ///
    /// # Errors
    /// What `to` says; `WouldBlock` where it takes no more now.
    pub fn flush(&mut self, to: &mut impl Write) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(to)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Says goodbye; [`flush`](Self::flush) sends it.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }

    /// Gives `take` plaintext that comes next, and says how much it took; 0 at the peer's goodbye, or where it took none. Calls
    /// `receive` for more ciphertext.
    ///
    /// # Errors
    /// What `receive` says; `UnexpectedEof` where the connection ends without a goodbye; `InvalidData`, with rustls' error
    /// beneath it, where what came is not what the peer sealed, or is its alert.
    pub fn open(
        &mut self,
        mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> io::Result<usize> {
        loop {
            match self.connection.reader().fill_buf() {
                Ok(plain) => {
                    let taken = take(plain).min(plain.len());
                    self.connection.reader().consume(taken);
                    return Ok(taken);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.start == self.end {
                (self.start, self.end) = (0, receive(&mut self.inbox)?);
                if self.end == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            let mut rest = &self.inbox[self.start..self.end];
            self.start += self.connection.read_tls(&mut rest)?;
            self.connection
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

impl std::fmt::Debug for DataSession {
    // Keys are no one's business.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataSession").finish_non_exhaustive()
    }
}
