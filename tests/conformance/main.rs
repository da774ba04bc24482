//! One suite that holds every transport to the contract on `kvferry_agent::transport`'s page.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::single_range_in_vec_init)]
#![allow(unreachable_pub)] // one program of many files

mod garbage;
mod gpu;
mod keys;
mod overwrite;
mod proxy;
mod rdma;
mod rdma_gpu;
mod shm;
mod sim;
mod stalls;
mod suite;
mod tcp;
mod tickets;
mod tls;
mod world;

/// Runs the suite against a world.
macro_rules! conformance {
    ($world:ty: $($test:path as $name:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if <$world as crate::world::World>::possible().await {
                $test(<$world as crate::world::World>::start().await).await;
            }
        })*
    };
}

/// What every transport must do.
macro_rules! every_transport {
    ($module:ident, $world:ty) => {
        mod $module {
            conformance! { $world:
                crate::suite::differently_cut as differently_cut_spans_arrive_in_order,
                crate::suite::large as a_large_read_arrives,
                crate::suite::concurrent as concurrent_reads_do_not_mix,
                crate::suite::out_of_range as spans_out_of_range_are_refused_and_the_link_lives,
                crate::suite::words_with_data as words_come_with_the_data_where_the_link_can,
                crate::suite::region_gone as a_gone_region_is_named_and_the_link_lives,
                crate::suite::invalid as invalid_requests_never_start,
                crate::suite::read_only as read_only_local_memory_is_refused,
                crate::suite::cut_local as a_cut_local_file_is_an_error_and_the_link_lives,
                crate::suite::wrong_incarnation as another_incarnation_is_refused,
                crate::suite::dropped as a_dropped_read_leaves_the_link_good,
                crate::suite::owner_gone as a_gone_owner_is_a_lost_link,
                crate::suite::generations_newer as generations_are_newer_than_data_read_before,
                crate::suite::generations_whole as generation_words_are_whole,
                crate::overwrite::torture as nothing_wrong_is_accepted_from_an_owner_that_overwrites,
            }
        }
    };
}

/// What transports must do whose owners can stop in the middle of a read.
macro_rules! stalling_transport {
    ($module:ident, $world:ty) => {
        mod $module {
            conformance! { $world:
                crate::stalls::cancel_mid_payload as a_cancelled_read_settles_and_writes_no_more,
                crate::stalls::cancel_unanswered as an_unanswered_read_can_be_cancelled,
                crate::stalls::loss_settles as a_lost_link_settles_everything,
                crate::stalls::drop_link_settles as a_dropped_link_settles_everything,
            }
        }
    };
}

every_transport!(over_sim, crate::sim::SimWorld);
every_transport!(over_tcp, crate::tcp::TcpWorld);
every_transport!(over_tcp_with_tickets, crate::tickets::TicketWorld);
every_transport!(over_tcp_by_tls, crate::tls::TlsWorld);
every_transport!(over_shm, crate::shm::ShmWorld);
every_transport!(over_rdma, crate::rdma::RdmaWorld);
every_transport!(over_rdma_between_gpus, crate::rdma_gpu::RdmaGpuWorld);
every_transport!(between_gpus, crate::gpu::GpuWorld);
every_transport!(between_gpus_by_tls, crate::gpu::GpuTlsWorld);
stalling_transport!(stalled_sim, crate::sim::SimWorld);
stalling_transport!(stalled_tcp, crate::tcp::TcpWorld);
stalling_transport!(stalled_tls, crate::tls::TlsWorld);
stalling_transport!(stalled_tcp_with_tickets, crate::tickets::TicketWorld);
