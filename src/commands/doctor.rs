//! `kvferry doctor`: what this host has for moving bytes, what is wrong with it, and what to do.

mod devices;
mod host;
mod peer;

use serde::Serialize;

use crate::{
    cli::DoctorArgs,
    failure::Done,
    output::{self, OutputError},
};

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Works, and could be better; or is not there and not needed.
    Note,
    /// Does not work.
    Wrong,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    state: State,
    detail: String,
    /// What to do about it; empty where there is nothing to do.
    fix: String,
}

impl Finding {
    fn ok(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(what, State::Ok, detail, "")
    }

    fn new(
        what: impl Into<String>,
        state: State,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            what: what.into(),
            state,
            detail: detail.into(),
            fix: fix.into(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    findings: Vec<Finding>,
    /// What `transport = "auto"` would choose towards the peer; none without `--peer`, or where nothing leads there.
    auto: Option<String>,
}

pub(crate) async fn run(args: DoctorArgs) -> Result<Done, OutputError> {
    let mut findings = devices::look();
    findings.extend(host::look());
    let mut auto = None;
    if let Some(address) = args.peer {
        let (found, chosen) = peer::look(address, &args).await;
        findings.extend(found);
        auto = chosen;
    }
    // Without RDMA everything works over sockets: only a peer that cannot be reached at all is a failure.
    let reached = args.peer.is_none() || auto.is_some();
    let report = Report { findings, auto };
    match args.json {
        true => output::json(&report)?,
        false => print(&report)?,
    }
    Ok(if reached { Done::All } else { Done::InPart })
}

fn print(report: &Report) -> Result<(), OutputError> {
    for finding in &report.findings {
        let state = finding.state.as_str();
        output::line(&format!("{state:<6} {}: {}", finding.what, finding.detail))?;
        if !finding.fix.is_empty() {
            output::line(&format!("       fix: {}", finding.fix))?;
        }
    }
    match &report.auto {
        Some(kind) => output::line(&format!("auto would choose {kind}")),
        None => Ok(()),
    }
}
