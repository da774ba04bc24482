//! What callers are told: answers as messages, and what each refusal looks like.

use bytes::Bytes;
use kvferry_proto::{Reason, SourceId, TableDigest, pb, refusal};
use tonic::{Code, Status};

use crate::sources::{
    AnnounceError, Announcer, BoundReached, GetError, GoneCause, MAX_REPORTS, PublishError,
    SourceState, SourceUnknown, StaleCause, Summary, WorkerInfo, WorkerState,
};

pub(super) fn id(id: SourceId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(super) fn digest(digest: TableDigest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

pub(super) fn summary(summary: &Summary) -> pb::SourceSummary {
    let state = match summary.state {
        SourceState::Initialising => pb::SourceState::Initialising,
        SourceState::Ready => pb::SourceState::Ready,
        SourceState::Stale => pb::SourceState::Stale,
        SourceState::Gone => pb::SourceState::Gone,
    };
    pb::SourceSummary {
        source: id(summary.source),
        identity: Some((&*summary.identity).into()),
        state: state.into(),
        ranks_ready: summary.ranks_ready,
        workers_initialising: summary.initialising,
        workers_ready: summary.ready,
        workers_stale: summary.stale,
        workers_gone: summary.gone,
        tensors: summary.tensors,
        bytes: summary.bytes,
    }
}

pub(super) fn worker(worker: &WorkerInfo) -> pb::SourceWorker {
    let (state, cause) = state(worker.state);
    pb::SourceWorker {
        rank: worker.rank,
        node: worker.node.to_string(),
        incarnation: worker.incarnation.get(),
        state: state.into(),
        cause: cause.into(),
        digest: digest(worker.digest),
        runs: (&worker.runs).into(),
        ms_in_state: u64::try_from(worker.in_state.as_millis()).unwrap_or(u64::MAX),
        reporters: worker.reporters as u32, // bounded
    }
}

fn state(state: WorkerState) -> (pb::SourceState, pb::SourceCause) {
    use pb::{SourceCause as Cause, SourceState as State};
    match state {
        WorkerState::Initialising => (State::Initialising, Cause::Unspecified),
        WorkerState::Ready => (State::Ready, Cause::Unspecified),
        WorkerState::Stale(cause) => (
            State::Stale,
            match cause {
                StaleCause::Session => Cause::Session,
                StaleCause::Readers => Cause::Readers,
                StaleCause::Rewritten => Cause::Rewritten,
            },
        ),
        WorkerState::Gone(cause) => (
            State::Gone,
            match cause {
                GoneCause::Node => Cause::Node,
                GoneCause::Fenced => Cause::Fenced,
                GoneCause::Withdrawn => Cause::Withdrawn,
                GoneCause::Removed => Cause::Removed,
            },
        ),
    }
}

pub(super) fn unknown(error: SourceUnknown) -> Status {
    refusal(Code::NotFound, Reason::SourceUnknown, error.to_string())
}

pub(super) fn get(error: &GetError) -> Status {
    let text = error.to_string();
    match error {
        GetError::Unknown(error) => unknown(*error),
        GetError::Rank(_) => refusal(Code::InvalidArgument, Reason::InvalidArgument, text),
        GetError::Nobody { .. } => refusal(Code::FailedPrecondition, Reason::SourceNotReady, text),
    }
}

pub(super) fn announce(error: &AnnounceError) -> Status {
    let text = error.to_string();
    match error {
        AnnounceError::NoSession { .. } => {
            refusal(Code::FailedPrecondition, Reason::NodeUnknown, text)
        }
        AnnounceError::Late { .. } => refusal(Code::Aborted, Reason::Fenced, text),
        AnnounceError::Twice { .. } => {
            refusal(Code::InvalidArgument, Reason::InvalidArgument, text)
        }
        AnnounceError::Bound(error) => bound(error),
    }
}

pub(super) fn publish(error: &PublishError) -> Status {
    match error {
        PublishError::Announce(error) => announce(error),
        PublishError::Bound(error) => bound(error),
        PublishError::Rank(_) | PublishError::Digest { .. } | PublishError::Runs(_) => refusal(
            Code::InvalidArgument,
            Reason::InvalidArgument,
            error.to_string(),
        ),
    }
}

fn bound(error: &BoundReached) -> Status {
    exhausted(error.to_string())
}

fn exhausted(text: String) -> Status {
    refusal(Code::ResourceExhausted, Reason::BoundReached, text)
}

pub(super) fn no_session(who: &Announcer) -> Status {
    announce(&AnnounceError::NoSession {
        node: who.node.clone(),
        incarnation: who.incarnation,
    })
}

pub(super) fn too_many_publishing(max: usize) -> Status {
    exhausted(format!(
        "{max} publications are being received, as many as may be: try again in a moment"
    ))
}

pub(super) fn too_many_reports(got: usize) -> Status {
    exhausted(format!(
        "{got} reports in one call; at most {MAX_REPORTS} are allowed: split it"
    ))
}

pub(super) fn too_many_tensors(count: usize, max_bytes: usize) -> Status {
    exhausted(format!(
        "more tensors than the {count} announced, or more than {max_bytes} bytes of descriptors"
    ))
}

pub(super) fn slow_publisher(within_ms: u128) -> Status {
    refusal(
        Code::DeadlineExceeded,
        Reason::Deadline,
        format!("the publication was not complete within {within_ms} ms"),
    )
}
