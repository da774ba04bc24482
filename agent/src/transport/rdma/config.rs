//! What can be set, and the bounds that cannot.

use std::time::Duration;

/// Bytes of one READ at most: progress and cancelling are as fine as this, and a hundred thousand of
/// them a second fill 200 Gb/s.
pub(super) const CHUNK_BYTES: u64 = 256 << 10;
/// Local pieces of one READ at most: what every device takes without a larger queue entry being wasted
/// on the many READs that have one.
pub(super) const CHUNK_PIECES: u32 = 16;
/// Reads of at most so many bytes stay on one queue pair, where READs are done in order: striping would not make
/// them faster.
pub(super) const ONE_LANE_BYTES: u64 = 64 << 10;
/// READs a queue pair holds at a time.
pub(super) const PAIR_DEPTH: u32 = 64;
/// A completion for every so many READs: buffers come free in eighths of the depth.
pub(super) const SIGNAL_EVERY: u32 = 8;
/// Bytes on one queue pair at a time: 400 Gb/s over 100 us, and little enough that READs of one link are
/// striped over all its queue pairs.
pub(super) const LANE_WINDOW_BYTES: u64 = 8 << 20;
/// The same on a software device, whose processor works through the READs of one queue pair after the other: those that
/// wait must not be taken for lost. Enough for 1 GB/s over 1 ms.
pub(super) const SOFTWARE_WINDOW_BYTES: u64 = 1 << 20;
/// How long such a device may keep a packet waiting, as [`kvferry_ibverbs::ConnectOptions`] has it: 134 ms a try, a dead
/// peer noticed in a second. A try that was only late makes it send much again.
pub(super) const SOFTWARE_TIMEOUT_EXPONENT: u8 = 15;
/// Completions a reader's queue has room for: about a thousand queue pairs; cut to what the device can do.
pub(super) const READER_COMPLETIONS: u32 = 65_536;
/// Queue pairs that readers may hold of one device: a thousand readers with a few each.
pub(super) const MAX_ANSWERING_PAIRS: u32 = 4096;
/// Readers' sessions at a time.
pub(super) const MAX_SESSIONS: usize = 1024;
/// Protection domains for readers that may not read everything: as many kinds of readers as there are tenants on one
/// node. Each has its own registrations of what it may read.
pub(super) const MAX_ROOMS: usize = 32;
/// Challenges that wait for their proof, in all and of one reader: it opens a link at a time, and adds queue pairs.
pub(super) const MAX_CHALLENGES: usize = 1024;
pub(super) const MAX_CHALLENGES_PER_READER: usize = 8;
/// How long a challenge waits: a reader answers with its next call.
pub(super) const CHALLENGE_LIFE: Duration = Duration::from_secs(5);
/// Endpoints in one request: eight devices with eight queue pairs.
pub(super) const MAX_ENDPOINTS: usize = 64;
/// Regions described in one request.
pub(super) const MAX_DESCRIBED: usize = 1024;
/// Registrations kept per device: more regions than an agent may have, with their words.
pub(super) const MAX_REGISTRATIONS: usize = 16_384;

/// A session that was not renewed for this long is torn down: three renewals missed.
pub(super) const LEASE: Duration = Duration::from_secs(15);
/// How often a reader renews each session. An owner that died without READs under way is noticed within this and a
/// little, one with READs at once; an idle link costs a call so often.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(5);
/// How often an owner looks for sessions that were not renewed or have no right any more, and a reader for memory
/// nobody uses.
pub(super) const SWEEP_EVERY: Duration = Duration::from_millis(2500);
/// Until a renewal that failed is tried again.
pub(super) const RENEW_AGAIN: Duration = Duration::from_millis(250);
/// Until a reader has connected: some calls, and READs that prove the way.
pub(super) const CONNECT_BOUND: Duration = Duration::from_secs(5);
/// Until the Peer service has answered one call.
pub(super) const CALL_BOUND: Duration = Duration::from_secs(2);
/// Until the READ that proves a path is over: all retries of a queue pair, on devices that take four times
/// as long as they were told.
pub(super) const PROBE_BOUND: Duration = Duration::from_secs(3);
/// How long a cancelled READ may still end by itself; then its queue pair is closed. Under the pull engine's
/// margin for settling.
pub(super) const CANCEL_GRACE: Duration = Duration::from_millis(20);
/// How long a closed queue pair may take to give its READs up. Devices do within milliseconds.
pub(super) const DRAIN_BOUND: Duration = Duration::from_secs(2);
/// Busy polling after the last completion, while READs are under way: about one round trip.
pub(super) const BUSY_POLL: Duration = Duration::from_micros(50);
/// How often an idle thread looks whether it is still needed.
pub(super) const IDLE_WAIT: Duration = Duration::from_secs(10);
/// Pauses between tries to connect a lane again.
pub(super) const RECONNECT_FIRST: Duration = Duration::from_millis(500);
pub(super) const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Tries of one READ whose queue pairs fail under it.
pub(super) const MAX_ATTEMPTS: u8 = 4;

/// Fewest and most queue pairs per peer and device.
pub const QPS_PER_PEER: (u64, u64) = (1, 8);

/// How RDMA is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdmaConfig {
    /// Devices to use, as the kernel calls them, with a port if it is not the first usable one
    /// (`mlx5_0`, `mlx5_1:2`); empty: all.
    pub nics: Vec<String>,
    /// The place in the port's GID table to use; None chooses RoCE v2 over IPv4, else over IPv6.
    pub gid_index: Option<u32>,
    /// Queue pairs per peer and device.
    pub qps_per_peer: u32,
}

impl Default for RdmaConfig {
    fn default() -> Self {
        Self {
            nics: Vec::new(),
            gid_index: None,
            // One is served by one engine of the card; two keep two busy.
            qps_per_peer: 2,
        }
    }
}
