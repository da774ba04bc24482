//! What coordinators say in sessions, against the machine that speaks for the agent.

use std::time::Duration;

use kvferry_agent::session::{Command, Event, SessionConfig, SessionMachine};

use crate::{Target, choices::Choices};

pub(super) const TARGET: Target = Target {
    name: "session_machine",
    run,
    seeds,
};

/// More than it may have under way, and more than it sends at once.
const MAX_COMMANDS: usize = 200;

fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut machine = SessionMachine::new(SessionConfig::default());
    let (mut now, mut next_delta, mut given_up) = (Duration::ZERO, 1u64, false);
    while !choices.is_empty() {
        let event = match choices.below(14) {
            0 | 1 => {
                now += Duration::from_millis(u64::from(choices.u8()) * 40);
                Event::Tick { next_delta }
            }
            // The log is this agent's own: it grows by what was recorded.
            2 => {
                next_delta += u64::from(choices.u8());
                Event::Tick { next_delta }
            }
            3 => Event::Connected,
            4 => Event::Disconnected,
            5 | 6 => Event::Welcomed {
                epoch: choices.number(),
                // 32 bits on the wire.
                heartbeat: Duration::from_millis(choices.number() & u64::from(u32::MAX)),
                expect_delta: (!choices.u8().is_multiple_of(4)).then(|| choices.number()),
            },
            7 => Event::Acknowledged(choices.number()),
            8 => Event::ResyncRequested,
            9 => Event::HeartbeatAnswered,
            // Of what there is by then: at least what was acknowledged.
            10 => {
                let least = machine.acknowledged();
                Event::InventorySent(least + choices.number() % (next_delta - least))
            }
            11 => Event::DeltaForgotten,
            12 => Event::Closing,
            _ if choices.u8() < 8 => Event::Stop,
            _ if choices.u8() < 64 => Event::Fenced,
            _ => Event::Tick { next_delta },
        };
        machine.handle(now, event);
        let mut commands = 0;
        while let Some(command) = machine.poll_command() {
            commands += 1;
            assert!(commands <= MAX_COMMANDS, "it sends without end");
            assert!(!given_up, "it gave up, and then says {command:?}");
            match command {
                Command::SendDelta(seq) => {
                    assert!((1..next_delta).contains(&seq), "there is no delta {seq}");
                }
                Command::SendHeartbeat {
                    next_delta: said, ..
                } => assert!(
                    said == 0 || (machine.acknowledged() < said && said <= next_delta),
                    "delta {said} is said to come next, of {next_delta}"
                ),
                Command::GiveUp => given_up = true,
                _ => {}
            }
        }
        assert!(
            machine.acknowledged() < next_delta,
            "more than there is was acknowledged"
        );
        if let Some(due) = machine.poll_timeout() {
            // At the latest in four of the longest heartbeats.
            assert!(due <= now + Duration::from_millis(u64::from(u32::MAX)) * 5);
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let welcomed = |expect: &[u8]| [&[5, 1, 100], expect].concat();
    let live = [&[2, 3, 3][..], &welcomed(&[1, 1])].concat();
    let acknowledged = [&live[..], &[7, 2, 2, 5, 0, 30, 8, 10, 7, 9]].concat();
    let resync = [
        &[2, 3, 3][..],
        &welcomed(&[0]),
        &[10, 3, 7, 3, 0, 200, 4, 0, 200, 3],
    ]
    .concat();
    let beyond = [&[2, 3, 3][..], &welcomed(&[1, 210])].concat();
    vec![live, acknowledged, resync, beyond]
}
