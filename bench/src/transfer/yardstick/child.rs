//! The yardstick's processes, from the inside.

use std::{
    io::{self, BufRead, Write},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use kvferry_memory::{HostMemory, HugePages, copy_ranges};
use serde::Serialize;

use super::{Done, Kind, Listening, Task, sockets};
use crate::transfer::{TransferError, measure::permuted};

/// Written at a time: no less than a page.
const PAGE_BYTES: usize = 4096;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Serves bytes.
    Owner,
    /// Asks for them; connects to this port on loopback.
    Reader(u16),
}

/// Runs a yardstick's process until its stdin closes.
///
/// # Errors
/// [`TransferError`] where it could not even begin.
pub fn run(role: Role, bytes: u64) -> Result<(), TransferError> {
    match role {
        Role::Owner => {
            let port = sockets::serve(bytes)?;
            say(&Listening { port })?;
            for _ in io::stdin().lock().lines() {}
            Ok(())
        }
        Role::Reader(port) => read(port, bytes),
    }
}

fn say(what: &impl Serialize) -> Result<(), TransferError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

fn read(port: u16, bytes: u64) -> Result<(), TransferError> {
    let mut sockets = sockets::Reader::new(port, bytes);
    let mut memory: Option<(HostMemory, HostMemory)> = None;
    say(&Done::default())?;
    for line in io::stdin().lock().lines() {
        let task: Task = serde_json::from_str(&line?)?;
        let done = match task.kind {
            Kind::Sockets => sockets.read(&task)?,
            // Has processes of its own.
            Kind::ReadBw => Done::default(),
            Kind::Memcpy => {
                if memory.is_none() {
                    memory = Some((touched(bytes)?, touched(bytes)?));
                }
                match &memory {
                    Some((from, to)) => copy(from, to, &task)?,
                    None => Done::default(),
                }
            }
        };
        say(&done)?;
    }
    Ok(())
}

/// A shared mapping with all its pages there: faults are nobody's figure.
fn touched(bytes: u64) -> Result<HostMemory, TransferError> {
    let memory = HostMemory::pool("kvferry-yardstick", bytes, HugePages::Off)?;
    let page = [1; PAGE_BYTES];
    for offset in (0..bytes / PAGE_BYTES as u64).map(|page| page * PAGE_BYTES as u64) {
        memory.write_at(offset, &page)?;
    }
    Ok(memory)
}

/// Batches of blocks, from permuted places to places in order; every thread copies its share.
fn copy(from: &HostMemory, to: &HostMemory, task: &Task) -> Result<Done, TransferError> {
    let blocks = (from.len() / task.block_bytes.max(1)).max(1);
    let lanes = u64::from(task.lanes.max(1));
    let batch = u64::from(task.batch);
    timed(task, |number, lane| {
        for block in (lane..batch).step_by(lanes as usize) {
            let at = number * batch + block;
            let (source, target) = (permuted(at % blocks, blocks), at % blocks);
            let range = |block: u64| block * task.block_bytes..(block + 1) * task.block_bytes;
            #[allow(clippy::single_range_in_vec_init)]
            copy_ranges(from, [range(source)], to, [range(target)])?;
        }
        Ok(())
    })
}

/// Runs batches on as many threads as there are lanes until the time is over; a batch is over when all
/// its lanes are.
pub(super) fn timed(
    task: &Task,
    lane: impl Fn(u64, u64) -> Result<(), TransferError> + Sync,
) -> Result<Done, TransferError> {
    let lanes = u64::from(task.lanes.max(1));
    let mut done = Done::default();
    let limit = Duration::from_millis(task.millis);
    let (begin, end) = (Barrier::new(lanes as usize), Barrier::new(lanes as usize));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let failed = std::sync::Mutex::new(None);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    thread::scope(|scope| {
        for number in 1..lanes {
            let (lane, begin, end, stop, failed) = (&lane, &begin, &end, &stop, &failed);
            scope.spawn(move || {
                let mut batch = 0;
                loop {
                    begin.wait();
                    if stop.load(relaxed) {
                        return;
                    }
                    if let Err(error) = lane(batch, number) {
                        *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
                    }
                    end.wait();
                    batch += 1;
                }
            });
        }
        let began = Instant::now();
        let mut batch = 0;
        loop {
            let at = Instant::now();
            if lanes > 1 {
                begin.wait();
            }
            if let Err(error) = lane(batch, 0) {
                *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
            }
            if lanes > 1 {
                end.wait();
            }
            batch += 1;
            done.batch_nanos.push(at.elapsed().as_nanos() as u64);
            done.bytes += task.block_bytes * u64::from(task.batch);
            let broken = failed.lock().unwrap_or_else(|e| e.into_inner()).is_some();
            if began.elapsed() >= limit || broken {
                break;
            }
        }
        done.nanos = began.elapsed().as_nanos() as u64;
        stop.store(true, relaxed);
        if lanes > 1 {
            begin.wait();
        }
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(error),
        None => Ok(done),
    }
}
