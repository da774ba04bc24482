//! The other end of the port, for tests and tools: one request, in a few lines rather than a library.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A page is a few hundred KiB; what is larger is none.
const MAX_PAGE_BYTES: u64 = 16 << 20;
/// A process that does not answer within this time does not.
const READ_BOUND: Duration = Duration::from_secs(10);

/// Reads a page of a process' metrics port: its status code and its body.
///
/// # Errors
/// What the system says, `TimedOut` after ten seconds, or `InvalidData` where the answer is no HTTP.
pub async fn read_page(at: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let reading = async {
        let mut stream = TcpStream::connect(at).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        let mut bounded = stream.take(MAX_PAGE_BYTES);
        bounded.read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(READ_BOUND, reading).await??;
    let no_http = || io::Error::from(io::ErrorKind::InvalidData);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.ok_or_else(no_http)?, body.to_owned()))
}
