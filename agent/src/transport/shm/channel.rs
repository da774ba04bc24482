//! Frames with descriptors beside them, over a unix stream socket.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::{io::Interest, net::UnixStream};

use super::frame::MAX_DESCRIPTORS;

/// Room for the descriptors of one frame.
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Sends a frame whole, with descriptors beside its first byte.
pub(super) async fn send(
    stream: &UnixStream,
    frame: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut sent = 0;
    while sent < frame.len() {
        let beside = if sent == 0 { descriptors } else { &[] };
        let step = || {
            let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !beside.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(beside)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            rustix::net::sendmsg(
                stream.as_fd(),
                &[IoSlice::new(&frame[sent..])],
                &mut ancillary,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )
            .map_err(io::Error::from)
        };
        sent += stream.async_io(Interest::WRITABLE, step).await?;
    }
    Ok(())
}

/// Receives a frame whole. Gives the descriptors that came with it, at most [`MAX_DESCRIPTORS`]; the
/// kernel closes what is beyond. None at the end of the stream before the first byte.
pub(super) async fn receive<const N: usize>(
    stream: &UnixStream,
) -> io::Result<Option<([u8; N], Vec<OwnedFd>)>> {
    let mut frame = [0; N];
    let mut descriptors = Vec::new();
    let mut received = 0;
    while received < N {
        let step = || receive_some(stream, &mut frame[received..], &mut descriptors);
        match stream.async_io(Interest::READABLE, step).await? {
            0 if received == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => received += bytes,
        }
        // A frame of many parts, each with descriptors, must not collect more than one frame has.
        descriptors.truncate(MAX_DESCRIPTORS);
    }
    Ok(Some((frame, descriptors)))
}

fn receive_some(
    stream: &UnixStream,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(into)],
        &mut ancillary,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )?;
    for beside in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = beside {
            descriptors.extend(received);
        }
    }
    Ok(message.bytes)
}

/// Completes when the other side has hung up, or says something unasked.
pub(super) async fn hung_up(stream: &UnixStream) {
    let mut byte = [0u8; 1];
    let peek = || {
        rustix::net::recv(
            stream.as_fd(),
            byte.as_mut_slice(),
            RecvFlags::PEEK | RecvFlags::DONTWAIT,
        )
        .map(|_| ())
        .map_err(io::Error::from)
    };
    let _ = stream.async_io(Interest::READABLE, peek).await;
}
