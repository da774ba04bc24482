//! One task per watcher: what is there, then what changes, until one side ends it. Nothing waits for a
//! watcher but the namespace's log, which is bounded.

use std::{future::poll_fn, sync::Arc, time::Duration};

use kvferry_proto::{
    InvalidMessage, NamespaceName,
    pb::{self, watch_message::Message, watch_server::Watch},
};
use kvferry_security::{Access, Right};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::{Request, Response, Status};

use super::{hub::Hub, outbound::Outbound, status, watched};
use crate::{
    directory::{Change, WatchEnd, Watcher},
    metrics::Unwatched,
};

/// Slots told of at a time at the start: some hundred microseconds in which a session of that region
/// waits.
const SLICE: u32 = 1_024;
/// What a message of changes takes, about.
const MESSAGE_BYTES: usize = 256 << 10;
/// Messages that wait for the connection: one on its way, and one behind it.
const QUEUE: usize = 2;
/// A watcher that reads nothing for this long is cut off: it holds a place, and keeps a log alive.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// `kvferry.v1.Watch` over one directory.
#[derive(Debug, Clone)]
pub(crate) struct WatchService {
    hub: Arc<Hub>,
}

impl WatchService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Outbound<pb::WatchMessage>;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let access = self.hub.access(request.extensions());
        let request = request.into_inner();
        let name = NamespaceName::new(&request.namespace).map_err(InvalidMessage::from)?;
        access.must(Right::Read, name.as_str(), "watch")?;
        let after = (request.epoch != 0).then_some((request.epoch, request.seq));
        let closing = self.hub.closing();
        if *closing.borrow() {
            return Err(status::shutting_down());
        }
        let watcher = self
            .hub
            .update(|directory| (directory.watch(&name, after), Vec::new()))
            .map_err(|error| status::watch(&error))?;
        let (messages, queue) = mpsc::channel(QUEUE);
        let (close, closed) = oneshot::channel();
        let teller = Teller {
            hub: self.hub.clone(),
            watcher,
            messages,
            access,
        };
        tokio::spawn(teller.run(close, closing));
        Ok(Response::new(Outbound::new(queue, closed)))
    }
}

/// Why a watcher's task ends.
enum End {
    /// The watcher left.
    Left,
    Said(Unwatched, Box<Status>),
}

impl From<WatchEnd> for End {
    fn from(end: WatchEnd) -> Self {
        let why = match end {
            WatchEnd::TooSlow => Unwatched::Behind,
            WatchEnd::Deleted => Unwatched::NamespaceDeleted,
        };
        Self::Said(why, Box::new(status::watch_end(end)))
    }
}

struct Teller {
    hub: Arc<Hub>,
    watcher: Watcher,
    messages: mpsc::Sender<pb::WatchMessage>,
    access: Access,
}

impl Teller {
    async fn run(
        mut self,
        close: oneshot::Sender<Status>,
        mut closing: tokio::sync::watch::Receiver<bool>,
    ) {
        let messages = self.messages.clone();
        let (hub, access) = (Arc::clone(&self.hub), self.access.clone());
        let end = tokio::select! {
            () = hub.gate().revoked(&access) => {
                End::Said(Unwatched::Revoked, Box::new(status::revoked()))
            }
            end = self.tell_all() => end,
            () = messages.closed() => End::Left,
            _ = closing.wait_for(|closing| *closing) => {
                End::Said(Unwatched::ShuttingDown, Box::new(status::shutting_down()))
            }
        };
        let why = match &end {
            End::Left => Unwatched::Left,
            End::Said(why, _) => *why,
        };
        self.hub.metrics().unwatched(why);
        if let End::Said(_, status) = end {
            let namespace = &self.watcher.spec().name;
            tracing::info!(%namespace, %status, "watcher cut off");
            // The far end may have gone already.
            close.send(*status).ok();
        }
    }

    async fn tell_all(&mut self) -> End {
        match self.tell().await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn tell(&mut self) -> Result<std::convert::Infallible, End> {
        let from_start = self.watcher.scans();
        let started = Message::Started(pb::WatchStarted {
            epoch: self.hub.read().epoch(),
            namespace: Some(self.watcher.spec().into()),
            from_start,
        });
        let seq = if from_start { 0 } else { self.watcher.seq() };
        self.send(seq, started).await?;
        if from_start {
            self.tell_what_is_there().await?;
        }
        loop {
            let changes = poll_fn(|cx| self.watcher.poll_changes(cx, MESSAGE_BYTES)).await;
            let changes = changes?;
            self.hub.metrics().watch_told(told(&changes));
            let hash_len = self.watcher.spec().hash_len;
            for (seq, message) in watched::messages(&changes, self.watcher.seq(), hash_len) {
                self.send(seq, message).await?;
            }
        }
    }

    async fn tell_what_is_there(&mut self) -> Result<(), End> {
        loop {
            let scanned = self.hub.read().scan(&mut self.watcher, SLICE);
            let Some(scanned) = scanned? else {
                break;
            };
            let told = told(&scanned.changes) + scanned.rows.changes.len();
            self.hub.metrics().watch_told(told);
            let hash_len = self.watcher.spec().hash_len;
            // Numbers of no use: a start that is broken off cannot be gone on with.
            let changes = watched::messages(&scanned.changes, u64::MAX, hash_len);
            for (_, message) in changes {
                self.send(0, message).await?;
            }
            if let Some(rows) = watched::copies(scanned.rows, hash_len) {
                self.send(0, rows).await?;
            }
            tokio::task::yield_now().await;
        }
        let seq = self.watcher.seq();
        self.send(seq, Message::Synced(pb::WatchSynced {})).await
    }

    async fn send(&self, seq: u64, message: Message) -> Result<(), End> {
        let message = pb::WatchMessage {
            seq,
            message: Some(message),
        };
        match timeout(READ_WITHIN, self.messages.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_gone)) => Err(End::Left),
            Err(_) => {
                let status = status::slow_watcher(READ_WITHIN.as_millis());
                Err(End::Said(Unwatched::Stuck, Box::new(status)))
            }
        }
    }
}

/// How much one hears of: each copy counts, and each change of structure.
fn told(changes: &[Arc<Change>]) -> usize {
    let each = changes.iter().map(|change| match &**change {
        Change::Rows(rows) => rows.changes.len(),
        _ => 1,
    });
    each.sum()
}
