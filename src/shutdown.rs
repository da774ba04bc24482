//! When a long-running command should stop.

use std::{
    future::Future,
    io::{self, Read},
    thread,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing::info;

/// Resolves on SIGTERM or SIGINT, and where wanted when stdin closes. Signals count from this call on.
pub(crate) fn requested(until_stdin_closes: bool) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stdin = until_stdin_closes.then(stdin_closed).transpose()?;
    Ok(async move {
        let why = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = closed(stdin) => "stdin closed",
        };
        info!(why, "stopping");
    })
}

async fn closed(stdin: Option<oneshot::Receiver<()>>) {
    match stdin {
        // An error is the thread's end, too.
        Some(end) => drop(end.await),
        None => std::future::pending().await,
    }
}

/// A thread of its own: a blocking read on the runtime would hold up its end.
fn stdin_closed() -> io::Result<oneshot::Receiver<()>> {
    let (closed, end) = oneshot::channel();
    thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut ignored = [0; 256];
            let mut stdin = io::stdin().lock();
            while !matches!(stdin.read(&mut ignored), Ok(0) | Err(_)) {}
            // Nobody listens any more where the process stops already.
            let _ = closed.send(());
        })?;
    Ok(end)
}
