//! Messages into what the machine takes.

use kvferry_proto::{
    ChunkRuns, Incarnation, InvalidMessage, NodeId, SourceId, TableDigest, pb,
    pb::worker_report::Kind,
};

use crate::sources::{Announced, Announcer, Report, ReportKind, Said};

pub(super) fn announcer(
    node: &str,
    incarnation: u64,
    number: u64,
) -> Result<Announcer, InvalidMessage> {
    Ok(Announcer {
        node: NodeId::new(node)?,
        incarnation: Incarnation::new(incarnation)?,
        number,
    })
}

pub(super) fn announced(worker: pb::AnnouncedWorker) -> Result<Announced, InvalidMessage> {
    Ok(Announced {
        source: SourceId::new(&worker.source)?,
        rank: worker.rank,
        publication: worker.publication,
        digest: TableDigest::new(&worker.digest)?,
        said: match worker.state() {
            pb::SourceState::Initialising => Said::Initialising,
            pb::SourceState::Ready => Said::Ready,
            pb::SourceState::Stale => Said::Rewritten,
            // Only a coordinator says that somebody is gone.
            pb::SourceState::Gone | pb::SourceState::Unspecified => {
                return Err(InvalidMessage::Missing(
                    "a state of the worker that can be announced",
                ));
            }
        },
        runs: ChunkRuns::try_from(worker.runs)?,
    })
}

pub(super) fn report(report: &pb::WorkerReport) -> Result<Report, InvalidMessage> {
    Ok(Report {
        source: SourceId::new(&report.source)?,
        rank: report.rank,
        node: NodeId::new(&report.node)?,
        incarnation: Incarnation::new(report.incarnation)?,
        kind: match report.kind() {
            Kind::Unreachable => ReportKind::Unreachable,
            Kind::Stale => ReportKind::Stale,
            Kind::Unspecified => return Err(InvalidMessage::Missing("the kind of a report")),
        },
    })
}
