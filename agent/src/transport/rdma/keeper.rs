//! What keeps a link: renews its session, connects queue pairs again, drops what does not drain.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::{
    sync::{
        Notify,
        broadcast::{Receiver, error::RecvError},
    },
    time::sleep,
};

use super::{
    config::{RECONNECT_FIRST, RECONNECT_MAX, RENEW_AGAIN, RENEW_EVERY},
    connect,
    events::DeviceEvent,
    fault::Loss,
    link::Shared,
    owner_client::Renewed,
};

/// Renewals that may fail in a row: one may fall into a pause of the owner.
const MISSED_RENEWALS: u32 = 2;

/// Until the link is dropped or lost.
pub(super) async fn run(link: Weak<Shared>, wake: Arc<Notify>, mut events: Receiver<DeviceEvent>) {
    let mut keeper = Keeper {
        renewed: Instant::now(),
        missed: 0,
        retry_at: Instant::now(),
        pause: RECONNECT_FIRST,
    };
    loop {
        let event = tokio::select! {
            () = wake.notified() => None,
            () = sleep(keeper.pause()) => None,
            event = events.recv() => match event {
                Ok(event) => Some(event),
                // Some were missed; the READs will tell.
                Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => return,
            },
        };
        let Some(link) = link.upgrade() else { return };
        match event {
            Some(DeviceEvent::Down { device }) => link.device_down(device),
            Some(DeviceEvent::Pair { device, qp_num }) => link.pair_failed(device, qp_num),
            None => {}
        }
        if !keeper.look_after(&link).await {
            return;
        }
    }
}

struct Keeper {
    renewed: Instant,
    missed: u32,
    retry_at: Instant,
    pause: Duration,
}

impl Keeper {
    fn pause(&self) -> Duration {
        match self.missed {
            0 => RENEW_EVERY,
            _ => RENEW_AGAIN,
        }
    }

    /// False when the link needs no keeper any more.
    async fn look_after(&mut self, link: &Arc<Shared>) -> bool {
        link.drop_overdue().await;
        if link.is_lost_now() {
            return false;
        }
        self.renew(link).await;
        self.reconnect(link).await;
        !link.is_lost_now()
    }

    async fn renew(&mut self, link: &Shared) {
        if self.renewed.elapsed() < self.pause() {
            return;
        }
        self.renewed = Instant::now();
        match link.client.renew(&link.peer).await {
            Renewed::Alive => self.missed = 0,
            Renewed::Gone => link.lose(Loss::SessionEnded),
            Renewed::Unknown(why) => {
                self.missed += 1;
                if self.missed >= MISSED_RENEWALS {
                    link.lose(Loss::OwnerSilent(why));
                }
            }
        }
    }

    /// Without any queue pair at once; for a further device after a pause.
    async fn reconnect(&mut self, link: &Arc<Shared>) {
        let none = !link.has_lanes();
        let missing = link.missing();
        if missing.is_empty() {
            self.pause = RECONNECT_FIRST;
            return;
        }
        if link.is_lost_now() || !none && Instant::now() < self.retry_at {
            return;
        }
        if !none && !link.has_open_lanes() {
            // What is closed still drains.
            return;
        }
        let peer = &link.peer;
        match connect::lanes(&link.devices, &link.client, peer, &missing).await {
            Ok(lanes) => {
                tracing::debug!(node = %peer.node, count = lanes.len(), "queue pairs connected again");
                link.adopt(lanes);
            }
            Err(error) if none => link.lose(Loss::NotReconnected(error)),
            Err(error) => tracing::debug!(node = %peer.node, %error, "a device stays unused"),
        }
        self.retry_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RECONNECT_MAX);
    }
}
