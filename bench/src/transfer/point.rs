//! What is measured: one point is one way to pull.

use serde::{Deserialize, Serialize};

/// Most bytes of blocks a point keeps at its owner: a batch more than is ever cached, and no more
/// memory than a build machine has to spare.
const MAX_WORKING_BYTES: u64 = 1 << 30;
/// Bytes of blocks a point keeps at least: several times a large last level cache, because KV that
/// moves between nodes is in nobody's cache.
const MIN_WORKING_BYTES: u64 = 128 << 20;
/// Most blocks of a point: what one namespace of small blocks needs for its working set.
const MAX_WORKING_BLOCKS: u64 = 1 << 17;

/// How bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Sockets.
    Tcp,
    /// Sockets, payload by TLS. Measured only where it is asked for.
    #[serde(rename = "tcp-tls")]
    TcpTls,
    /// The owner's memory, mapped.
    Shm,
    /// READs by a network card. Measured only where it is asked for: most machines have none.
    Rdma,
}

impl Transport {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::TcpTls, Self::Shm, Self::Rdma];

    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::TcpTls => "tcp-tls",
            Self::Shm => "shm",
            Self::Rdma => "rdma",
        }
    }

    /// As the agent's `--transport` and its outcomes have it: whether a socket's bytes are encrypted is another setting.
    #[must_use]
    pub fn of_agent(self) -> &'static str {
        match self {
            Self::TcpTls => Self::Tcp.as_str(),
            other => other.as_str(),
        }
    }

    /// Is payload, and all else between processes, by TLS?
    #[must_use]
    pub fn by_tls(self) -> bool {
        self == Self::TcpTls
    }

    /// Is it measured where nothing is said of transports? What needs a card is not, nor what measures the others' points
    /// once more.
    #[must_use]
    pub fn is_usual(self) -> bool {
        matches!(self, Self::Tcp | Self::Shm)
    }
}

/// One way to pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// How bytes travel.
    pub transport: Transport,
    /// Pieces a block lies in, at both ends.
    pub planes: u32,
    /// Bytes of a piece.
    pub plane_bytes: u64,
    /// Blocks of one pull call.
    pub batch: u32,
    /// Pull calls of one engine at a time.
    pub in_flight: u32,
    /// Engines that pull from the owner at the same time, each beside an agent of its own.
    pub readers: u32,
    /// Most data connections between two agents.
    pub connections: u32,
    /// Every block carries a checksum, which the reader compares.
    pub checksum: bool,
    /// The owner publishes what is pulled within the time that is taken: what a whole prompt costs.
    pub publish: bool,
}

impl Point {
    /// One plane, one reader, one call at a time, as many connections as an agent opens by itself.
    #[must_use]
    pub fn new(transport: Transport, block_bytes: u64, batch: u32) -> Self {
        Self {
            transport,
            planes: 1,
            plane_bytes: block_bytes,
            batch,
            in_flight: 1,
            readers: 1,
            connections: 4,
            checksum: false,
            publish: false,
        }
    }

    /// With blocks of many pieces.
    #[must_use]
    pub fn planes(mut self, planes: u32, plane_bytes: u64) -> Self {
        (self.planes, self.plane_bytes) = (planes, plane_bytes);
        self
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.planes) * self.plane_bytes
    }

    /// Bytes of one pull call.
    #[must_use]
    pub fn batch_bytes(&self) -> u64 {
        self.block_bytes() * u64::from(self.batch)
    }

    /// Batches of different blocks at the owner. A reader has room for fewer, so that no block is
    /// there already when its turn comes again.
    #[must_use]
    pub fn sets(&self) -> u32 {
        if self.publish {
            return 1;
        }
        let least = u64::from(self.lag()) + 2 * u64::from(self.in_flight);
        let cached = MIN_WORKING_BYTES.div_ceil(self.batch_bytes().max(1));
        let blocks = MAX_WORKING_BLOCKS / u64::from(self.batch.max(1));
        let bytes = MAX_WORKING_BYTES / self.batch_bytes().max(1);
        let sets = cached.min(blocks).min(bytes).max(least);
        u32::try_from(sets).unwrap_or(u32::MAX)
    }

    /// How far calls that run beside each other may overtake one another: no block may still be there
    /// from the call before when its turn comes again.
    fn lag(&self) -> u32 {
        match self.in_flight {
            1 => 1,
            calls => 4 * calls,
        }
    }

    /// Batches a reader has room for.
    #[must_use]
    pub fn reader_sets(&self) -> u32 {
        match self.publish {
            true => 1,
            false => self.sets().saturating_sub(self.lag()).max(1),
        }
    }

    /// In a few words, unique among points.
    #[must_use]
    pub fn name(&self) -> String {
        let shape = match self.planes {
            1 => size(self.plane_bytes),
            planes => format!("({planes} x {})", size(self.plane_bytes)),
        };
        let mut name = format!("{} {} x {shape}", self.transport.as_str(), self.batch);
        if self.transport.of_agent() == "tcp" && self.connections != 4 {
            name += &format!(", {} conn", self.connections);
        }
        if self.in_flight != 1 {
            name += &format!(", {} calls", self.in_flight);
        }
        if self.readers != 1 {
            name += &format!(", {} readers", self.readers);
        }
        if self.checksum {
            name += ", checksum";
        }
        if self.publish {
            name += ", with publish";
        }
        name
    }
}

