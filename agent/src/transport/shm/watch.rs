//! Is the owner still there? Looked at after words were loaded.
//!
//! An owner that is killed leaves its words as they are: even. While it lives, its engine writes to nothing before the words
//! are odd; when it is dead, its engine may write as it likes, and a word that is loaded then says nothing. So a
//! read with words counts only if the owner was still there after they were loaded:
//!
//! 1. The kernel closes the owner's sockets as the process ends, and our end of its connection is hung up from then on.
//! 2. The engine learns of the death no sooner than that: its client holds the news back until the process is gone
//!    (`kvferry_client`), which comes after all its files were closed. The order in which the kernel closes them does not
//!    matter.
//! 3. Then the engine writes.
//!
//! Whoever copied a byte of 3. has it behind 1., so that this look, which comes after the copies and the loads, sees the
//! hang-up. An owner that hangs up on us but lives makes us give up a read that was good, and nothing worse.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{Ordering, fence},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Our end of the connection to the owner, to be looked at from any thread.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    /// # Errors
    /// Out of descriptors.
    pub(super) fn new(stream: &impl AsFd) -> io::Result<Self> {
        Ok(Self(stream.as_fd().try_clone_to_owned()?))
    }

    /// Has the owner hung up? Takes no time and changes nothing.
    pub(super) fn hung_up(&self) -> bool {
        // What was copied and loaded before this is not older than what the kernel says now.
        fence(Ordering::SeqCst);
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut looked = [PollFd::new(&self.0, PollFlags::RDHUP)];
        loop {
            match poll(&mut looked, Some(&now)) {
                Ok(events) => return events > 0,
                Err(rustix::io::Errno::INTR) => {}
                // Nothing is known of it: not there.
                Err(_) => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn an_end_is_seen_at_once_and_words_are_no_end() {
        let (owner, reader) = UnixStream::pair().unwrap();
        let watch = Watch::new(&reader).unwrap();
        assert!(!watch.hung_up());
        (&owner).write_all(b"words").unwrap();
        assert!(!watch.hung_up());
        drop(owner);
        assert!(watch.hung_up(), "also where something is still to be read");
    }
}
