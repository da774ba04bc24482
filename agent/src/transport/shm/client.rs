//! The client's end of the descriptor socket, for readers, engines and tools.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use kvferry_proto::{Incarnation, RegionId};
use kvferry_security::ticket::{NONCE_BYTES, Nonce, PROOF_BYTES, Purpose, Refusal};
use tokio::{net::UnixStream, sync::Mutex, time::timeout};

use super::{
    channel,
    frame::{
        BUSY, Bearer, Command, Greeting, NOT_ALLOWED, PROVE, REFUSED, REPLY_BYTES, Reply,
        ShmFrameError, WELCOME, incarnation,
    },
    watch::Watch,
};
use crate::tickets::{Held, Wallet};

/// Until the agent answers a hello or a command. It is on the same host and answers without waiting for
/// anything, so more means that it is stopped.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why descriptors could not be had or left.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// Nobody listens there.
    #[error("cannot connect to {}: {source}; is the agent running?", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another lifetime of the agent answers.
    #[error("the agent was restarted: incarnation {found} answers")]
    WrongIncarnation {
        /// The one that answers.
        found: Incarnation,
    },
    /// The agent does not serve this user, or not with that right.
    #[error("the agent does not allow this user to do that; see its shm user lists")]
    NotAllowed,
    /// The agent lets this user in with a ticket only.
    #[error("the agent lets this user in with a ticket only")]
    TicketNeeded,
    /// The agent refuses the ticket.
    #[error("the agent refuses the ticket: {refusal}")]
    TicketRefused {
        /// Why.
        refusal: Refusal,
    },
    /// The agent has too many connections.
    #[error("the agent has too many connections; try again later")]
    Busy,
    /// The agent does not have that region (any more).
    #[error("the agent does not serve region {region}")]
    RegionGone {
        /// Which.
        region: RegionId,
    },
    /// Descriptors that nobody claimed fill the box.
    #[error("too many descriptors were left and not claimed; register regions one by one")]
    TooManyDeposits,
    /// The agent could not make a descriptor; its log says why.
    #[error("the agent has no descriptor to give; its log says why")]
    Failed,
    /// The region's memory is a GPU's: copy to and from it there.
    #[error("region {region} is GPU memory, which cannot be mapped")]
    NotMappable {
        /// Which.
        region: RegionId,
    },
    /// The agent says what this client does not understand.
    #[error("the agent sent what is no answer: {0}")]
    Malformed(#[from] ShmFrameError),
    /// The connection is gone: connect again.
    #[error("the connection to the agent is lost: {0}")]
    Lost(io::Error),
}

/// What the agent gives for a region.
#[derive(Debug)]
pub struct RegionDescriptors {
    /// The blocks; mappable for writing only where that was asked for.
    pub data: OwnedFd,
    /// The generation table; never mappable for writing.
    pub generations: OwnedFd,
    /// Bytes of `data`, as the agent knows them.
    pub data_bytes: u64,
    /// Words of `generations`.
    pub slots: u32,
}

/// A connection to an agent's descriptor socket. Calls are answered one after another.
#[derive(Debug)]
pub struct DescriptorClient {
    /// None after a call that did not end: what comes next on the socket is then not known.
    stream: Mutex<Option<UnixStream>>,
    incarnation: Incarnation,
}

impl DescriptorClient {
    /// Connects; `expected` refuses any other incarnation. Ends within 2 seconds.
    ///
    /// # Errors
    /// [`DescriptorError`].
    pub async fn connect(
        path: &Path,
        expected: Option<Incarnation>,
    ) -> Result<Self, DescriptorError> {
        Self::connect_as(path, expected, None).await
    }

