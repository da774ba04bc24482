//! Plain sockets: `(block, bytes, pieces)` goes out, that many bytes come back. The memory of both sides has a part for each
//! piece; a block is as many bytes at the same place of each part.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use super::{Done, Task, child::timed};
use crate::transfer::{TransferError, measure::permuted};

/// Bytes of a request: the block's number, its length, and its pieces.
const REQUEST_BYTES: usize = 24;

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
        let [block, len, pieces] = decode(&request);
        let wrong = io::ErrorKind::InvalidInput;
        // The plainest loop there is: the headline has no list of pieces to build.
        if pieces <= 1 {
            let at = block.saturating_mul(len);
            let block = memory.get(at..at.saturating_add(len));
            stream.write_all(block.ok_or(wrong)?)?;
            continue;
        }
        let (part, piece) = (memory.len() / pieces, len / pieces);
        let at = block.saturating_mul(piece);
        let parts = memory.chunks_exact(part.max(1)).take(pieces);
        let block: Option<Vec<_>> = parts
            .map(|part| part.get(at..at.saturating_add(piece)).map(IoSlice::new))
            .collect();
        let mut block = block.ok_or(wrong)?;
        let mut left = block.as_mut_slice();
        while !left.is_empty() {
            let written = stream.write_vectored(left)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut left, written);
        }
    }
}

fn decode(request: &[u8; REQUEST_BYTES]) -> [usize; 3] {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&request[at..at + 8]);
        u64::from_le_bytes(bytes) as usize
    };
    [number(0), number(8), number(16)]
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
        let pieces = u64::from(task.pieces.max(1));
        for block in share() {
            let source = permuted((number * batch + block) % blocks, blocks);
            for word in [source, len, pieces] {
                self.requests.extend_from_slice(&word.to_le_bytes());
            }
        }
        self.stream.write_all(&self.requests)?;
        let (part, piece) = (self.memory.len() as u64 / pieces, len / pieces);
        let room = (part / piece.max(1)).max(1);
        for block in share() {
            let at = ((number * batch + block) / lanes % room * piece) as usize;
            if pieces == 1 {
                let target = self.memory.get_mut(at..at + piece as usize);
                self.stream
                    .read_exact(target.ok_or(TransferError::Yardstick)?)?;
                continue;
            }
            let parts = self.memory.chunks_exact_mut(part as usize);
            let target: Option<Vec<_>> = parts
                .take(pieces as usize)
                .map(|part| part.get_mut(at..at + piece as usize).map(IoSliceMut::new))
                .collect();
            let mut target = target.ok_or(TransferError::Yardstick)?;
            let mut left = target.as_mut_slice();
            while !left.is_empty() {
                let read = self.stream.read_vectored(left)?;
                if read == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                IoSliceMut::advance_slices(&mut left, read);
            }
        }
        Ok(())
    }
}
