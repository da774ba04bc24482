//! A reader that leaves the machine to the coordinator: HTTP/2 frames, ready-made and hardly looked at.
//!
//! One task a connection: requests are written as they were encoded beforehand, and of an answer only the
//! number of blocks answered for is read. What this costs is mostly the system's, for the bytes.

use std::time::Instant;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    BenchError,
    locate::{Load, Outcome, check, request},
    workload::mix,
};
use bytes::{Buf, BufMut, BytesMut};
use prost::Message;

/// Ready-made requests of a connection, in turn: enough that blocks are not in any cache when their
/// turn comes again.
const READY: usize = 512;
/// What the coordinator may send before it is told that more may come: HTTP/2's most. It is told anew
/// when half of it has come.
const WINDOW: u32 = (1 << 31) - 1;
/// HTTP/2's window of a connection before anything was said.
const FIRST_WINDOW: u32 = 65_535;
/// An answer in one frame.
const FRAME_BYTES: u32 = 1 << 20;
/// Most hashes of a request: with more it would take several frames.
const MAX_HASHES: u64 = 1_000;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames, and flags.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Of an answer: the first field of a message, and its tag.
const ANSWERED: u8 = 1 << 3;
/// gRPC's own bytes before a message.
const PREFIX: usize = 5;

/// Asks until `start + load.time`, with the load's number of requests under way.
///
/// # Errors
/// [`BenchError`] when the connection fails or an answer is short.
pub(crate) async fn run(
    url: &str,
    load: Load,
    seed: u64,
    start: Instant,
) -> Result<Outcome, BenchError> {
    if load.hashes > MAX_HASHES {
        let text = format!("light readers ask for {MAX_HASHES} hashes at most");
        return Err(BenchError::Wrong(text));
    }
    let mut connection = Connection::open(url).await?;
    let requests: Vec<Vec<u8>> = (1..=READY as u64)
        .map(|n| frames(&connection.host, load, mix(n.wrapping_mul(seed))))
        .collect();
    let mut requests = requests.iter().cycle();
    let mut outcome = Outcome::default();
    let mut out = BytesMut::new();
    for _ in 0..load.in_flight.max(1) {
        connection.ask(requests.next(), &mut out);
    }
    while !connection.under_way.is_empty() {
        connection.socket.write_all(&out).await?;
        out.clear();
        connection.read().await?;
        while let Some(frame) = connection.frame(&mut out)? {
            let Some(asked) = connection.done(&frame)? else {
                continue;
            };
            outcome.samples.push(asked.since.elapsed());
            outcome.answered += check(load, asked.answered)?;
            if start.elapsed() < load.time {
                connection.ask(requests.next(), &mut out);
            }
        }
    }
    Ok(outcome)
}

/// A request under way.
#[derive(Debug)]
struct Asked {
    stream: u32,
    since: Instant,
    /// As far as it is known.
    answered: u32,
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: BytesMut,
}

#[derive(Debug)]
struct Connection {
    host: String,
    socket: TcpStream,
    buffer: BytesMut,
    next_stream: u32,
    under_way: Vec<Asked>,
    /// Bytes of answers since the coordinator was told of the window.
    received: u32,
}

impl Connection {
    async fn open(url: &str) -> Result<Self, BenchError> {
        let host = url.trim_start_matches("http://").to_owned();
        let mut socket = TcpStream::connect(&host).await?;
        socket.set_nodelay(true)?;
        let mut hello = BytesMut::from(PREFACE);
        // No promises pushed, windows and frames that fit any answer.
        let mut settings = BytesMut::new();
        for (id, value) in [(2u16, 0u32), (4, WINDOW), (5, FRAME_BYTES)] {
            settings.put_u16(id);
            settings.put_u32(value);
        }
        put_frame(SETTINGS, 0, 0, &settings, &mut hello);
        let more = (WINDOW - FIRST_WINDOW).to_be_bytes();
        put_frame(WINDOW_UPDATE, 0, 0, &more, &mut hello);
        socket.write_all(&hello).await?;
        Ok(Self {
            host,
            socket,
            buffer: BytesMut::with_capacity(1 << 16),
            next_stream: 1,
            under_way: Vec::new(),
            received: 0,
        })
    }

