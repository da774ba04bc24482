//! What the transports give beside plain sockets and plain copies, in one process. Not a test: run it with
//! `cargo test --release --test conformance -- --ignored --nocapture --test-threads 1 speed`.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_agent::transport::{Link, LocalSpans, ReadRequest};
use kvferry_memory::{HostMemory, copy_ranges};

use crate::{
    shm::ShmWorld,
    tcp::TcpWorld,
    world::{REGION_BYTES, World, data, local, settled},
};

const LENGTH: Duration = Duration::from_secs(2);
const MIB: u64 = 1 << 20;
/// Bytes every measurement writes to, in turn.
const SINK_BYTES: u64 = 64 << 20;

/// Processor time of this process, in seconds: clock ticks are a hundredth each on every Linux.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = |i: usize| fields[i].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

struct Meter {
    start: Instant,
    cpu: f64,
}

impl Meter {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            cpu: cpu_seconds(),
        }
    }
    fn report(&self, what: &str, bytes: u64) -> f64 {
        let gigabytes = bytes as f64 / 1e9;
        let rate = gigabytes / self.start.elapsed().as_secs_f64();
        let cores = (cpu_seconds() - self.cpu) / gigabytes;
        println!("{what:<42} {rate:>6.2} GB/s  {cores:>5.2} core-seconds/GB");
        rate
    }
}

fn plain_sockets() -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sender = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let source = vec![7u8; REGION_BYTES as usize];
        loop {
            for piece in source.chunks(MIB as usize) {
                if stream.write_all(piece).is_err() {
                    return;
                }
            }
        }
    });
    let mut stream = TcpStream::connect(address).unwrap();
    let mut sink = vec![0u8; SINK_BYTES as usize];
    let (mut meter, mut bytes, mut warm) = (Meter::new(), 0, false);
    while !warm || meter.start.elapsed() < LENGTH {
        for piece in sink.chunks_mut(MIB as usize) {
            stream.read_exact(piece).unwrap();
            bytes += MIB;
        }
        if !warm {
            (warm, meter, bytes) = (true, Meter::new(), 0);
        }
    }
    let rate = meter.report("plain sockets, 1 MiB", bytes);
    drop(stream);
    sender.join().unwrap();
    rate
}

fn plain_ping_pong(len: usize) -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let sender = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.set_nodelay(true).unwrap();
        let (mut ask, source) = ([0; 32], vec![7u8; len]);
        while stream.read_exact(&mut ask).is_ok() {
            stream.write_all(&source).unwrap();
        }
    });
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut sink = vec![0; len];
    let median = median(5000, || {
        stream.write_all(&[0; 32]).unwrap();
        stream.read_exact(&mut sink).unwrap();
    });
    drop(stream);
    sender.join().unwrap();
    median
}

fn median(rounds: usize, mut round: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            round();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[rounds / 2]
}

/// Rounds of `count` reads of `len` bytes, each cut into remote spans of `cut` bytes.
async fn rounds(link: &Arc<dyn Link>, what: &str, count: u64, len: u64, cut: u64) -> f64 {
    // As much memory as the yardstick writes to, used in turn: a small destination would stay in the
    // cache, and flatter.
    let memory = local(SINK_BYTES);
    let (mut meter, mut bytes, mut round, mut warm) = (Meter::new(), 0, 0, false);
    let rounds = SINK_BYTES / (count * len);
    while !warm || meter.start.elapsed() < LENGTH {
        let base = round % rounds * count * len;
        round += 1;
        let reads: Vec<_> = (0..count)
            .map(|i| {
                // Every second piece of the region, so that neighbours do not become one.
                let remote = (0..len / cut).map(|j| {
                    let start = (base + i * len + 2 * j * cut) % (REGION_BYTES - cut);
                    data(start..start + cut)
                });
                link.read(ReadRequest {
                    remote: remote.collect(),
                    local: LocalSpans {
                        memory: Arc::clone(&memory),
                        ranges: (0..len / cut)
                            .map(|j| base + i * len + j * cut..base + i * len + (j + 1) * cut)
                            .collect(),
                    },
                })
            })
            .collect();
        for read in reads {
            settled(read).await.unwrap();
        }
        bytes += count * len;
        // Once through the destination, so that its pages are there.
        if !warm && round >= rounds {
            (warm, meter, bytes) = (true, Meter::new(), 0);
        }
    }
    meter.report(what, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn speed_of_tcp() {
    let world = TcpWorld::start().await;
    let link = world.direct_link().await;
    for _ in 0..3 {
        let plain = plain_sockets();
        let whole = rounds(&link, "tcp, 64 reads of 1 MiB", 64, MIB, MIB).await;
        let planes = rounds(&link, "tcp, 64 reads of 80 x 8 KiB", 64, 80 * 8192, 8192).await;
        let small = rounds(&link, "tcp, 4 reads of 128 x 4 KiB", 4, 128 * 4096, 4096).await;
        println!(
            "ratios to plain sockets: {:.2}, {:.2}, {:.2}; {:.0} k blocks/s of 4 KiB",
            whole / plain,
            planes / plain,
            small / plain,
            small * 1e6 / 4096.0
        );
        let plain = plain_ping_pong(65_536);
        let memory = local(65_536);
        let mut times = Vec::new();
        for _ in 0..5000 {
            let start = Instant::now();
            let one = ReadRequest {
                remote: vec![data(0..65_536)],
                local: crate::world::whole(&memory),
            };
            settled(link.read(one)).await.unwrap();
            times.push(start.elapsed());
        }
        times.sort_unstable();
        println!("64 KiB, p50: plain {plain:?}, tcp {:?}", times[2500]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn speed_of_shm() {
    let world = ShmWorld::start().await;
    let link = world.link().await;
    let region = world.catalog().get(crate::world::REGION).unwrap();
    let view = HostMemory::view(region.memory.read_only_descriptor().unwrap()).unwrap();
    let into = local(SINK_BYTES);
    #[allow(clippy::single_range_in_vec_init)]
    for _ in 0..3 {
        let (mut meter, mut bytes) = (Meter::new(), 0);
        let mut warm = false;
        while !warm || meter.start.elapsed() < LENGTH {
            for i in 0..32 {
                let from = (i * 2 * MIB) % (REGION_BYTES - 2 * MIB);
                let to = i * 2 * MIB..(i + 1) * 2 * MIB;
                copy_ranges(&view, [from..from + 2 * MIB], &into, [to]).unwrap();
                bytes += 2 * MIB;
            }
            if !warm {
                (warm, meter, bytes) = (true, Meter::new(), 0);
            }
        }
        let plain = meter.report("one thread of memcpy, 2 MiB", bytes);
        let one = rounds(&link, "shm, 1 read of 2 MiB at a time", 1, 2 * MIB, 2 * MIB).await;
        let many = rounds(&link, "shm, 32 reads of 2 MiB", 32, 2 * MIB, 2 * MIB).await;
        let planes = rounds(&link, "shm, 32 reads of 64 x 32 KiB", 32, 2 * MIB, 32_768).await;
        println!(
            "ratios to memcpy: {:.2}, {:.2}, {:.2}",
            one / plain,
            many / plain,
            planes / plain
        );
    }
}
