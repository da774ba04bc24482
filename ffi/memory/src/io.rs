//! The kernel moves bytes straight between sockets and memory: no copy in user space.

use std::{io, marker::PhantomData, os::fd::AsRawFd, os::fd::BorrowedFd};

use crate::{AccessError, HostMemory};

/// Most pieces one call moves (the kernel's UIO_MAXIOV).
pub const MAX_PIECES: usize = 1024;

/// A piece of memory to send from.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Piece<'a>(libc::iovec, PhantomData<&'a HostMemory>);

/// A piece of memory to receive into.
#[repr(transparent)]
pub struct PieceMut<'a>(libc::iovec, PhantomData<&'a HostMemory>);

// SAFETY: a piece is a checked range of a mapping that outlives it; the kernel, not this program,
// looks through the pointer.
unsafe impl Send for Piece<'_> {}
// SAFETY: as above.
unsafe impl Sync for Piece<'_> {}
// SAFETY: as above.
unsafe impl Send for PieceMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for PieceMut<'_> {}

impl<'a> Piece<'a> {
    /// Checks a range of memory.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`].
    pub fn new(memory: &'a HostMemory, offset: u64, len: u64) -> Result<Self, AccessError> {
        Ok(Self(vector(memory, offset, len)?, PhantomData))
    }

    /// Bytes of a buffer that nobody changes meanwhile.
    #[must_use]
    pub fn of_bytes(bytes: &'a [u8]) -> Self {
        Self(
            libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            },
            PhantomData,
        )
    }

    /// How many bytes it has.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }
}

impl<'a> PieceMut<'a> {
    /// Checks a range of memory.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] or [`AccessError::ReadOnly`].
    pub fn new(memory: &'a HostMemory, offset: u64, len: u64) -> Result<Self, AccessError> {
        if !memory.is_writable() {
            return Err(AccessError::ReadOnly);
        }
        Ok(Self(vector(memory, offset, len)?, PhantomData))
    }

    /// How many bytes it has.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }
}

fn vector(memory: &HostMemory, offset: u64, len: u64) -> Result<libc::iovec, AccessError> {
    let at = memory.range(offset, len)?;
    Ok(libc::iovec {
        // SAFETY: the range was checked, so the result stays within (or one past) the mapping.
        iov_base: unsafe { memory.as_ptr().add(at) }.cast(),
        iov_len: len as usize, // within a mapping, so it fits
    })
}

