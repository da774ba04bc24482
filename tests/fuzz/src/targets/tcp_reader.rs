//! A reader's data connection: the owner's stream, cut at random places, into memory that is watched.

use kvferry_agent::fuzz::tcp::{self, Asked};

use crate::{Target, choices::Choices, world};

pub(super) const TARGET: Target = Target {
    name: "tcp_reader",
    run,
    seeds,
};

const MAX_READS: usize = 8;
const HELLO_BYTES: usize = 28;

fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let reads: Vec<Asked> = (0..choices.below(MAX_READS))
        .map(|_| {
            let word = choices.u16();
            Asked {
                bytes: u64::from(word & 0x0fff) + 1,
                cancelled: word & 0xf000 == 0xf000,
            }
        })
        .collect();
    let cuts = choices.bytes();
    let stream = choices.rest();
    let (hello, answers) = stream.split_at(stream.len().min(HELLO_BYTES));
    let pieces = world::cut(answers, cuts);
    world::block_on(tcp::reader(world::INCARNATION, &reads, hello, &pieces));
}

fn seeds() -> Vec<Vec<u8>> {
    let seed = |reads: &[(u16, Option<u64>)], cuts: &[u8]| {
        let mut out = vec![reads.len() as u8];
        for (read, _) in reads {
            out.extend(read.to_le_bytes());
        }
        out.extend((cuts.len() as u16).to_le_bytes());
        out.extend(cuts);
        let answers: Vec<_> = reads.iter().map(|(_, answer)| *answer).collect();
        out.extend(tcp::sent_by_owner(world::INCARNATION, &answers));
        out
    };
    vec![
        seed(&[(63, Some(64)), (7, Some(8))], &[]),
        seed(
            &[
                (63, Some(64)),
                (7, None),
                (0xf01f, Some(32)),
                (99, Some(100)),
            ],
            &[5, 11, 30, 2, 90],
        ),
        seed(&[(4095, Some(4096)), (63, Some(63))], &[200, 200]),
    ]
}
