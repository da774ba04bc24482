//! How data sockets are set up, at both ends.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which the kernel asks whether the peer's host is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// Questions without an answer after which the connection is dead.
const KEEPALIVE_PROBES: u32 = 3;
/// Sent bytes without acknowledgement for this long: the peer's host or the network is gone. Longer
/// than a switch takes to fail over, shorter than a person's patience.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Small frames at once, dead hosts noticed. Buffer sizes are left to the kernel, which measures the
/// path; a fixed size would turn that off.
pub(super) fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}