    /// As [`DescriptorClient::connect`], with a ticket for an agent of another user that wants one.
    pub(super) async fn connect_as(
        path: &Path,
        expected: Option<Incarnation>,
        shown: Option<(&Wallet, &Held)>,
    ) -> Result<Self, DescriptorError> {
        let connect = |source: io::Error| DescriptorError::Connect {
            path: path.to_owned(),
            source,
        };
        match timeout(ANSWER_TIMEOUT, Self::greet(path, expected, shown)).await {
            Ok(result) => result,
            Err(_) => Err(connect(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn greet(
        path: &Path,
        expected: Option<Incarnation>,
        shown: Option<(&Wallet, &Held)>,
    ) -> Result<Self, DescriptorError> {
        let connect = |source: io::Error| DescriptorError::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).await.map_err(connect)?;
        let hello = Greeting {
            status: WELCOME,
            refusal: 0,
            incarnation: expected.map_or(0, Incarnation::get),
        };
        // One who is turned away at the door may hang up first; its reason is still to be read.
        let _ = channel::send(&stream, &hello.encode(), &[]).await;
        let ended = || connect(io::ErrorKind::UnexpectedEof.into());
        let answer = channel::receive(&stream).await.map_err(connect)?;
        let mut answer = Greeting::decode(&answer.ok_or_else(ended)?.0)?;
        if answer.status == PROVE {
            let (wallet, held) = shown.ok_or(DescriptorError::TicketNeeded)?;
            let nonce = channel::receive::<NONCE_BYTES>(&stream).await;
            let (nonce, _) = nonce.map_err(connect)?.ok_or_else(ended)?;
            let proof = wallet.prove(Purpose::Descriptors, &Nonce(nonce), &held.bytes);
            let bearer = Bearer {
                ticket: held.bytes.to_vec(),
                proof,
            };
            let sent = channel::send(&stream, &bearer.encode(), &[]).await;
            sent.map_err(connect)?;
            let again = channel::receive(&stream).await.map_err(connect)?;
            answer = Greeting::decode(&again.ok_or_else(ended)?.0)?;
        }
        let found = incarnation(answer.incarnation)?;
        match answer.status {
            WELCOME if expected.is_none_or(|expected| expected == found) => Ok(Self {
                stream: Mutex::new(Some(stream)),
                incarnation: found,
            }),
            NOT_ALLOWED => Err(DescriptorError::NotAllowed),
            BUSY => Err(DescriptorError::Busy),
            REFUSED => Err(DescriptorError::TicketRefused {
                refusal: Refusal::from_code(answer.refusal),
            }),
            PROVE => Err(ShmFrameError::Status { found: PROVE }.into()),
            _ => Err(DescriptorError::WrongIncarnation { found }),
        }
    }

    /// The agent's lifetime that answered.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Leaves a descriptor with the agent. Gives the token to name it by; it expires with this client.
    ///
    /// # Errors
    /// [`DescriptorError`].
    pub async fn deposit(&self, descriptor: BorrowedFd<'_>) -> Result<u64, DescriptorError> {
        let (reply, _) = self.call(Command::Deposit, &[descriptor]).await?;
        match reply {
            Reply::Deposited { token } => Ok(token),
            other => Err(refusal(other, RegionId(0))),
        }
    }

    /// A region's descriptors; `writable` is for the agent's own engines.
    ///
    /// # Errors
    /// [`DescriptorError`].
    pub async fn open_region(
        &self,
        region: RegionId,
        incarnation: Incarnation,
        writable: bool,
    ) -> Result<RegionDescriptors, DescriptorError> {
        let command = Command::Open {
            region,
            incarnation: incarnation.get(),
            writable,
        };
        let (reply, descriptors) = self.call(command, &[]).await?;
        let Reply::Opened { data_bytes, slots } = reply else {
            return Err(refusal(reply, region));
        };
        let found = descriptors.len();
        let mut descriptors = descriptors.into_iter();
        let (Some(data), Some(generations)) = (descriptors.next(), descriptors.next()) else {
            return Err(ShmFrameError::Descriptors { found, expected: 2 }.into());
        };
        Ok(RegionDescriptors {
            data,
            generations,
            data_bytes,
            slots,
        })
    }

    /// Goes on with a later ticket.
    pub(super) async fn renew(&self, held: &Held) -> Result<(), DescriptorError> {
        let bearer = Bearer {
            ticket: held.bytes.to_vec(),
            proof: [0; PROOF_BYTES],
        };
        let frame = [&Command::Renew.encode()[..], &bearer.encode()].concat();
        match self.exchange(&frame, &[]).await? {
            (Reply::Renewed, _) => Ok(()),
            (reply, _) => Err(refusal(reply, RegionId(0))),
        }
    }

    async fn call(
        &self,
        command: Command,
        beside: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), DescriptorError> {
        self.exchange(&command.encode(), beside).await
    }

    async fn exchange(
        &self,
        frame: &[u8],
        beside: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), DescriptorError> {
        let mut slot = self.stream.lock().await;
        // Put back only when the answer has come, so that a call given up half-way ends the connection.
        let stream = slot
            .take()
            .ok_or_else(|| DescriptorError::Lost(io::ErrorKind::NotConnected.into()))?;
        let exchange = async {
            channel::send(&stream, frame, beside).await?;
            let answer = channel::receive::<REPLY_BYTES>(&stream).await?;
            answer.ok_or(io::ErrorKind::UnexpectedEof.into())
        };
        let (reply, descriptors) = timeout(ANSWER_TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(DescriptorError::Lost)?;
        let reply = Reply::decode(&reply)?;
        *slot = Some(stream);
        Ok((reply, descriptors))
    }

    /// To see from any thread whether the agent has hung up.
    pub(super) async fn watch(&self) -> io::Result<Watch> {
        match &*self.stream.lock().await {
            Some(stream) => Watch::new(stream),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Completes when the agent has hung up. Calls wait meanwhile: select it against them.
    pub async fn hung_up(&self) {
        if let Some(stream) = self.stream.lock().await.as_ref() {
            channel::hung_up(stream).await;
        }
    }
}

fn refusal(reply: Reply, region: RegionId) -> DescriptorError {
    match reply {
        Reply::RegionGone => DescriptorError::RegionGone { region },
        Reply::WrongIncarnation { found } => match incarnation(found) {
            Ok(found) => DescriptorError::WrongIncarnation { found },
            Err(error) => error.into(),
        },
        Reply::NotAllowed => DescriptorError::NotAllowed,
        Reply::TooManyDeposits => DescriptorError::TooManyDeposits,
        Reply::Failed => DescriptorError::Failed,
        Reply::NotMappable => DescriptorError::NotMappable { region },
        Reply::Refused(refusal) => DescriptorError::TicketRefused { refusal },
        Reply::Opened { .. } | Reply::Deposited { .. } | Reply::Renewed => {
            ShmFrameError::Reserved.into()
        }
    }
}
