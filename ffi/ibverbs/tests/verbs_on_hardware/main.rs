//! The safe layer on real verbs: an RDMA card, or Soft-RoCE in the virtual machine of `tests/rdma/run`.
//!
//! Without a device every test says so and passes; with KVFERRY_RDMA_REQUIRED=1 it fails.
//! KVFERRY_RDMA_GID=ipv4|ipv6|INDEX chooses the address, KVFERRY_RDMA_DEVICES=a,b the devices.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy does not take for tests

mod crowded_wire;
mod devices;
mod events;
mod faults;
mod limits;
mod processes;
mod reads;
mod rig;
mod teardown;
