//! Plain sockets: `(offset, length)` goes out, that many bytes come back.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::{Done, Task, child::timed};
use crate::transfer::{TransferError, measure::permuted};

/// Bytes of a request: offset and length.
const REQUEST_BYTES: usize = 16;

/// Serves `bytes` bytes of memory, a thread per connection. Gives the port.
pub(super) fn serve(bytes: u64) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    // Written to, so that every page is there and none is the zero page.
    let memory: Arc<Vec<u8>> = Arc::new((0..bytes).map(|n| n as u8 | 1).collect());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let memory = Arc::clone(&memory);
            // An error is the end of that connection: its reader sees it.
            thread::spawn(move || answer(stream, &memory));
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream, memory: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST_BYTES];
    loop {
        stream.read_exact(&mut request)?;
        let (offset, len) = decode(&request);
        let piece = memory.get(offset..offset.saturating_add(len));
        stream.write_all(piece.ok_or(io::ErrorKind::InvalidInput)?)?;
    }
}

fn decode(request: &[u8; REQUEST_BYTES]) -> (usize, usize) {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&request[at..at + 8]);
        u64::from_le_bytes(bytes) as usize
    };
    (number(0), number(8))
}

/// The asking side. Connections stay open between tasks.
pub(super) struct Reader {
    port: u16,
    bytes: u64,
    lanes: Vec<Mutex<Lane>>,
}

struct Lane {
    stream: TcpStream,
    requests: Vec<u8>,
    memory: Vec<u8>,
}

impl Reader {
    pub(super) fn new(port: u16, bytes: u64) -> Self {
        Self {
            port,
            bytes,
            lanes: Vec::new(),
        }
    }

    pub(super) fn read(&mut self, task: &Task) -> Result<Done, TransferError> {
        while self.lanes.len() < task.lanes as usize {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
            stream.set_nodelay(true)?;
            self.lanes.push(Mutex::new(Lane {
                stream,
                requests: Vec::new(),
                // Touched now: page faults are nobody's figure.
                memory: vec![1; self.bytes as usize / task.lanes.max(1) as usize + 1],
            }));
        }
        let blocks = (self.bytes / task.block_bytes.max(1)).max(1);
        let lanes = &self.lanes;
        timed(task, |number, lane| {
            let held = lanes.get(lane as usize).ok_or(TransferError::Yardstick)?;
            let mut held = held.lock().unwrap_or_else(|e| e.into_inner());
            held.batch(task, number, lane, blocks)
        })
    }
}

impl Lane {
    /// This lane's share of a batch: all requests in one write, then answer after answer.
    fn batch(
        &mut self,
        task: &Task,
        number: u64,
        lane: u64,
        blocks: u64,
    ) -> Result<(), TransferError> {
        let batch = u64::from(task.batch);
        let (len, lanes) = (task.block_bytes, u64::from(task.lanes.max(1)));
        let share = || (lane..batch).step_by(lanes as usize);
        self.requests.clear();
        for block in share() {
            let source = permuted((number * batch + block) % blocks, blocks);
            self.requests
                .extend_from_slice(&(source * len).to_le_bytes());
            self.requests.extend_from_slice(&len.to_le_bytes());
        }
        self.stream.write_all(&self.requests)?;
        let room = (self.memory.len() as u64 / len).max(1);
        for block in share() {
            let at = ((number * batch + block) / lanes % room * len) as usize;
            let target = self.memory.get_mut(at..at + len as usize);
            self.stream
                .read_exact(target.ok_or(TransferError::Yardstick)?)?;
        }
        Ok(())
    }
}
