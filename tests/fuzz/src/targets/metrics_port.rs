//! The metrics port: whatever is sent, an answer of HTTP or none.

use std::{
    fmt,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
};

use kvferry_observe::{NotReady, Observed, Page, converse_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{Target, choices::Choices, world};

pub(super) const TARGET: Target = Target {
    name: "metrics_port",
    run,
    seeds,
};

struct Nothing;

impl Observed for Nothing {
    fn tell(&self, _: &mut Page<'_>) -> fmt::Result {
        Ok(())
    }

    fn ready(&self) -> Result<(), NotReady> {
        Err("never".into())
    }
}

fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let cuts = choices.bytes();
    let pieces = world::cut(choices.rest(), cuts);
    let answer = world::block_on(async {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let tcp = |stream: UnixStream| {
            stream.set_nonblocking(true).unwrap();
            TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream))).unwrap()
        };
        let (mut hear, mut say) = tcp(ours).into_split();
        let talk = async {
            for piece in pieces {
                if say.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            say.shutdown().await.ok();
        };
        let mut answer = Vec::new();
        let hear = async { hear.read_to_end(&mut answer).await };
        let _ = tokio::join!(converse_with(tcp(theirs), Arc::new(Nothing)), talk, hear);
        answer
    });
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
    let answers = answer.windows(7).filter(|at| at == b"HTTP/1.").count();
    assert!(answers <= 2, "one request a connection");
}

fn seeds() -> Vec<Vec<u8>> {
    let input = |cuts: &[u8], text: &str| {
        let mut out = (cuts.len() as u16).to_le_bytes().to_vec();
        out.extend(cuts);
        out.extend(text.as_bytes());
        out
    };
    vec![
        input(&[], "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"),
        input(
            &[9, 2],
            "GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        ),
        input(&[], "HEAD /healthz HTTP/1.0\r\n\r\n"),
        input(
            &[40],
            "POST /metrics HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
    ]
}
