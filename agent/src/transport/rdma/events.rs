//! What devices report by themselves.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, Weak},
};

use kvferry_ibverbs::{AsyncEvent, Context};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tracing::{info, warn};

use super::{config::IDLE_WAIT, device::Device, devices::Devices};

/// Events kept for watchers that are behind; who loses some finds out by its READs.
pub(super) const EVENTS_KEPT: usize = 256;

/// What happened to a device, or to a queue pair on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceEvent {
    /// Nothing goes through it any more.
    Down { device: usize },
    /// A queue pair of ours is in the error state. Two devices may give out the same number.
    Pair { device: usize, qp_num: u32 },
}

impl Devices {
    fn heard(&self, name: &str, index: usize, event: AsyncEvent) {
        match event {
            AsyncEvent::PortActive { port } => info!(device = name, port, "RDMA port is up"),
            AsyncEvent::PortError { port } => {
                warn!(
                    device = name,
                    port, "RDMA port is down: its peers are reached another way"
                );
                self.tell(DeviceEvent::Down { device: index });
            }
            AsyncEvent::DeviceFatal | AsyncEvent::CompletionQueueError => {
                warn!(device = name, "RDMA device failed; see the kernel's log");
                self.tell(DeviceEvent::Down { device: index });
            }
            AsyncEvent::QueuePairFatal { qp_num }
            | AsyncEvent::QueuePairRequest { qp_num }
            | AsyncEvent::QueuePairAccess { qp_num } => self.tell(DeviceEvent::Pair {
                device: index,
                qp_num,
            }),
            other => tracing::debug!(device = name, ?other, "RDMA event"),
        }
    }
}

/// Starts the thread that tells links and owners what the device reports. It ends when all is dropped, or the
/// device is gone.
pub(super) fn watch(devices: &Arc<Devices>, device: &Device) {
    let (all, index) = (Arc::downgrade(devices), device.index);
    let context = Arc::clone(&device.context);
    let started = std::thread::Builder::new()
        .name(format!("rdma-events-{}", device.name()))
        .spawn(move || {
            let Err(error) = tell_events(&all, &context, index) else {
                return;
            };
            warn!(device = context.name(), "RDMA device is gone: {error}");
            if let Some(all) = all.upgrade() {
                all.tell(DeviceEvent::Down { device: index });
            }
        });
    if let Err(error) = started {
        warn!(
            device = device.name(),
            "cannot watch for its events: {error}"
        );
    }
}

fn tell_events(all: &Weak<Devices>, context: &Context, index: usize) -> io::Result<()> {
    let bound = Timespec::try_from(IDLE_WAIT).ok();
    loop {
        let mut fds = [PollFd::from_borrowed_fd(context.as_fd(), PollFlags::IN)];
        match poll(&mut fds, bound.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(all) = all.upgrade() else {
            return Ok(());
        };
        while let Some(event) = context.next_event()? {
            all.heard(context.name(), index, event);
        }
    }
}
