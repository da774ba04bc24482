//! Parts and their blocks, call by call. Whole pulls: `driver/tests/stages.rs`.

use kvferry_memory::HostMemory;
use kvferry_proto::Checksum;
use parking_lot::Mutex;

use super::*;
use crate::{
    coordinators::Located,
    transfer::{Destination, LandError, LocateError, NoSpace},
    transport::BoxFuture,
};

/// Two blocks of 48 bytes in two pieces; what is done to them, in order.
struct Whole {
    memory: Arc<HostMemory>,
    calls: Mutex<Vec<(&'static str, BlockIndex)>>,
}

impl Whole {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            memory: Arc::new(HostMemory::anonymous(4096).unwrap()),
            calls: Mutex::default(),
        })
    }

    fn calls(&self) -> Vec<(&'static str, BlockIndex)> {
        std::mem::take(&mut *self.calls.lock())
    }
}

impl Landing for Whole {
    type Landed = BlockIndex;

    fn prepare(&self, block: BlockIndex) -> Result<Destination, NoSpace> {
        self.calls.lock().push(("prepare", block));
        let at = u64::from(block) * 100;
        Ok(Destination {
            memory: Arc::clone(&self.memory).into(),
            ranges: [at..at + 24, at + 50..at + 74].into_iter().collect(),
        })
    }

    fn verify(&self, _: BlockIndex, _: &Destination, _: Checksum) -> bool {
        unreachable!("parts have no checksums")
    }

    fn land(&self, block: BlockIndex, _: Option<Checksum>) -> Result<BlockIndex, LandError> {
        self.calls.lock().push(("land", block));
        Ok(block)
    }

    fn abandon(&self, block: BlockIndex) {
        self.calls.lock().push(("abandon", block));
    }
}

/// Parts 0 and 1 are the first stage, 2 and 3 the second, 4 and 5 the third.
fn pieces(whole: &Arc<Whole>) -> Pieces<Whole> {
    Pieces::new(Arc::clone(whole), 2, [0..8, 8..40, 40..48].into())
}

#[test]
fn a_block_has_one_place_that_its_stages_share() {
    let whole = Whole::new();
    let pieces = pieces(&whole);
    let place = |part, wanted: &[(u64, u64)]| {
        let ranges = pieces.prepare(part).unwrap().ranges;
        let ranges: Vec<_> = ranges.iter().map(|it| (it.start, it.end)).collect();
        assert_eq!(ranges, wanted);
    };
    place(3, &[(108, 124), (150, 166)]);
    place(1, &[(100, 108)]);
    place(5, &[(166, 174)]);
    assert_eq!(whole.calls(), [("prepare", 1)]);
    // In whatever order, and it lands with the last.
    assert_eq!(pieces.land(5, None), Ok(None));
    let both = pieces.land_many(&[(1, None), (3, None)]);
    assert_eq!(both, [Ok(None), Ok(Some(1))]);
    assert_eq!(whole.calls(), [("land", 1)]);
}

#[test]
fn a_place_is_given_back_once_and_not_before_its_last_part_has_ended() {
    let whole = Whole::new();
    let pieces = pieces(&whole);
    for part in [0, 2] {
        pieces.prepare(part).unwrap();
    }
    whole.calls();
    pieces.abandon(0);
    assert_eq!(pieces.in_vain(0), [2, 4]);
    assert!(pieces.in_vain(2).is_empty(), "said once");
    assert_eq!(whole.calls(), []);
    // The one that is still being read may well succeed.
    assert_eq!(pieces.land(2, None), Ok(None));
    assert_eq!(whole.calls(), [("abandon", 0)]);
    // Nobody gets a place in what is another's by now.
    assert_eq!(pieces.prepare(4).unwrap_err(), NoSpace);
    assert_eq!(whole.calls(), []);

    // It failed before its second part had a place at all.
    pieces.prepare(1).unwrap();
    assert_eq!(pieces.land(1, None), Ok(None));
    assert_eq!(whole.calls(), [("prepare", 1)]);
    assert_eq!(pieces.in_vain(3), [1, 5]);
    assert_eq!(whole.calls(), [("abandon", 1)]);
}

/// Answers for so many blocks of each question, and remembers what it was asked for.
struct Short(usize, Mutex<Vec<BlockIndex>>);

impl Locate for Short {
    fn locate<'a>(
        &'a self,
        blocks: &'a [BlockIndex],
    ) -> BoxFuture<'a, Result<Located, LocateError>> {
        *self.1.lock() = blocks.to_vec();
        let answered = blocks.len().min(self.0);
        Box::pin(async move { Ok(Located::new(Vec::new(), vec![Vec::new(); answered])) })
    }
}

#[tokio::test]
async fn blocks_are_asked_for_once_and_a_short_answer_is_one_for_the_first_parts() {
    let locate = PieceLocate::new(Arc::new(Short(1, Mutex::default())), 2);
    let located = locate.locate(&[0, 1, 2, 3]).await.unwrap();
    assert_eq!(*locate.whole.1.lock(), [0, 1]);
    assert_eq!(located.len(), 1);
    // What is asked for again comes first: so each answer gets further.
    let located = locate.locate(&[1, 2, 3]).await.unwrap();
    assert_eq!(*locate.whole.1.lock(), [1, 0]);
    assert_eq!(located.len(), 1);
    let all = PieceLocate::new(Arc::new(Short(9, Mutex::default())), 2);
    assert_eq!(all.locate(&[1, 3, 5, 0]).await.unwrap().len(), 4);
}
