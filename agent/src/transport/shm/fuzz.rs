//! The descriptor socket: its frames, and an owner's connection.

use std::{
    io::Write,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::AtomicU64},
};

use tokio::net::UnixStream;

use super::{
    channel,
    frame::{Command, FRAME_BYTES, Greeting, REPLY_BYTES, Reply, incarnation},
    server::ShmOptions,
    session::{self, Shared},
};
use crate::{region::RegionCatalog, tickets::Gate};

/// Every frame decoder; what is taken is what would be sent.
///
/// # Panics
/// Where something is taken that nobody would send.
pub fn frames(bytes: &[u8]) {
    if let Some(frame) = bytes.first_chunk::<FRAME_BYTES>() {
        if let Ok(greeting) = Greeting::decode(frame) {
            assert_eq!(greeting.encode(), *frame);
            let _ = incarnation(greeting.incarnation);
        }
        if let Ok(command) = Command::decode(frame) {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }
    if let Some(frame) = bytes.first_chunk::<REPLY_BYTES>()
        && let Ok(reply) = Reply::decode(frame)
    {
        assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
    }
}

/// A connection to an owner of these regions: pieces of bytes, each with so many descriptors beside it, then its end.
///
/// # Panics
/// Where the owner answers what is no frame, or keeps what was left with it.
pub async fn owner(catalog: &Arc<RegionCatalog>, pieces: &[(&[u8], usize)]) {
    let Ok((ours, theirs)) = UnixStream::pair() else {
        return;
    };
    let Ok(null) = std::fs::File::open("/dev/null").map(OwnedFd::from) else {
        return;
    };
    let shared = Arc::new(Shared {
        catalog: Arc::clone(catalog),
        gate: Arc::new(Gate::open()),
        options: ShmOptions::default(),
        deposits: Arc::default(),
        handed_out: AtomicU64::new(0),
    });
    let deposits = Arc::clone(&shared.deposits);
    let (ours, theirs, null) = (&ours, theirs, &null);
    let talk = async move {
        let mut said = Vec::new();
        for (piece, descriptors) in pieces {
            let beside = vec![null.as_fd(); *descriptors];
            if channel::send(ours, piece, &beside).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
            said.write_all(piece).ok();
        }
        rustix::net::shutdown(ours, rustix::net::Shutdown::Write).ok();
        listen(ours, &said).await;
    };
    tokio::join!(session::run(theirs, shared, 1), talk);
    assert!(deposits.is_empty(), "a deposit outlives its connection");
}

/// A welcome, then a reply for each command that was understood.
async fn listen(ours: &UnixStream, said: &[u8]) {
    let Ok(Some((welcome, descriptors))) = channel::receive::<FRAME_BYTES>(ours).await else {
        return;
    };
    assert!(Greeting::decode(&welcome).is_ok() && descriptors.is_empty());
    let commands = said.len() / FRAME_BYTES - 1;
    let mut replies = 0;
    while let Ok(Some((reply, descriptors))) = channel::receive::<REPLY_BYTES>(ours).await {
        replies += 1;
        match Reply::decode(&reply) {
            Ok(Reply::Opened { .. }) => assert_eq!(descriptors.len(), 2),
            Ok(_) => assert!(descriptors.is_empty()),
            Err(error) => no_reply(&error),
        }
    }
    assert!(
        replies <= commands,
        "{replies} replies to {commands} commands"
    );
}

#[allow(clippy::panic)] // what this is for
fn no_reply(error: &super::ShmFrameError) {
    panic!("the owner sent what is no reply: {error}");
}
