//! The end of a connection is told when the agent's process is gone, not before.
//!
//! An engine that has lost its agent writes to its memory as it likes. A dying process' files are closed one after
//! another, in an order that is the kernel's: readers whose connections to it are still open could take what the engine
//! writes for what it had published (`agent/src/transport/shm/watch.rs`). So the news of a connection's end is held back
//! until every file of the process is closed. An agent that hangs up and lives has made the words odd before, and there
//! is nothing to wait for.

use std::{
    fs, io,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, getpid, pidfd_open},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{sleep, timeout},
};

/// Longest wait for a process that is dying: it gives back memory meanwhile, a terabyte in some ten seconds.
const DYING: Duration = Duration::from_secs(60);
/// How often it is looked whether it has ended, which as a rule it has at the first look.
const LOOK: Duration = Duration::from_millis(5);
/// For a process that cannot be seen from here (in a container of its own): files are closed much faster.
const UNSEEN: Duration = Duration::from_millis(50);

/// The process at the other end of a connection.
#[derive(Debug)]
pub(crate) enum Process {
    /// This very one, or one that is gone.
    None,
    /// It can be watched.
    Seen(Pid, OwnedFd),
    /// It cannot.
    Unseen,
}

impl Process {
    /// Who listened where this was connected to.
    pub(crate) fn behind(stream: &UnixStream) -> Self {
        let pid = stream.peer_cred().ok().and_then(|it| it.pid());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            return Self::Unseen;
        };
        if pid == getpid() {
            return Self::None;
        }
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Self::Seen(pid, fd),
            Err(rustix::io::Errno::SRCH) => Self::None,
            Err(_) => Self::Unseen,
        }
    }

    /// Completes when no file of it is open any more, or at once where it lives.
    async fn gone(self) {
        match self {
            Self::None => {}
            Self::Unseen => sleep(UNSEEN).await,
            Self::Seen(pid, fd) if is_dying(pid) => {
                let ended = async {
                    while !has_ended(&fd) {
                        sleep(LOOK).await;
                    }
                };
                // Beyond that there is something wrong with the machine that waiting does not mend.
                let _ = timeout(DYING, ended).await;
            }
            Self::Seen(..) => {}
        }
    }
}

/// A pidfd can be read when its process has ended, which comes after its files were closed.
fn has_ended(fd: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut looked = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut looked, Some(&now)).is_ok_and(|events| events > 0)
}

/// A process gives up its memory before its files: who has lost a connection by a death sees no memory. Also true of one
/// that is gone, and where there is no /proc.
fn is_dying(pid: Pid) -> bool {
    let path = format!("/proc/{}/statm", pid.as_raw_nonzero());
    fs::read_to_string(path).map_or(true, |pages| pages.starts_with("0 "))
}

/// A stream whose end is told late enough.
pub(crate) struct LastWord<S> {
    stream: S,
    process: Option<Process>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> LastWord<S> {
    pub(crate) fn new(stream: S, process: Process) -> Self {
        Self {
            stream,
            process: Some(process),
            waiting: None,
        }
    }

    /// Ready when the end may be told.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(process) = self.process.take() {
            self.waiting = Some(Box::pin(process.gone()));
        }
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(context));
            self.waiting = None;
        }
        Poll::Ready(())
    }

    /// What came of writing: an error is an end, too.
    fn after<T>(
        &mut self,
        context: &mut Context<'_>,
        written: io::Result<T>,
    ) -> Poll<io::Result<T>> {
        if written.is_err() {
            ready!(self.poll_gone(context));
        }
        Poll::Ready(written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LastWord<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        // Asked again after the wait, an end is still the end.
        if read.is_err() || (buffer.filled().len() == before && buffer.remaining() > 0) {
            ready!(self.poll_gone(context));
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LastWord<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.after(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.after(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
        self.after(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use tokio::io::AsyncReadExt;

    use super::*;

    /// Does nothing until its stdin closes.
    fn child() -> (Child, Pid) {
        let child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    fn watched(pid: Pid) -> Process {
        Process::Seen(pid, pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    async fn told_at_once(process: Process) -> bool {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut stream = LastWord::new(ours, process);
        // Or not before the last bound: far more than any machine takes, and far less than that.
        let end = timeout(DYING / 2, stream.read_u8()).await;
        matches!(end, Ok(Err(_)))
    }

    #[tokio::test]
    async fn the_end_is_told_at_once_where_nobody_dies() {
        let (mut child, pid) = child();
        assert!(told_at_once(watched(pid)).await, "it lives");
        assert!(told_at_once(Process::None).await);
        let dead = watched(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(told_at_once(dead).await, "it has ended");
    }

    #[tokio::test]
    async fn the_end_waits_for_a_process_that_dies() {
        let (mut child, pid) = child();
        // As if it were dying: no memory, as one has that ended and nobody waited for, and not ended.
        let Process::Seen(_, fd) = watched(pid) else {
            panic!("it is seen");
        };
        let (mut ended, dying) = self::child();
        assert!(!is_dying(dying));
        ended.kill().unwrap();
        let gone = watched(dying);
        let Process::Seen(_, end) = gone else {
            panic!("it is seen");
        };
        while !has_ended(&end) {
            sleep(LOOK).await;
        }
        assert!(is_dying(dying));
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut stream = LastWord::new(ours, Process::Seen(dying, fd));
        let early = timeout(Duration::from_millis(100), stream.read_u8()).await;
        assert!(early.is_err(), "told before the process was gone");
        child.kill().unwrap();
        let told = timeout(DYING / 2, stream.read_u8()).await;
        assert!(told.unwrap().is_err(), "the stream has ended");
        child.wait().unwrap();
        ended.wait().unwrap();
    }
}
