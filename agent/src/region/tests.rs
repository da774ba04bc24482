//! One test per rule of the store. The rules together are in [`super::model`].

mod chunks;
mod pins;
mod reads;
mod regions;
mod seals;
mod slots;
mod surplus;

use std::time::Duration;

use kvferry_proto::Slot;

use super::ClientId;

pub(super) const NOW: Duration = Duration::ZERO;
pub(super) const ALICE_ID: ClientId = ClientId(1);
pub(super) const BOB_ID: ClientId = ClientId(2);

pub(super) fn slots(numbers: impl IntoIterator<Item = u32>) -> Vec<Slot> {
    numbers.into_iter().map(Slot).collect()
}
