//! What frames are spoken over: a socket in clear, or TLS over one.
//!
//! In clear the kernel moves bytes straight between sockets and registered memory, and what chooses between the two ways
//! costs one branch a call to the kernel. By TLS bytes are copied to be sealed and copied when they are opened, record by
//! record, and nothing waits within.

use std::{
    io::{self, IoSlice, Write},
    os::fd::AsFd,
};

use bytes::{BufMut, BytesMut};
use kvferry_memory::{Piece, send};
use kvferry_security::{
    ticket::{Nonce, Purpose},
    tls::DataSession,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::TcpStream,
};

use super::response::Response;

/// A connection's bytes, both ways.
pub(super) enum Stream {
    Clear(TcpStream),
    Tls(Box<Sealed>),
}

impl Stream {
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Clear(socket) => socket,
            Self::Tls(sealed) => &sealed.socket,
        }
    }

    /// What is signed on this connection where the owner gave this nonce.
    pub(super) fn proven(&self, nonce: &Nonce) -> (Purpose, Nonce) {
        match self {
            Self::Clear(_) => (Purpose::Data, *nonce),
            Self::Tls(sealed) => {
                let session = sealed.session.lock().binding();
                (Purpose::DataByTls, nonce.within(&session))
            }
        }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Clear(socket) => socket.write_all(bytes).await,
            Self::Tls(sealed) => sealed.write_all(bytes).await,
        }
    }

    pub(super) async fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Clear(socket) => socket.read_exact(into).await.map(drop),
            Self::Tls(sealed) => sealed.read_exact(into).await,
        }
    }

    /// Reads some more, as much as there is room for. 0 is the end.
    pub(super) async fn read_buf(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.read_buf(into).await,
            Self::Tls(sealed) => sealed.read_buf(into).await,
        }
    }

    /// Takes bytes without waiting; they may be on their way only after a [`flush`](Self::flush).
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.try_write(bytes),
            Self::Tls(sealed) => sealed.write(bytes),
        }
    }

    /// Hands the kernel what was taken and it did not take yet; `WouldBlock` where something is left.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Clear(_) => Ok(()),
            Self::Tls(sealed) => sealed.flush(&mut sealed.session.lock()),
        }
    }

    /// Was something taken that the kernel has not?
    pub(super) fn holds_back(&self) -> bool {
        match self {
            Self::Clear(_) => false,
            Self::Tls(sealed) => sealed.session.lock().wants_write(),
        }
    }

    /// Takes some of a response without waiting, and counts it as sent there. Either way its bytes were copied out of their
    /// memory by then. `more`: another response follows at once.
    pub(super) fn send(&self, response: &mut Response<'_>, more: bool) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => {
                let sent = socket.try_io(Interest::WRITABLE, || {
                    let (pieces, rest) = response.pieces()?;
                    send(socket.as_fd(), &pieces, rest || more)
                })?;
                response.advance(sent as u64);
                Ok(sent)
            }
            Self::Tls(sealed) => sealed.seal(|record| response.copy(record)),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket().readable().await
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        self.socket().writable().await
    }

    /// Says that nothing follows, as far as that can be said without waiting.
    pub(super) async fn shutdown(&mut self) {
        let socket = match self {
            Self::Clear(socket) => socket,
            Self::Tls(sealed) => {
                sealed.say_goodbye();
                &mut sealed.socket
            }
        };
        let _ = socket.shutdown().await;
    }
}

/// A socket, and the TLS session over it.
pub(super) struct Sealed {
    socket: TcpStream,
    /// Held for one chunk at a time: what is sent does not wait for long behind what arrives.
    session: Mutex<DataSession>,
}

impl Sealed {
    pub(super) fn new(socket: TcpStream, session: DataSession) -> Self {
        Self {
            socket,
            session: Mutex::new(session),
        }
    }

    /// Gives `take` bytes that have arrived, at most a record's, without waiting. Gives how many it took; 0 is the end of
    /// the stream.
    pub(super) fn open(&self, take: impl FnOnce(&[u8]) -> usize) -> io::Result<usize> {
        let mut session = self.session.lock();
        let opened = session.open(|room| self.socket.try_read(room), take);
        // An answer to new keys, or what is wrong with what came. Where it cannot go now, it goes with what follows.
        if session.wants_write() {
            let _ = self.flush(&mut session);
        }
        opened
    }

    /// Seals what `fill` gives, without waiting, where everything before it is on its way.
    fn seal(&self, fill: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let mut session = self.session.lock();
        self.flush(&mut session)?;
        let sealed = session.seal(fill)?;
        match self.flush(&mut session) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(sealed),
        }
    }

    fn flush(&self, session: &mut DataSession) -> io::Result<()> {
        match session.flush(&mut Wire(&self.socket)) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                Err(self.why(session, error))
            }
            flushed => flushed,
        }
    }

    /// Who refuses a certificate says so and hangs up: the words may lie here where a write only finds it gone.
    fn why(&self, session: &mut DataSession, error: io::Error) -> io::Error {
        match session.open(|room| self.socket.try_read(room), |_| 0) {
            Err(said) if said.kind() == io::ErrorKind::InvalidData => said,
            _ => error,
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        self.seal(|record| {
            let (now, later) = rest.split_at(rest.len().min(record.len()));
            record[..now.len()].copy_from_slice(now);
            rest = later;
            Ok(now.len())
        })
    }

    async fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() || self.session.lock().wants_write() {
            match self.write(rest) {
                Ok(taken) => rest = &rest[taken..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn read(&self, mut take: impl FnMut(&[u8]) -> usize) -> io::Result<usize> {
        loop {
            match self.open(&mut take) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.readable().await?;
                }
                opened => return opened,
            }
        }
    }

    async fn read_exact(&self, into: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            let room = &mut into[filled..];
            let read = self.read(|bytes| {
                let len = bytes.len().min(room.len());
                room[..len].copy_from_slice(&bytes[..len]);
                len
            });
            filled += match read.await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                some => some,
            };
        }
        Ok(())
    }

    async fn read_buf(&self, into: &mut BytesMut) -> io::Result<usize> {
        let room = into.capacity() - into.len();
        let read = self.read(|bytes| {
            let len = bytes.len().min(room);
            into.put_slice(&bytes[..len]);
            len
        });
        match read.await {
            // Who only asks loses nothing where it hangs up without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            read => read,
        }
    }

    /// Only behind whole records: elsewhere it would say that what was sent is all.
    fn say_goodbye(&self) {
        let mut session = self.session.lock();
        if !session.wants_write() {
            session.close();
            let _ = session.flush(&mut Wire(&self.socket));
        }
    }
}

/// Ciphertext's way to the kernel, without waiting.
struct Wire<'a>(&'a TcpStream);

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let pieces: Vec<_> = slices.iter().map(|slice| Piece::of_bytes(slice)).collect();
        loop {
            let sent = self
                .0
                .try_io(Interest::WRITABLE, || send(self.0.as_fd(), &pieces, false));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
