//! Coordinators' answers, checked as clients do.

use kvferry_proto::{InvalidMessage, SourceId, TableDigest, pb};

use super::{ClaimedBlocks, GotSource, claims, locations, sources};

/// An answer about so many claims.
///
/// # Errors
/// [`InvalidMessage`].
pub fn claimed(answer: pb::ClaimResponse, asked: usize) -> Result<ClaimedBlocks, InvalidMessage> {
    claims::check(answer, asked, 0)
}

/// An answer about the locations of so many blocks.
///
/// # Errors
/// [`InvalidMessage`].
pub fn found(answer: &pb::FindLocationsResponse, asked: usize) -> Result<(), InvalidMessage> {
    locations::check(answer, asked)
}

/// An answer about a set of tensors, in one page.
///
/// # Errors
/// [`InvalidMessage`].
pub fn got_source(
    source: SourceId,
    digest: Option<TableDigest>,
    mut answer: pb::GetSourceResponse,
) -> Result<GotSource, InvalidMessage> {
    let tensors = sources::parse(std::mem::take(&mut answer.tensors))?;
    sources::check(source, digest, answer, tensors)
}
