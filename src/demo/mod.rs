//! placeholder
use crate::failure::Done;
use clap::Args;
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub(crate) struct DemoError;
impl DemoError {
    pub(crate) fn is_usage(&self) -> bool {
        false
    }
}
pub(crate) async fn run(_a: DemoArgs) -> Result<Done, DemoError> {
    Err(DemoError)
}
