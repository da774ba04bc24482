//! One message in, one out, for a call that is made some ten thousand times a second.
//!
//! tonic takes each for a stream of messages: it copies what comes into a buffer of its own, of 16 KiB,
//! and writes what goes into another one. Here a message stays where it came in, and goes out in a
//! buffer of its size.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use kvferry_proto::MAX_MESSAGE_BYTES;
use tonic::{
    Status,
    body::Body,
    codegen::http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE},
};

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const OK: HeaderValue = HeaderValue::from_static("0");
/// What a message is compressed with, and what an answer may be.
const ENCODING: &str = "grpc-encoding";
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// Is this a call of plain messages? Any other one is tonic's to answer.
pub(super) fn is_plain(headers: &HeaderMap) -> bool {
    let accepts = cfg!(feature = "zstd") && headers.contains_key(ACCEPT_ENCODING);
    !accepts && !headers.contains_key(ENCODING)
}

/// The message of a call. Where it came in one frame it is not copied.
pub(super) async fn message(mut body: Body) -> Result<Bytes, Status> {
    let mut whole = Bytes::new();
    let mut parts = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { break };
        if whole.is_empty() {
            whole = data;
        } else {
            if parts.is_empty() {
                parts.reserve(expected(&whole)?.max(whole.len() + data.len()));
                parts.put_slice(&whole);
            }
            parts.put_slice(&data);
        }
        if whole.len().max(parts.len()) > PREFIX + MAX_MESSAGE_BYTES {
            return Err(too_large(parts.len()));
        }
    }
    if !parts.is_empty() {
        whole = parts.freeze();
    }
    if whole.len() != expected(&whole)? {
        return Err(Status::internal("a call is one message, and all of it"));
    }
    whole.advance(PREFIX);
    Ok(whole)
}

/// Bytes of a message that begins so, its prefix included.
fn expected(start: &[u8]) -> Result<usize, Status> {
    let Some((&[compressed, a, b, c, d], _)) = start.split_first_chunk::<PREFIX>() else {
        return Ok(PREFIX);
    };
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    if compressed != 0 {
        return Err(Status::internal(
            "a compressed message without grpc-encoding",
        ));
    }
    if len > MAX_MESSAGE_BYTES {
        return Err(too_large(len));
    }
    Ok(PREFIX + len)
}

fn too_large(len: usize) -> Status {
    Status::out_of_range(format!(
        "a message of {len} bytes; at most {MAX_MESSAGE_BYTES} are read"
    ))
}

/// An answer: a message of at most so many bytes, as `put` writes it.
pub(super) fn answer(
    max_len: usize,
    put: impl FnOnce(&mut BytesMut),
) -> Result<Response<Body>, Status> {
    let mut out = BytesMut::with_capacity(PREFIX + max_len);
    out.put_bytes(0, PREFIX);
    put(&mut out);
    let len = out.len() - PREFIX;
    if len > MAX_MESSAGE_BYTES {
        let text = format!("an answer of {len} bytes: ask for fewer hashes at once");
        return Err(Status::out_of_range(text));
    }
    out[1..PREFIX].copy_from_slice(&(len as u32).to_be_bytes());
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", OK);
    let body = Full::new(out.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tonic::Code;

    use super::*;

    /// A body that comes in these parts.
    async fn body(parts: &[&[u8]]) -> Body {
        let mut frames = Vec::new();
        for part in parts {
            let part = Bytes::copy_from_slice(part);
            let frame = Full::new(Bytes::from_static(b"any")).frame().await.unwrap();
            frames.push(frame.map(|frame| frame.map_data(|_| part)));
        }
        Body::new(StreamBody::new(tokio_stream::iter(frames)))
    }

    async fn read(parts: &[&[u8]]) -> Result<Bytes, Status> {
        message(body(parts).await).await
    }

    #[tokio::test]
    async fn a_message_is_put_together_however_it_is_cut() {
        let whole = b"\0\0\0\0\x04abcd";
        for cut in 0..=whole.len() {
            let (first, second) = whole.split_at(cut);
            for parts in [vec![first, second], vec![first, b"", second, b""]] {
                assert_eq!(read(&parts).await.unwrap(), &b"abcd"[..], "{cut}");
            }
        }
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(read(&bytes).await.unwrap(), &b"abcd"[..]);
        assert_eq!(read(&[b"\0\0\0\0\0"]).await.unwrap(), &b""[..]);
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        for (parts, code) in [
            (vec![], Code::Internal),
            (vec![&b"\0\0\0"[..]], Code::Internal),
            (vec![&b"\0\0\0\0\x04abc"[..]], Code::Internal),
            (vec![&b"\0\0\0\0\x04abcde"[..]], Code::Internal),
            (
                vec![&b"\0\0\0\0\x01a"[..], &b"\0\0\0\0\x01b"[..]],
                Code::Internal,
            ),
            (vec![&b"\x01\0\0\0\x01a"[..]], Code::Internal),
            (vec![&b"\0\xff\xff\xff\xff"[..]], Code::OutOfRange),
            (
                vec![&b"\0\xff\xff\xff\xff"[..], &b"abc"[..]],
                Code::OutOfRange,
            ),
        ] {
            let status = read(&parts).await.unwrap_err();
            assert_eq!(status.code(), code, "{parts:?}");
        }
        let zeros = vec![0; 1 << 20];
        let endless = vec![zeros.as_slice(); (MAX_MESSAGE_BYTES >> 20) + 2];
        assert!(read(&endless).await.is_err());
    }

    #[tokio::test]
    async fn an_answer_is_prefix_message_and_a_good_end() {
        let answer = answer(10, |out| out.put_slice(b"abcd")).unwrap();
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/grpc");
        let collected = answer.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), &b"\0\0\0\0\x04abcd"[..]);
    }
}
