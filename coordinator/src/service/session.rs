//! One task per session: a message in, an event to the directory, until one side ends it.

use std::{sync::Arc, time::Duration};

use kvferry_proto::pb::{self, agent_message::Message, coordinator_message};
use kvferry_security::{Access, Right};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{
    hub::{Hub, ROOM, Session},
    outbound::Outbound,
    parse, status,
};
use crate::{
    directory::{Event, SessionId},
    metrics::Said,
};

/// A stream that does not introduce itself within this time is closed: it holds a session's place.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// An agent that reads nothing for this long, while its queue is nearly full, is cut off.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Opens a session and starts its task.
pub(super) fn open(
    hub: &Arc<Hub>,
    access: Access,
    inbound: Streaming<pb::AgentMessage>,
) -> Result<Outbound<pb::CoordinatorMessage>, Status> {
    let (session, outbound) = hub.open()?;
    tokio::spawn(run(hub.clone(), access, session, inbound));
    Ok(outbound)
}

async fn run(
    hub: Arc<Hub>,
    access: Access,
    mut session: Session,
    mut inbound: Streaming<pb::AgentMessage>,
) {
    let mut closing = session.closing.clone();
    let stop = session.stop.clone();
    let error = tokio::select! {
        outcome = converse(&hub, &access, &mut session, &mut inbound) => outcome.err(),
        () = hub.gate().revoked(&access) => {
            let who = access.name().unwrap_or_default();
            tracing::info!(session = session.id.0, who, "session ended: the policy has changed for it");
            hub.revoke(session.id, status::revoked());
            None
        }
        () = stop.notified() => None,
        _ = closing.wait_for(|closing| *closing) => {
            say_closing(&session);
            None
        }
    };
    if let Some(error) = &error {
        tracing::info!(session = session.id.0, %error, "session ended");
    }
    hub.end(session.id, error);
}

/// Until the agent ends its half of the stream.
async fn converse(
    hub: &Hub,
    access: &Access,
    session: &mut Session,
    inbound: &mut Streaming<pb::AgentMessage>,
) -> Result<(), Status> {
    let Some(first) = timeout(HELLO_WITHIN, next(inbound))
        .await
        .map_err(|_| status::no_hello(HELLO_WITHIN.as_millis()))??
    else {
        return Ok(());
    };
    let Message::Hello(hello) = first else {
        return Err(status::hello_first());
    };
    hub.metrics().said(Said::Hello);
    let hello = parse::hello(hello)?;
    access.must_be(hello.node.as_str(), "open a session")?;
    hub.handle(Event::Hello {
        session: session.id,
        hello,
    });
    loop {
        wait_for_room(session).await?;
        let Some(message) = next(inbound).await? else {
            return Ok(());
        };
        count(hub, &message);
        let message = match message {
            Message::Replicated(replicated) => {
                hub.replicated(session.id, &replicated);
                continue;
            }
            other => other,
        };
        let (mut event, then) = events(session.id, message)?;
        look_at_regions(access, &mut event);
        hub.handle(event);
        then.into_iter().for_each(|event| hub.handle(event));
    }
}

/// Regions of namespaces that the agent may not publish in are refused, each by itself: the others
/// of the node are not at fault.
fn look_at_regions(access: &Access, event: &mut Event) {
    let declared = match event {
        Event::Delta { delta, .. } => &mut delta.regions_added,
        Event::Inventory { part, .. } => &mut part.regions,
        _ => return,
    };
    for region in declared {
        let name = region.namespace.name.as_str();
        let denied = access.must(Right::Write, name, "publish blocks").err();
        region.denied = denied.map(Box::new);
    }
}

/// The next message that says something.
async fn next(inbound: &mut Streaming<pb::AgentMessage>) -> Result<Option<Message>, Status> {
    loop {
        match inbound.message().await.map_err(status::inbound)? {
            None => return Ok(None),
            Some(pb::AgentMessage {
                message: Some(said),
            }) => return Ok(Some(said)),
            // A kind of message this version doesn't know.
            Some(pb::AgentMessage { message: None }) => {}
        }
    }
}

/// An agent that doesn't read is not listened to either: its queue stays bounded.
async fn wait_for_room(session: &Session) -> Result<(), Status> {
    match timeout(READ_WITHIN, session.messages.reserve_many(ROOM)).await {
        Ok(Ok(_room)) => Ok(()),
        Ok(Err(_gone)) => Err(Status::cancelled("the agent closed its session")),
        Err(_) => Err(status::slow_agent()),
    }
}

fn count(hub: &Hub, message: &Message) {
    hub.metrics().said(match message {
        Message::Hello(_) => Said::Hello,
        Message::Delta(_) => Said::Delta,
        Message::Heartbeat(heartbeat) => {
            hub.metrics().stale(heartbeat.stale_blocks.into());
            Said::Heartbeat
        }
        Message::Inventory(_) => Said::Inventory,
        Message::Goodbye(_) => Said::Goodbye,
        Message::Replicated(_) => return,
    });
}

/// What a message says; a heartbeat may say two things.
pub(super) fn events(
    session: SessionId,
    message: Message,
) -> Result<(Event, Option<Event>), Status> {
    let event = match message {
        Message::Hello(hello) => Event::Hello {
            session,
            hello: parse::hello(hello)?,
        },
        Message::Delta(delta) => Event::Delta {
            session,
            delta: parse::delta(delta).map_err(status::message)?,
        },
        Message::Heartbeat(pb::Heartbeat {
            number,
            reads,
            next_delta,
            ..
        }) => {
            let beat = Event::Heartbeat {
                session,
                number,
                next_delta: parse::next_delta(next_delta),
            };
            let reads = parse::reads(reads)?;
            let told = (!reads.is_empty()).then_some(Event::Reads { session, reads });
            return Ok((beat, told));
        }
        Message::Inventory(part) => Event::Inventory {
            session,
            part: parse::inventory(part).map_err(status::message)?,
        },
        Message::Goodbye(pb::Goodbye {}) => Event::Goodbye { session },
        Message::Replicated(_) => return Err(status::hello_first()),
    };
    Ok((event, None))
}

fn say_closing(session: &Session) {
    let closing = coordinator_message::Message::Closing(pb::Closing {});
    let message = pb::CoordinatorMessage {
        message: Some(closing),
    };
    // A full queue belongs to an agent that doesn't read; it sees the stream end.
    session.messages.try_send(message).ok();
}
