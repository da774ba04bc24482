//! Two sides to read between: two devices where there are two, else one twice.

use std::{
    env,
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_ibverbs::{
    CompletionChannel, CompletionQueue, ConnectOptions, Context, Finished, GidPreference, Library,
    LocalAddress, LocalRegion, PairOptions, ProtectionDomain, QueuePair, ReadableRegion,
    ReadyToSend, RegisterOptions, RemoteKey, RemotePiece,
};
use kvferry_memory::HostMemory;

/// Nothing that is tested here takes longer, on the slowest emulated machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Side {
    pub(crate) context: Arc<Context>,
    pub(crate) domain: Arc<ProtectionDomain>,
    pub(crate) queue: Arc<CompletionQueue>,
    pub(crate) address: LocalAddress,
}

pub(crate) struct Rig {
    pub(crate) reader: Side,
    pub(crate) owner: Side,
}

/// None, with a line that says why, where there is nothing to test on.
pub(crate) fn rig() -> Option<Rig> {
    match build() {
        Ok(rig) => Some(rig),
        Err(why) => {
            skip(&why);
            None
        }
    }
}

pub(crate) fn skip(why: &str) {
    assert!(
        env::var("KVFERRY_RDMA_REQUIRED").is_err(),
        "must run here, and cannot: {why}"
    );
    println!("skipped: {why}");
}

pub(crate) fn contexts() -> Result<Vec<Arc<Context>>, String> {
    let library = Library::load().map_err(|error| error.to_string())?;
    let devices = library.devices().map_err(|error| error.to_string())?;
    let wanted = env::var("KVFERRY_RDMA_DEVICES").ok();
    let wanted: Option<Vec<&str>> = wanted.as_ref().map(|names| names.split(',').collect());
    let chosen = devices.iter().filter(|device| {
        wanted
            .as_ref()
            .is_none_or(|names| names.contains(&device.name()))
    });
    let contexts: Vec<_> = chosen.filter_map(|device| device.open().ok()).collect();
    if contexts.is_empty() {
        return Err("no RDMA device on this machine".into());
    }
    Ok(contexts)
}

fn build() -> Result<Rig, String> {
    let wanted = match env::var("KVFERRY_RDMA_GID").as_deref() {
        Ok("ipv4") => GidPreference::Ipv4,
        Ok("ipv6") => GidPreference::Ipv6,
        Ok(index) => GidPreference::Index(index.parse().map_err(|_| "KVFERRY_RDMA_GID")?),
        Err(_) => GidPreference::Auto,
    };
    let contexts = contexts()?;
    let mut usable = contexts
        .iter()
        .filter_map(|context| Some((context, context.address(1, wanted).ok()?)));
    let first = usable
        .next()
        .ok_or("no RDMA device has an active port with an address")?;
    let second = usable.next().unwrap_or(first);
    Ok(Rig {
        reader: side(first.0, first.1),
        owner: side(second.0, second.1),
    })
}

fn side(context: &Arc<Context>, address: LocalAddress) -> Side {
    let channel = CompletionChannel::new(context).unwrap();
    Side {
        domain: ProtectionDomain::new(context).unwrap(),
        queue: CompletionQueue::new(context, 4096, Some(&channel)).unwrap(),
        context: Arc::clone(context),
        address,
    }
}

impl Side {
    pub(crate) fn local(&self, memory: &Arc<HostMemory>) -> Arc<LocalRegion> {
        let all = 0..memory.len();
        LocalRegion::register(&self.domain, memory, all, RegisterOptions::default()).unwrap()
    }

    pub(crate) fn readable(&self, memory: &Arc<HostMemory>) -> Arc<ReadableRegion> {
        let all = 0..memory.len();
        ReadableRegion::register(&self.domain, memory, all, RegisterOptions::default()).unwrap()
    }

    /// Waits for that many, or for [`PATIENCE`].
    pub(crate) fn collect(&self, count: usize) -> Vec<Finished> {
        let (mut done, start) = (Vec::new(), Instant::now());
        while done.len() < count && start.elapsed() < PATIENCE {
            self.queue
                .wait(&mut done, Duration::from_millis(200))
                .unwrap();
        }
        assert_eq!(done.len(), count, "after {:?}", start.elapsed());
        done
    }
}

impl Rig {
    /// A connected pair of queue pairs.
    pub(crate) fn connect(
        &self,
        options: PairOptions,
        connect: ConnectOptions,
    ) -> (QueuePair<ReadyToSend>, QueuePair<ReadyToSend>) {
        let bound = |side: &Side| {
            QueuePair::new(&side.domain, &side.queue, options)
                .unwrap()
                .bind(&side.address)
                .unwrap()
        };
        let (reader, owner) = (bound(&self.reader), bound(&self.owner));
        let (to_owner, to_reader) = (owner.endpoint(), reader.endpoint());
        let ready = |pair: QueuePair<_>, peer| {
            QueuePair::connect(pair, peer, &connect)
                .unwrap()
                .ready()
                .unwrap()
        };
        (ready(reader, &to_owner), ready(owner, &to_reader))
    }

    pub(crate) fn connected(&self) -> (QueuePair<ReadyToSend>, QueuePair<ReadyToSend>) {
        self.connect(PairOptions::default(), ConnectOptions::default())
    }
}

pub(crate) fn memory(bytes: u64) -> Arc<HostMemory> {
    Arc::new(HostMemory::anonymous(bytes).unwrap())
}

/// Memory whose every 8 bytes differ.
pub(crate) fn patterned(bytes: u64, seed: u64) -> Arc<HostMemory> {
    let memory = memory(bytes);
    memory.write_at(0, &pattern(0, bytes, seed)).unwrap();
    memory
}

/// What `patterned` has from `offset` on (a multiple of 8, as is `len`).
pub(crate) fn pattern(offset: u64, len: u64, seed: u64) -> Vec<u8> {
    (offset / 8..(offset + len) / 8)
        .flat_map(|word| {
            (word ^ seed)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes()
        })
        .collect()
}

pub(crate) fn contents(memory: &HostMemory, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    memory.read_at(offset, &mut bytes).unwrap();
    bytes
}

pub(crate) fn at(key: RemoteKey, offset: u64) -> RemotePiece {
    RemotePiece {
        address: key.address + offset,
        rkey: key.rkey,
    }
}
