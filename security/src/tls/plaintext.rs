//! Somebody who speaks in clear where TLS is spoken: told so in the words of his own protocol.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How a TLS connection begins: a record with a handshake.
const HANDSHAKE_RECORD: u8 = 22;
/// What is still read of what he sends, so that the answer is not lost to a reset.
const DRAIN_BYTES: usize = 64 << 10;
const DRAIN_WITHIN: Duration = Duration::from_secs(1);
/// A client that is told to go away before it has asked anything may take that for a connection that closed: its question is
/// waited for.
const ASKS_WITHIN: Duration = Duration::from_millis(500);
/// What a client over HTTP/2 begins with, before its frames.
const PREFACE_BYTES: usize = 24;
/// Length, type, flags and stream of a frame.
const FRAME_HEAD_BYTES: usize = 9;
/// The type of a frame that a question begins with.
const HEADERS: u8 = 1;
const WORDS: &str =
    "this port speaks TLS only: use https:// and give the CA of its certificate (--tls-ca)";

/// Waits for the first byte. True where TLS begins.
pub(super) async fn begins_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    match stream.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(first[0] == HANDSHAKE_RECORD),
    }
}

/// Says what is spoken here, and closes.
pub(super) async fn turn_away(mut stream: TcpStream) {
    let mut first = [0];
    let words = match stream.peek(&mut first).await {
        // HTTP/2 begins with "PRI * HTTP/2.0"; nothing else over HTTP begins so but PRINT and the like.
        Ok(1) if first[0] == b'P' => {
            if stream.write_all(&NO_SETTINGS).await.is_err() {
                return;
            }
            let _ = timeout(ASKS_WITHIN, hear_a_question(&mut stream)).await;
            words_to_go(WORDS)
        }
        Ok(1) if first[0].is_ascii_uppercase() => {
            let head = format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                WORDS.len() + 1
            );
            format!("{head}{WORDS}\n").into_bytes()
        }
        _ => return,
    };
    let said = timeout(DRAIN_WITHIN, async {
        stream.write_all(&words).await?;
        stream.shutdown().await?;
        let mut rest = (&mut stream).take(DRAIN_BYTES as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    });
    // He may have gone, or may go on for ever.
    let _ = said.await;
}

/// Reads until a client over HTTP/2 has asked something.
async fn hear_a_question(stream: &mut TcpStream) -> io::Result<()> {
    let mut heard = Vec::new();
    let mut at = PREFACE_BYTES;
    while heard.len() < DRAIN_BYTES {
        if let Some(&[a, b, c, kind, ..]) = heard.get(at..at + FRAME_HEAD_BYTES) {
            if kind == HEADERS {
                return Ok(());
            }
            at += FRAME_HEAD_BYTES + u32::from_be_bytes([0, a, b, c]) as usize;
        } else if stream.read_buf(&mut heard).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Empty settings: what a server over HTTP/2 begins with.
const NO_SETTINGS: [u8; FRAME_HEAD_BYTES] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// What a server over HTTP/2 says to somebody it does not let in: empty settings, and GOAWAY with words.
/// Clients show them.
#[must_use]
pub fn go_away(words: &str) -> Vec<u8> {
    [&NO_SETTINGS[..], &words_to_go(words)].concat()
}

fn words_to_go(words: &str) -> Vec<u8> {
    const INADEQUATE_SECURITY: u32 = 0xc;
    let len = (8 + words.len()) as u32;
    let mut frames = Vec::new();
    frames.extend_from_slice(&len.to_be_bytes()[1..]);
    frames.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    // No stream of his was looked at.
    frames.extend_from_slice(&0u32.to_be_bytes());
    frames.extend_from_slice(&INADEQUATE_SECURITY.to_be_bytes());
    frames.extend_from_slice(words.as_bytes());
    frames
}
