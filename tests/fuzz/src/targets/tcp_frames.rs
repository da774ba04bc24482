//! The data port's frames, one by one.

use kvferry_agent::fuzz::tcp;
use kvferry_proto::{Part, RegionId, RemoteSpan};

use crate::{Target, world::INCARNATION};

pub(super) const TARGET: Target = Target {
    name: "tcp_frames",
    run: tcp::frames,
    seeds,
};

/// Requests for whole slots, and for their words.
pub(super) fn requests() -> Vec<Vec<RemoteSpan>> {
    let span = |region, part, offset, len| RemoteSpan {
        region: RegionId(region),
        part,
        offset,
        len,
    };
    vec![
        vec![span(1, Part::Data, 0, 64), span(1, Part::Data, 128, 64)],
        vec![
            span(2, Part::Generations, 0, 16),
            span(1, Part::Generations, 8, 8),
        ],
        vec![span(1, Part::Data, 500, 64)],
        vec![span(9, Part::Data, 0, 1)],
        vec![span(1, Part::Generations, 4, 8)],
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    let stream = tcp::sent_by_reader(INCARNATION, &requests());
    let hello = tcp::sent_by_reader(INCARNATION, &[]);
    let answers = tcp::sent_by_owner(INCARNATION, &[Some(32), None]);
    vec![
        stream[hello.len()..].to_vec(),
        answers[28..].to_vec(),
        answers[28 + 16 + 32..].to_vec(),
        answers,
        hello,
    ]
}
