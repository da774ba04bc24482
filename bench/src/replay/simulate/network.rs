//! The modelled network: every node has a port of equal speed in each direction, and everything else
//! is as fast as it has to be. A port works without a gap; a read has ended when the owner's port and
//! the reader's are both through with it, and a round trip later.

use std::time::Duration;

/// What a network is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Network {
    /// Of each node's port, in each direction, in 10^9 bits a second.
    pub nic_gbit_per_s: f64,
    /// Between any two processes, the coordinator's included.
    pub rtt: Duration,
}

/// One direction of a node's port.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Port {
    free_at: Duration,
    pub(super) busy: Duration,
}

impl Port {
    fn takes(&mut self, now: Duration, time: Duration) -> Duration {
        self.free_at = self.free_at.max(now) + time;
        self.busy += time;
        self.free_at
    }
}

impl Network {
    fn time(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / (self.nic_gbit_per_s * 1e9))
    }

    /// When bytes that are asked for now have arrived.
    pub(super) fn read(
        &self,
        now: Duration,
        bytes: u64,
        out: &mut Port,
        into: &mut Port,
    ) -> Duration {
        let time = self.time(bytes);
        out.takes(now, time).max(into.takes(now, time)) + self.rtt
    }

    /// One way of a round trip.
    pub(super) fn way(&self) -> Duration {
        self.rtt / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_shared_and_two_ports_are_not() {
        let network = Network {
            nic_gbit_per_s: 8.0,
            rtt: Duration::from_millis(1),
        };
        let second = Duration::from_secs(1);
        let mut ports = [Port::default(); 4];
        let [out, a, b, other] = &mut ports;
        let read = |out: &mut Port, into: &mut Port| {
            network.read(Duration::ZERO, 1_000_000_000, out, into)
        };
        assert_eq!(read(out, a), second + network.rtt);
        // The owner's port is the narrow one.
        assert_eq!(read(out, b), 2 * second + network.rtt);
        // The reader's.
        assert_eq!(read(other, a), 2 * second + network.rtt);
        assert_eq!(out.busy, 2 * second);
    }
}