    /// Sends a request that is ready but for the number of its stream.
    fn ask(&mut self, request: Option<&Vec<u8>>, out: &mut BytesMut) {
        let Some(request) = request else { return };
        let at = out.len();
        out.put_slice(request);
        let stream = self.next_stream.to_be_bytes();
        let headers = 9 + payload_len(&out[at..]);
        for frame in [at, at + headers] {
            out[frame + 5..frame + 9].copy_from_slice(&stream);
        }
        self.under_way.push(Asked {
            stream: self.next_stream,
            since: Instant::now(),
            answered: 0,
        });
        self.next_stream += 2;
    }

    async fn read(&mut self) -> Result<(), BenchError> {
        self.buffer.reserve(1 << 15);
        match self.socket.read_buf(&mut self.buffer).await? {
            0 => Err(BenchError::Wrong("the connection was closed".into())),
            _ => Ok(()),
        }
    }

    /// The next frame that is all there. What the protocol wants said goes out.
    fn frame(&mut self, out: &mut BytesMut) -> Result<Option<Frame>, BenchError> {
        if self.buffer.len() < 9 {
            return Ok(None);
        }
        let len = payload_len(&self.buffer);
        if self.buffer.len() < 9 + len {
            return Ok(None);
        }
        let mut head = self.buffer.split_to(9);
        head.advance(3);
        let frame = Frame {
            kind: head.get_u8(),
            flags: head.get_u8(),
            stream: head.get_u32() & WINDOW,
            payload: self.buffer.split_to(len),
        };
        match (frame.kind, frame.flags & ACK) {
            (SETTINGS, 0) => put_frame(SETTINGS, ACK, 0, &[], out),
            (PING, 0) => put_frame(PING, ACK, 0, &frame.payload, out),
            (RST_STREAM | GOAWAY, _) => {
                return Err(BenchError::Wrong("the coordinator broke off".into()));
            }
            (DATA, _) => {
                self.received += len as u32;
                if self.received > WINDOW / 2 {
                    put_frame(WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes(), out);
                    self.received = 0;
                }
            }
            _ => {}
        }
        Ok(Some(frame))
    }

    /// The request that this frame ends.
    fn done(&mut self, frame: &Frame) -> Result<Option<Asked>, BenchError> {
        let at = self.under_way.iter().position(|a| a.stream == frame.stream);
        let Some(at) = at else { return Ok(None) };
        let message = frame.payload.get(PREFIX..).unwrap_or(&[]);
        if frame.kind == DATA
            && let Some((&ANSWERED, answered)) = message.split_first()
        {
            let answered = prost::decode_length_delimiter(answered);
            let answered = answered.map_err(|e| BenchError::Wrong(e.to_string()))?;
            self.under_way[at].answered = answered as u32;
        }
        let ends = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
        Ok(ends.then(|| self.under_way.swap_remove(at)))
    }
}

fn payload_len(frame: &[u8]) -> usize {
    usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2])
}

fn put_frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut BytesMut) {
    out.put_uint(payload.len() as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
    out.put_slice(payload);
}

/// A request as two frames of stream 0: its headers, and the message.
fn frames(host: &str, load: Load, random: u64) -> Vec<u8> {
    let mut headers = BytesMut::new();
    // Of HPACK's static table: POST and http; names of path, authority and content-type.
    headers.put_slice(&[0x83, 0x86]);
    put_header(&[0x04], "/kvferry.v1.Coordinator/Locate", &mut headers);
    put_header(&[0x01], host, &mut headers);
    put_header(&[0x0f, 0x10], "application/grpc", &mut headers);
    put_header(b"\x00\x02te", "trailers", &mut headers);
    let message = request(load, random).encode_to_vec();
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(&message);
    let mut out = BytesMut::new();
    put_frame(HEADERS, END_HEADERS, 0, &headers, &mut out);
    put_frame(DATA, END_STREAM, 0, &body, &mut out);
    out.to_vec()
}

/// A literal that goes into no table. Names and values here are shorter than 127 bytes.
fn put_header(name: &[u8], value: &str, out: &mut BytesMut) {
    out.put_slice(name);
    out.put_u8(value.len() as u8);
    out.put_slice(value.as_bytes());
}
