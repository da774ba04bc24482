//! The transport behind: reads what RDMA cannot, within the same link.

use std::sync::Arc;

use kvferry_proto::RemoteSpan;

use super::{fault::Loss, landing::Landing, link::Shared, op::ReadOp, prepare::NotByRdma};
use crate::transport::{ConnectError, GpuRequest, ReadError, ReadRequest, staged};

/// Why there is no link of another transport.
enum NoneBehind {
    /// The agent was told so.
    NotAllowed,
    /// It does not reach the owner either.
    Connect(ConnectError),
}

impl Shared {
    /// Reads over the transport behind, and says so.
    pub(super) async fn read_behind(
        &self,
        op: &Arc<ReadOp>,
        remote: Vec<RemoteSpan>,
        why: &NotByRdma,
    ) {
        let connect = async {
            let Some(behind) = &self.behind else {
                return Err(NoneBehind::NotAllowed);
            };
            let open = || async {
                let link = behind.connect(&self.peer).await;
                let link = link.map_err(NoneBehind::Connect)?;
                let transport = link.kind().as_str();
                tracing::warn!(node = %self.peer.node, transport, "not all can be read by RDMA: {why}");
                Ok::<_, NoneBehind>(link)
            };
            let link = self.fallback.get_or_try_init(open).await;
            link.cloned()
        };
        let link = tokio::select! {
            () = op.cancelled() => return op.over(Ok(())),
            link = connect => link,
        };
        let link = match link {
            Ok(link) => link,
            Err(NoneBehind::Connect(error)) => {
                let why = why.to_string();
                return op.over(Err(ReadError::NoLink { why, error }));
            }
            Err(NoneBehind::NotAllowed) => {
                let why = format_args!("{why}, and nothing but RDMA may be used");
                return op.over(Err(self.lost(&why)));
            }
        };
        op.leave_to_another();
        let mut pending = match op.landing() {
            Landing::Host(spans) => link.read(ReadRequest {
                remote,
                local: spans.clone(),
            }),
            Landing::Gpu(gpu) => staged::into_gpu(
                &link,
                GpuRequest {
                    remote,
                    local: gpu.spans.clone(),
                },
            ),
        };
        let result = tokio::select! {
            result = &mut pending => result,
            () = op.cancelled() => {
                pending.cancel();
                pending.await
            }
        };
        if link.is_lost() {
            // The one behind does not come back by itself; the next link gets a new one.
            self.act(|lanes, after| lanes.lose(Loss::Behind, after));
        }
        op.over(result);
    }
}
