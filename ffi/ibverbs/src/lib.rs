//! One-sided RDMA READ through libibverbs, with the hardware's rules as types.
//!
//! - Children own an `Arc` of what they were made from ([`Context`] -> [`ProtectionDomain`] ->
//!   [`ReadableRegion`], [`LocalRegion`]; [`CompletionChannel`] -> [`CompletionQueue`] -> [`QueuePair`]), so nothing
//!   is torn down before what was made from it.
//! - A queue pair's states are types; see [`QueuePair`] for what does not compile.
//! - A READ that was posted keeps the memory it writes to registered and alive until its completion, or a later one of its
//!   queue pair, was polled ([`CompletionQueue::poll`]). Closing or dropping a queue pair settles first. Memory that a
//!   device does not give back is never freed.
//! - Regions are readable by peers or writable by our own READs, never writable by peers.
//! - A completion queue cannot overrun: queue pairs reserve their room in it.
//!
//! The library is looked for when the program runs: [`Library::load`] answers with an error where it is missing.

mod cache;
mod chain;
mod channel;
mod context;
mod domain;
mod endpoint;
mod events;
mod flight;
mod gid;
mod leak;
mod library;
mod memlock;
mod mtu;
mod pair;
mod pair_core;
mod port;
mod psn;
mod queue;
mod region;
mod register_error;
mod sender;
mod software;
mod status;
mod sysfs;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use cache::RegionCache;
pub use chain::{ChainError, ReadChain, RemotePiece};
pub use channel::{ChannelError, CompletionChannel};
pub use context::{Context, DeviceAttributes, OpenError, PortAddressError, QueryError};
pub use domain::{DomainError, ProtectionDomain};
pub use endpoint::{ConnectOptions, Endpoint};
pub use events::AsyncEvent;
pub use flight::WorkError;
pub use gid::{AddressError, Gid, GidEntry, GidKind, GidPreference, LocalAddress, choose_address};
pub use kvferry_rdma_sys::LoadError;
pub use library::{Device, Library, ListError};
pub use memlock::MemlockLimit;
pub use mtu::Mtu;
pub use pair::{Failed, Init, QueuePair, ReadyToReceive, ReadyToSend, Reset};
pub use pair_core::{ConnectError, PairError, PairOptions};
pub use port::{LinkLayer, PortInfo, PortState};
pub use psn::Psn;
pub use queue::{CompletionQueue, Finished, PollError, QueueError};
pub use region::{
    DeviceMemory, DmaBuf, LocalPiece, LocalRegion, ReadableRegion, RegisterOptions, RemoteKey,
};
pub use register_error::RegisterError;
pub use sender::{PostError, lost_bytes};
pub use status::WorkStatus;

/// A panic elsewhere does not make what the lock guards wrong: every change under it is complete.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Device>();
        shared::<Context>();
        shared::<ProtectionDomain>();
        shared::<ReadableRegion>();
        shared::<LocalRegion>();
        shared::<RegionCache>();
        shared::<CompletionChannel>();
        shared::<CompletionQueue>();
        shared::<QueuePair<Init>>();
        shared::<QueuePair<ReadyToSend>>();
        fn sent<T: Send>() {}
        sent::<ReadChain>();
    }
}
