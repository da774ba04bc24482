//! Effects into messages to agents.

use bytes::Bytes;
use kvferry_proto::pb::{self, coordinator_message::Message};

use super::{HubConfig, status};
use crate::directory::{Effect, SessionId};

fn ticket_keys(config: &HubConfig) -> Vec<Bytes> {
    let keys = config.ticket_keys.iter();
    keys.map(|key| Bytes::copy_from_slice(&key.0)).collect()
}

/// What an agent is told of an effect, if it is for one.
pub(super) fn message(config: &HubConfig, effect: Effect) -> Option<(SessionId, Message)> {
    Some(match effect {
        Effect::Welcome {
            session,
            expect_delta,
            resync,
        } => {
            let welcome = pb::Welcome {
                epoch: config.directory.epoch,
                heartbeat_interval_ms: config.heartbeat_interval_ms,
                hide_after_ms: config.hide_after_ms,
                expect_delta,
                resync,
                ticket_keys: ticket_keys(config),
            };
            (session, Message::Welcome(welcome))
        }
        Effect::Ack { session, seq } => (session, Message::Ack(pb::Ack { seq })),
        Effect::ResyncRequest {
            session,
            expected,
            got,
        } => {
            tracing::warn!(session = session.0, expected, got, "gap in deltas, resync");
            let request = pb::ResyncRequest {
                expected_seq: expected,
                got_seq: got,
            };
            (session, Message::Resync(request))
        }
        Effect::DeclareAgain { session } => {
            tracing::info!(session = session.0, "refused regions are heard again");
            (session, Message::Resync(pb::ResyncRequest::default()))
        }
        Effect::HeartbeatAck { session, number } => {
            (session, Message::HeartbeatAck(pb::HeartbeatAck { number }))
        }
        Effect::RegionRefused {
            session,
            region,
            refusal,
        } => {
            tracing::warn!(session = session.0, %region, %refusal, "region refused");
            let refused = pb::RegionRefused {
                region: region.0,
                reason: status::region(&refusal).into(),
                message: refusal.to_string(),
            };
            (session, Message::RegionRefused(refused))
        }
        Effect::Surplus { session, copies } => {
            let surplus = pb::Surplus {
                regions: copies.iter().map(|copy| copy.region.0).collect(),
                slots: copies.iter().map(|copy| copy.slot).collect(),
                generations: copies.iter().map(|copy| copy.generation).collect(),
            };
            (session, Message::Surplus(surplus))
        }
        Effect::Close { .. }
        | Effect::NodeHidden { .. }
        | Effect::NodeShown { .. }
        | Effect::NodeRemoved { .. } => return None,
    })
}
