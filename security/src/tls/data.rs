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

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, io::Read, sync::Arc};

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
        pki_types::{PrivateKeyDer, ServerName},
    };

    use super::*;
    use crate::tls::files::provider;

    /// Two ends, without sockets.
    fn handshake(server: &[u8], client: &[u8]) -> (Connection, Connection) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let owner = CertificateParams::new(vec!["owner".to_owned()]).unwrap();
        let owner = owner.signed_by(&key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let version = [&rustls::version::TLS13];
        let config = ServerConfig::builder_with_provider(provider());
        let config = config.with_protocol_versions(&version).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = config
            .with_no_client_auth()
            .with_single_cert(vec![owner.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![server.to_vec()];
        let mut ours = ServerConnection::new(Arc::new(config)).unwrap();
        let config = ClientConfig::builder_with_provider(provider());
        let config = config.with_protocol_versions(&version).unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = if client.is_empty() {
            Vec::new()
        } else {
            vec![client.to_vec()]
        };
        let name = ServerName::try_from("owner").unwrap();
        let mut theirs = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut wire = Vec::new();
        while ours.is_handshaking() || theirs.is_handshaking() || ours.wants_write() {
            while theirs.wants_write() {
                theirs.write_tls(&mut wire).unwrap();
            }
            feed(&mut wire, |from| ours.read_tls(from));
            ours.process_new_packets().unwrap();
            while ours.wants_write() {
                ours.write_tls(&mut wire).unwrap();
            }
            feed(&mut wire, |from| theirs.read_tls(from));
            theirs.process_new_packets().unwrap();
        }
        (ours.into(), theirs.into())
    }

    fn feed(wire: &mut Vec<u8>, mut read: impl FnMut(&mut dyn Read) -> io::Result<usize>) {
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            read(&mut rest).unwrap();
        }
        wire.clear();
    }

    fn pair() -> (DataSession, DataSession) {
        let (ours, theirs) = handshake(DATA, DATA);
        (
            DataSession::new(ours).unwrap(),
            DataSession::new(theirs).unwrap(),
        )
    }

    /// Takes so many bytes in a call, and so many in all before it would have to wait.
    struct Narrow {
        sent: VecDeque<u8>,
        at_a_time: usize,
        room: usize,
    }

    impl Narrow {
        fn wide() -> Self {
            Self {
                sent: VecDeque::new(),
                at_a_time: usize::MAX,
                room: usize::MAX,
            }
        }
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = bytes.len().min(self.at_a_time).min(self.room);
            if len == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room = self.room.saturating_sub(len);
            self.sent.extend(&bytes[..len]);
            Ok(len)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn seal(session: &mut DataSession, mut bytes: &[u8]) -> usize {
        session.seal(|room| bytes.read(room)).unwrap()
    }

    /// Opens all that is on the wire, at most `most` bytes at a time.
    fn open(
        session: &mut DataSession,
        wire: &mut VecDeque<u8>,
        most: usize,
    ) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let receive = |room: &mut [u8]| match wire.read(room)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                len => Ok(len),
            };
            let take = |bytes: &[u8]| {
                let len = bytes.len().min(most);
                out.extend_from_slice(&bytes[..len]);
                len
            };
            match session.open(receive, take) {
                Ok(0) => return Ok(out),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(out),
                Err(error) => return Err(error),
            }
        }
    }

    #[test]
    fn what_is_sealed_is_opened_however_the_wire_is_cut() {
        let (mut ours, mut theirs) = pair();
        let bytes: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
        let mut wire = Narrow {
            at_a_time: 1_000,
            ..Narrow::wide()
        };
        let (mut sealed, mut opened) = (0, Vec::new());
        while sealed < bytes.len() {
            let step = seal(&mut ours, &bytes[sealed..]);
            assert!(step > 0 && step <= SEALED_BYTES, "what waits is bounded");
            sealed += step;
            // A peer that takes its time.
            wire.room = 5_000;
            while let Err(error) = ours.flush(&mut wire) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                opened.extend(open(&mut theirs, &mut wire.sent, 777).unwrap());
                wire.room = 30_000;
            }
            assert!(!ours.wants_write());
        }
        opened.extend(open(&mut theirs, &mut wire.sent, 777).unwrap());
        assert!(opened == bytes);
    }

    #[test]
    fn new_keys_are_taken_in_the_middle() {
        let (mut ours, mut theirs) = pair();
        let mut wire = Narrow::wide();
        for round in 0..4u8 {
            ours.connection.refresh_traffic_keys().unwrap();
            assert_eq!(seal(&mut ours, &[round; 20_000]), 20_000);
            ours.flush(&mut wire).unwrap();
            let opened = open(&mut theirs, &mut wire.sent, usize::MAX).unwrap();
            assert!(opened == [round; 20_000]);
            // It may answer with its own.
            theirs.flush(&mut wire).unwrap();
            assert_eq!(open(&mut ours, &mut wire.sent, 1).unwrap(), []);
        }
    }

    #[test]
    fn a_turned_bit_is_an_error_and_so_is_an_end_without_a_goodbye() {
        for at in [3, 5, 100, 20_000] {
            let (mut ours, mut theirs) = pair();
            let mut wire = Narrow::wide();
            seal(&mut ours, &[7; 30_000]);
            ours.flush(&mut wire).unwrap();
            wire.sent[at] ^= 4;
            let error = open(&mut theirs, &mut wire.sent, usize::MAX).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "byte {at}");
        }
        let (mut ours, mut theirs) = pair();
        let mut wire = Narrow::wide();
        seal(&mut ours, &[7; 100]);
        ours.flush(&mut wire).unwrap();
        assert_eq!(open(&mut theirs, &mut wire.sent, 100).unwrap(), [7; 100]);
        let cut = theirs.open(|_| Ok(0), |_| 0).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        // With one, it is the end.
        let (mut ours, mut theirs) = pair();
        ours.close();
        ours.flush(&mut wire).unwrap();
        let mut rest: Vec<u8> = wire.sent.drain(..).collect();
        let receive = |room: &mut [u8]| {
            let len = rest.as_slice().read(room)?;
            rest.drain(..len);
            Ok(len)
        };
        assert_eq!(theirs.open(receive, |bytes| bytes.len()).unwrap(), 0);
    }

    #[test]
    fn both_ends_are_bound_to_their_session_and_to_no_other() {
        let ((one, other), (third, _)) = (pair(), pair());
        assert_eq!(one.binding(), other.binding());
        assert_ne!(one.binding(), third.binding());
    }

    #[test]
    fn a_session_that_means_no_data_port_is_none() {
        let (ours, theirs) = handshake(b"h2", b"h2");
        assert!(DataSession::new(ours).is_err() && DataSession::new(theirs).is_err());
        let (ours, _) = handshake(DATA, b"");
        assert!(DataSession::new(ours).is_err());
    }
}
