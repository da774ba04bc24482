//! What a device tells unasked.

use std::{
    env, fs,
    process::Command,
    time::{Duration, Instant},
};

use kvferry_ibverbs::{AsyncEvent, Context, PortState, WorkError, WorkStatus};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::rig::{self, Rig, at, memory, patterned};

/// Waits on the device's descriptor until that event came.
fn wait_for(context: &Context, wanted: AsyncEvent) {
    let start = Instant::now();
    loop {
        while let Some(event) = context.next_event().unwrap() {
            println!("{:?} {event:?}", start.elapsed());
            if event == wanted {
                return;
            }
        }
        assert!(start.elapsed() < rig::PATIENCE, "no {wanted:?}");
        let mut fds = [PollFd::new(context, PollFlags::IN)];
        let step = Timespec::try_from(Duration::from_millis(500)).unwrap();
        poll(&mut fds, Some(&step)).unwrap();
    }
}

fn link(interface: &str, state: &str) {
    let status = Command::new("ip")
        .args(["link", "set", interface, state])
        .status()
        .unwrap();
    assert!(status.success());
}

/// The interface under a Soft-RoCE device.
fn interface(context: &Context) -> String {
    let path = format!("/sys/class/infiniband/{}/parent", context.name());
    fs::read_to_string(path).unwrap().trim().to_owned()
}

/// Takes an interface down and up again while the reader reads.
fn take_down(rig: &Rig, interface: &str) -> WorkError {
    let (reader, _owner) = rig.connected();
    let source = patterned(1 << 20, 1);
    let target = memory(1 << 20);
    let (from, to) = (rig.owner.readable(&source), rig.reader.local(&target));
    let context = &rig.reader.context;
    assert_eq!(context.next_event().unwrap(), None);
    link(interface, "down");
    wait_for(context, AsyncEvent::PortError { port: 1 });
    assert_ne!(context.port(1).unwrap().state, PortState::Active);
    let mut chain = reader.chain();
    let piece = to.piece(0..1 << 20).unwrap();
    chain.push(1, at(from.key(), 0), [piece]).unwrap();
    let start = Instant::now();
    reader.post(&mut chain).unwrap();
    let done = rig.reader.collect(1);
    println!("{:?} {done:?}", start.elapsed());
    assert!(start.elapsed() < rig::PATIENCE);
    link(interface, "up");
    wait_for(context, AsyncEvent::PortActive { port: 1 });
    assert_eq!(context.port(1).unwrap().state, PortState::Active);
    done[0].result.unwrap_err()
}

/// It takes a network interface down: only where somebody said that it may.
fn rig() -> Option<Rig> {
    if env::var("KVFERRY_RDMA_LINK_DOWN").is_err() {
        println!("skipped: KVFERRY_RDMA_LINK_DOWN is not set");
        return None;
    }
    rig::rig()
}

#[test]
fn the_peers_link_goes_down_and_reads_fail_soon() {
    let Some(rig) = rig() else { return };
    let error = take_down(&rig, &interface(&rig.owner.context));
    assert_eq!(error, WorkError::Failed(WorkStatus::RetriesExceeded));
}

#[test]
fn our_own_link_goes_down_and_reads_fail_soon() {
    let Some(rig) = rig() else { return };
    // Soft-RoCE has no route then, and says so with a status of its own.
    let error = take_down(&rig, &interface(&rig.reader.context));
    assert!(matches!(
        error,
        WorkError::Failed(WorkStatus::RetriesExceeded | WorkStatus::LocalOperation)
    ));
}