/// Sends pieces over a connected socket, in order, without waiting. Gives the bytes taken, which may
/// end within a piece. Pieces past [`MAX_PIECES`] are not looked at. `more`: another call follows at once.
///
/// # Errors
/// What the kernel says: `WouldBlock` where nothing fits now; `EFAULT` as another error where the
/// file behind the memory was cut.
pub fn send(socket: BorrowedFd<'_>, pieces: &[Piece<'_>], more: bool) -> io::Result<usize> {
    let count = pieces.len().min(MAX_PIECES);
    let message = header(pieces.as_ptr().cast_mut().cast(), count);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: `message` points to `count` iovecs (Piece is a transparent iovec), each a checked
    // range of memory that outlives the call; the kernel only reads from them.
    taken(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// Receives from a connected socket into pieces, in order, without waiting. Gives the bytes stored,
/// which may end within a piece; 0 is the end of the stream (never for an empty list of pieces).
///
/// # Errors
/// What the kernel says: `WouldBlock` where nothing is there; `EFAULT` as another error where the
/// file behind the memory was cut.
pub fn receive(socket: BorrowedFd<'_>, pieces: &mut [PieceMut<'_>]) -> io::Result<usize> {
    let count = pieces.len().min(MAX_PIECES);
    let mut message = header(pieces.as_mut_ptr().cast(), count);
    // SAFETY: `message` points to `count` iovecs (PieceMut is a transparent iovec), each a checked
    // range of writable memory that outlives the call and to which no reference exists.
    taken(unsafe {
        libc::recvmsg(
            socket.as_raw_fd(),
            &raw mut message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })
}

/// Has a TCP socket become readable only when so many bytes have arrived, or it ends, or its buffer is full. Where more are there
/// already it becomes readable at once.
///
/// # Errors
/// What the kernel says.
pub fn set_receive_low_water(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and the length are those of a live integer, which the kernel only reads.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes up to `len` bytes from a TCP socket and throws them away in the kernel, without waiting.
/// 0 is the end of the stream.
///
/// # Errors
/// What the kernel says; `WouldBlock` where nothing is there.
pub fn discard(socket: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC on a TCP socket the kernel drops the bytes and never looks at the
    // buffer (tcp(7)), which therefore may be null.
    taken(unsafe {
        libc::recv(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            len,
            libc::MSG_TRUNC | libc::MSG_DONTWAIT,
        )
    })
}

fn header(pieces: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: msghdr is a plain C struct for which all zeros is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces;
    message.msg_iovlen = count as _;
    message
}

fn taken(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn is_readable(socket: &TcpStream, within_ms: libc::c_int) -> bool {
        let mut asked = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer is to one live pollfd, as the count says.
        let ready = unsafe { libc::poll(&raw mut asked, 1, within_ms) };
        ready == 1
    }

    #[test]
    fn a_socket_is_readable_from_its_low_water_on() {
        let (mut client, server) = pair();
        set_receive_low_water(server.as_fd(), 1000).unwrap();
        client.write_all(&[1; 999]).unwrap();
        assert!(!is_readable(&server, 50));
        client.write_all(&[1]).unwrap();
        assert!(is_readable(&server, 10_000));
        // What is there counts at once where less is asked for.
        set_receive_low_water(server.as_fd(), 2000).unwrap();
        assert!(!is_readable(&server, 0));
        set_receive_low_water(server.as_fd(), 1).unwrap();
        assert!(is_readable(&server, 0));
        // The end is told whatever is asked for.
        set_receive_low_water(server.as_fd(), 2000).unwrap();
        drop(client);
        assert!(is_readable(&server, 10_000));
    }

    #[test]
    fn pieces_are_gathered_and_scattered_in_order() {
        let (client, server) = pair();
        let from = HostMemory::anonymous(64).unwrap();
        from.write_at(0, b"abcdefgh").unwrap();
        let pieces = [
            Piece::of_bytes(b"<"),
            Piece::new(&from, 4, 4).unwrap(),
            Piece::new(&from, 0, 4).unwrap(),
        ];
        assert_eq!(send(client.as_fd(), &pieces, false).unwrap(), 9);
        let to = HostMemory::anonymous(64).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            // Loopback delivers at once, but only by its own clock.
            std::thread::sleep(std::time::Duration::from_millis(1));
            let mut pieces = [
                PieceMut::new(&to, 10, 2).unwrap(),
                PieceMut::new(&to, 20, 7).unwrap(),
            ];
            match receive(server.as_fd(), &mut pieces) {
                Ok(count) => seen.extend([count, 0]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(seen[0], 9);
        let mut bytes = [0; 9];
        to.read_at(10, &mut bytes[..2]).unwrap();
        to.read_at(20, &mut bytes[2..]).unwrap();
        assert_eq!(&bytes, b"<efghabcd");
    }

    #[test]
    fn discarded_bytes_are_gone() {
        let (mut client, mut server) = pair();
        client.write_all(b"0123456789").unwrap();
        let mut first = [0; 1];
        server.read_exact(&mut first).unwrap();
        assert_eq!(discard(server.as_fd(), 5).unwrap(), 5);
        let mut rest = [0; 4];
        server.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"6789");
    }

    #[test]
    fn a_cut_file_is_an_error_in_the_kernel_too() {
        let (client, _server) = pair();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(65_536).unwrap();
        let memory = HostMemory::import_path(file.path()).unwrap();
        file.as_file().set_len(0).unwrap();
        let pieces = [Piece::new(&memory, 8192, 100).unwrap()];
        let error = send(client.as_fd(), &pieces, false).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    }

    #[test]
    fn read_only_memory_receives_nothing() {
        let pool = HostMemory::pool("test", 64, crate::HugePages::Off).unwrap();
        let view = HostMemory::view(pool.read_only_descriptor().unwrap()).unwrap();
        assert!(matches!(
            PieceMut::new(&view, 0, 8),
            Err(AccessError::ReadOnly)
        ));
        assert!(Piece::new(&view, 0, 65).is_err());
    }
}
