//! Orders to copy blocks here, and what came of them.

use std::collections::VecDeque;

use kvferry_proto::pb::{self, replicated::Verdict};
use tokio::sync::mpsc;

use super::ChangeLog;

/// Answers on their way from the worker: a coordinator has few orders with an agent at a time.
const MAX_ANSWERS: usize = 64;

/// An order of one coordinator, for the agent's worker.
#[derive(Debug)]
pub struct CopyOrder {
    /// As it came.
    pub message: pb::Replicate,
    /// Where to say what came of it.
    pub reply: mpsc::Sender<pb::Replicated>,
}

/// What came of orders, until the coordinator is told. It is told after the copies themselves: else it
/// would see them lacking still, and order them once more elsewhere.
#[derive(Debug)]
pub(super) struct Done {
    sender: mpsc::Sender<pb::Replicated>,
    answers: mpsc::Receiver<pb::Replicated>,
    /// With the delta that must have been acknowledged before.
    waiting: VecDeque<(u64, pb::Replicated)>,
}

impl Done {
    pub(super) fn new() -> Self {
        let (sender, answers) = mpsc::channel(MAX_ANSWERS);
        Self {
            sender,
            answers,
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn sender(&self) -> mpsc::Sender<pb::Replicated> {
        self.sender.clone()
    }

    /// An order was not even begun.
    pub(super) fn busy(&mut self, order: u64) {
        let said = pb::Replicated {
            order,
            verdict: Verdict::Busy.into(),
            failed: Vec::new(),
        };
        self.waiting.push_back((0, said));
        // Orders beyond what a coordinator gives at a time: it is out of order itself.
        if self.waiting.len() > MAX_ANSWERS {
            self.waiting.pop_front();
        }
    }

    /// The next answer comes from the worker. What it sealed is in the log by then.
    pub(super) async fn arrives(&mut self, log: &ChangeLog) {
        // The sender here keeps the channel open: this is never None.
        if let Some(said) = self.answers.recv().await {
            self.waiting.push_back((log.last(), said));
        }
    }

    /// What the coordinator can be told, now that it has confirmed so much.
    pub(super) fn next(&mut self, acknowledged: u64) -> Option<pb::Replicated> {
        let (seq, _) = self.waiting.front()?;
        if *seq > acknowledged {
            return None;
        }
        self.waiting.pop_front().map(|(_, said)| said)
    }

    pub(super) fn forget(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_waits_for_the_copies_it_speaks_of() {
        let (mut done, log) = (Done::new(), ChangeLog::new());
        let said = |order| pb::Replicated {
            order,
            ..pb::Replicated::default()
        };
        done.sender().send(said(1)).await.unwrap();
        done.arrives(&log).await;
        assert_eq!(done.next(0), Some(said(1)), "nothing was sealed");
        done.waiting.push_back((7, said(2)));
        assert_eq!(done.next(6), None);
        assert_eq!(done.next(6), None, "it stays");
        assert_eq!(done.next(7), Some(said(2)));
        done.busy(3);
        assert_eq!(done.next(0).map(|said| said.verdict()), Some(Verdict::Busy));
        done.waiting.push_back((7, said(4)));
        done.forget();
        assert_eq!(done.next(9), None);
    }
}
