//! Limits of the machine and of the device, told as such.

use std::{fs, os::fd::AsFd, sync::Arc};

use kvferry_ibverbs::{
    CompletionQueue, DmaBuf, LocalRegion, MemlockLimit, PairError, PairOptions, QueueError,
    QueuePair, ReadableRegion, RegisterError, RegisterOptions,
};
use kvferry_memory::{HostMemory, HugePages};

use crate::rig::{self, memory};

/// CAP_IPC_LOCK, which lifts the limit.
const IPC_LOCK: u64 = 1 << 14;

fn may_lock_without_limit() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .is_some_and(|hex| u64::from_str_radix(hex.trim(), 16).is_ok_and(|set| set & IPC_LOCK != 0))
}

#[test]
fn a_registration_over_the_memlock_limit_names_it() {
    let Some(rig) = rig::rig() else { return };
    let limit = MemlockLimit::now().current_bytes;
    let Some(limit) = limit.filter(|limit| *limit <= 1 << 30 && !may_lock_without_limit()) else {
        return println!("skipped: this process may lock as much as it likes");
    };
    let bytes = limit + (1 << 20);
    let error = ReadableRegion::register(
        &rig.owner.domain,
        &memory(bytes),
        0..bytes,
        RegisterOptions::default(),
    )
    .unwrap_err();
    println!("{error}");
    assert!(matches!(
        &error,
        RegisterError::MemoryLock { bytes: asked, limit: said, .. }
            if *asked == bytes && said.current_bytes == Some(limit)
    ));
    assert!(error.to_string().contains("LimitMEMLOCK=infinity"));
}

#[test]
fn memory_mapped_for_reading_is_no_place_to_read_into() {
    let Some(rig) = rig::rig() else { return };
    let pool = HostMemory::pool("test", 8192, HugePages::Off).unwrap();
    let view = Arc::new(HostMemory::view(pool.read_only_descriptor().unwrap()).unwrap());
    let options = RegisterOptions::default();
    let pool = Arc::new(pool);
    ReadableRegion::register(&rig.owner.domain, &pool, 0..8192, options).unwrap();
    LocalRegion::register(&rig.owner.domain, &pool, 0..8192, options).unwrap();
    // To be read by peers, some kernels take it (Linux 6.1 does not): the owner's own mapping is what to register.
    let error = LocalRegion::register(&rig.owner.domain, &view, 0..8192, options).unwrap_err();
    println!("{error}");
    assert!(matches!(error, RegisterError::NotPinnable { .. }));
}

#[test]
fn a_descriptor_that_is_no_dma_buf_is_refused() {
    let Some(rig) = rig::rig() else { return };
    let file = fs::File::open("/dev/null").unwrap();
    let buffer = DmaBuf {
        fd: file.as_fd(),
        offset: 0,
        len: 4096,
        address: 0,
        owner: Arc::new(()),
    };
    let error = ReadableRegion::register_dmabuf(&rig.owner.domain, &buffer).unwrap_err();
    println!("{error}");
    assert!(matches!(
        error,
        RegisterError::DmaBufRefused { .. } | RegisterError::NoDmaBuf { .. }
    ));
}

#[test]
fn a_completion_queue_cannot_be_overbooked() {
    let Some(rig) = rig::rig() else { return };
    let side = &rig.reader;
    let queue = CompletionQueue::new(&side.context, 100, None).unwrap();
    let options = PairOptions {
        depth: 49,
        ..PairOptions::default()
    };
    let make = || QueuePair::new(&side.domain, &queue, options);
    let (first, second) = (make().unwrap(), make().unwrap());
    assert!(matches!(
        make(),
        Err(PairError::QueueFull {
            room: 0,
            needed: 50
        })
    ));
    drop(first);
    assert!(make().is_ok());
    drop(second);
    assert!(matches!(
        CompletionQueue::new(&side.context, u32::MAX, None),
        Err(QueueError::TooLarge { .. })
    ));
}
