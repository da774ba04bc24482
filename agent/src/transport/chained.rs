//! A read that begins when something else is known.

use std::future::Future;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{PendingRead, ReadError};

/// Waits for `begin`, then for the read it gives. Cancelled before, `begin` is dropped, and nothing was begun.
pub(super) fn chained(
    runtime: &Handle,
    begin: impl Future<Output = Result<PendingRead, ReadError>> + Send + 'static,
) -> PendingRead {
    let token = CancellationToken::new();
    let (pending, completion) = PendingRead::new(std::sync::Arc::new(token.clone()));
    runtime.spawn(async move {
        let begun = tokio::select! {
            biased;
            () = token.cancelled() => Err(ReadError::Cancelled),
            begun = begin => begun,
        };
        let result = match begun {
            Err(error) => Err(error),
            Ok(mut read) => tokio::select! {
                result = &mut read => result,
                () = token.cancelled() => {
                    read.cancel();
                    read.await
                }
            },
        };
        completion.settle(result);
    });
    pending
}
