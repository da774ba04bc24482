//! The completion thread of a device: busy while READs are under way, asleep otherwise.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::Instant,
};

use kvferry_ibverbs::{CompletionQueue, Finished, WorkError};
use tracing::error;

use super::{
    config::{BUSY_POLL, IDLE_WAIT},
    device::Device,
    devices::Devices,
    events::DeviceEvent,
};

/// What became of a link's READ.
pub(super) type Ended = (u32, Result<(), WorkError>);

/// The token of a READ: whose it is, and which.
pub(super) fn token(link: u32, number: u32) -> u64 {
    u64::from(link) << 32 | u64::from(number)
}

/// Starts the thread. It ends when all is dropped, or the device is gone.
pub(super) fn start(devices: &Arc<Devices>, device: &Arc<Device>) {
    let (all, one) = (Arc::downgrade(devices), Arc::downgrade(device));
    let queue = Arc::clone(&device.reading);
    let index = device.index;
    let started = std::thread::Builder::new()
        .name(format!("rdma-{}", device.name()))
        .spawn(move || run(&all, &one, &queue, index));
    if let Err(error) = started {
        error!(device = device.name(), "cannot start its thread: {error}");
        devices.tell(DeviceEvent::Down { device: index });
    }
}

fn run(all: &Weak<Devices>, device: &Weak<Device>, queue: &CompletionQueue, index: usize) {
    let mut done = Vec::new();
    let mut last = Instant::now();
    let mut busy = false;
    loop {
        let polled = match busy {
            true => queue.poll(&mut done),
            false => queue.wait(&mut done, IDLE_WAIT),
        };
        let (Some(all), Some(device)) = (all.upgrade(), device.upgrade()) else {
            return;
        };
        if let Err(error) = polled {
            error!("no completions any more: {error}");
            all.tell(DeviceEvent::Down { device: index });
            return;
        }
        if done.is_empty() {
            let working = device.in_flight.load(Ordering::Relaxed) > 0;
            busy = working && last.elapsed() < BUSY_POLL;
            if busy {
                std::thread::yield_now();
            }
            continue;
        }
        last = Instant::now();
        busy = true;
        deliver(&all, &mut done);
    }
}

fn deliver(all: &Devices, done: &mut Vec<Finished>) {
    let mut by_link: HashMap<u32, Vec<Ended>> = HashMap::new();
    for finished in done.drain(..) {
        let (link, number) = ((finished.token >> 32) as u32, finished.token as u32);
        if link == 0 {
            if let Some((_, waiting)) = all.probes.remove(&number) {
                // Whoever gave up waiting does not want to know.
                let _ = waiting.send(finished.result);
            }
        } else {
            by_link
                .entry(link)
                .or_default()
                .push((number, finished.result));
        }
    }
    for (link, ended) in by_link {
        let shared = all.links.get(&link).and_then(|shared| shared.upgrade());
        if let Some(shared) = shared {
            shared.ended(ended);
        }
    }
}