/// Bytes, as people write them.
#[must_use]
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b.is_multiple_of(1 << 30) => format!("{}GiB", b >> 30),
        b if b >= 1 << 20 && b.is_multiple_of(1 << 20) => format!("{}MiB", b >> 20),
        b if b >= 1 << 10 && b.is_multiple_of(1 << 10) => format!("{}KiB", b >> 10),
        b => format!("{b}B"),
    }
}

/// Enough of every path to see that it works: for tests and CI.
#[must_use]
pub fn quick() -> Vec<Point> {
    vec![
        Point::new(Transport::Tcp, 256 << 10, 16),
        Point::new(Transport::Tcp, 0, 8).planes(80, 8 << 10),
        Point::new(Transport::TcpTls, 256 << 10, 16),
        Point::new(Transport::Shm, 1 << 20, 8),
        Point::new(Transport::Rdma, 256 << 10, 16),
    ]
}

/// The points whose figures are promised, and a sweep over block sizes.
#[must_use]
pub fn usual() -> Vec<Point> {
    let (kib, mib) = (1 << 10, 1 << 20);
    let tcp = |bytes, batch| Point::new(Transport::Tcp, bytes, batch);
    let shm = |bytes, batch| Point::new(Transport::Shm, bytes, batch);
    let rdma = |bytes, batch| Point::new(Transport::Rdma, bytes, batch);
    let mut points = vec![
        tcp(64 * kib, 1),
        tcp(4 * kib, 128),
        tcp(8 * kib, 128),
        tcp(64 * kib, 64),
        tcp(256 * kib, 64),
        tcp(mib, 64),
        tcp(4 * mib, 64),
        tcp(16 * mib, 8),
        tcp(0, 64).planes(80, 8 * kib),
        tcp(0, 64).planes(160, 8 * kib),
        tcp(0, 64).planes(64, 32 * kib),
        Point {
            checksum: true,
            ..tcp(mib, 64)
        },
        Point {
            in_flight: 2,
            ..tcp(mib, 64)
        },
        shm(64 * kib, 1),
        shm(8 * kib, 128),
        shm(64 * kib, 64),
        shm(256 * kib, 64),
        shm(2 * mib, 64),
        shm(16 * mib, 8),
        shm(0, 64).planes(80, 8 * kib),
        shm(0, 64).planes(64, 32 * kib),
        Point {
            publish: true,
            ..shm(2 * mib, 1000)
        },
    ];
    points.extend([
        rdma(64 * kib, 1),
        rdma(8 * kib, 128),
        rdma(64 * kib, 64),
        rdma(256 * kib, 64),
        rdma(mib, 64),
        rdma(4 * mib, 64),
        rdma(0, 64).planes(80, 8 * kib),
        rdma(0, 64).planes(64, 32 * kib),
    ]);
    // What TLS costs is told by two points that differ in nothing else.
    let clear: Vec<_> = points
        .iter()
        .filter(|p| p.transport == Transport::Tcp)
        .cloned()
        .collect();
    points.extend(clear.into_iter().map(|point| Point {
        transport: Transport::TcpTls,
        ..point
    }));
    points.sort_by_key(|point| (point.transport, point.connections));
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_gone_before_its_turn_comes_again() {
        for point in usual().into_iter().chain(quick()) {
            let enough = point.sets() >= point.reader_sets() + point.in_flight;
            assert!(point.publish || enough, "{}", point.name());
            assert!(point.reader_sets() >= 1);
        }
    }

    #[test]
    fn names_tell_points_apart() {
        let names: std::collections::BTreeSet<_> = usual().iter().map(Point::name).collect();
        assert_eq!(names.len(), usual().len());
        assert!(names.contains("tcp 64 x (80 x 8KiB)"));
        assert!(names.contains("tcp-tls 64 x (80 x 8KiB)"));
    }

    #[test]
    fn every_point_in_clear_has_its_twin_by_tls() {
        let of = |transport| {
            let points = usual()
                .into_iter()
                .filter(move |p| p.transport == transport);
            points
                .map(|p| Point {
                    transport: Transport::Tcp,
                    ..p
                })
                .collect::<Vec<_>>()
        };
        assert!(!of(Transport::Tcp).is_empty());
        assert_eq!(of(Transport::Tcp), of(Transport::TcpTls));
    }

    #[test]
    fn transports_are_written_as_they_are_asked_for() {
        for transport in Transport::ALL {
            let written = serde_json::to_string(&transport).unwrap();
            assert_eq!(written, format!("\"{}\"", transport.as_str()));
        }
    }
}
