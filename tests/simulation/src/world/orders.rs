//! Copies that coordinators order: the agent's half. Stands for the agent's worker and for what its session
//! tasks remember of answers: a few orders at a time, some blocks at a time, into free slots only; and an answer
//! goes out when the copies it speaks of were acknowledged.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use kvferry_agent::{
    coordinators::Located,
    region::Holder,
    transfer::{Outcome, PullEngine},
};
use kvferry_proto::{
    NamespaceSpec, PackedHashes,
    pb::{self, agent_message::Message, replicated::Verdict},
};

use super::{
    Process, World,
    pull::{Begin, Pull, Target},
};
use crate::{invariants::pulls_end, names::Names};

/// Orders that wait, and orders at work, as the agent bounds them.
const MOST_WAITING: usize = 8;
const AT_ONCE: usize = 2;
/// Blocks pulled at a time.
const BLOCKS_AT_ONCE: usize = 4;

/// An agent's orders.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    waiting: VecDeque<Job>,
    pub(crate) at_work: BTreeMap<u64, Job>,
}

impl Orders {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.at_work.is_empty()
    }
}

/// One order.
#[derive(Debug)]
pub(crate) struct Job {
    session: usize,
    order: u64,
    namespace: usize,
    hashes: Vec<u64>,
    known: Option<Located>,
    deadline: Duration,
    /// Blocks that were dealt with, and of those the ones that failed.
    next: usize,
    failed: Vec<u32>,
    full: bool,
    /// The blocks of the pull under way, by place.
    pulling: Vec<usize>,
}

impl World {
    /// A coordinator orders copies.
    pub(super) fn ordered(&mut self, process: &mut Process, session: usize, said: pb::Replicate) {
        let order = said.order;
        let now = process.local(self.now);
        let Some(job) = parse(session, said, &self.conditions.names, now) else {
            let detail = format!(
                "process {} is given an order that makes no sense",
                process.pid
            );
            return self.fail(crate::promise::Promise::HonestIsHeard, detail);
        };
        if process.orders.waiting.len() >= MOST_WAITING {
            return answer(process, session, 0, order, Verdict::Busy, Vec::new());
        }
        if job.namespace >= process.pools.len() {
            // It has no pool for these: chunks of tensors lie where their engine has them.
            let all = (0..job.hashes.len() as u32).collect();
            return answer(process, session, 0, order, Verdict::Full, all);
        }
        process.orders.waiting.push_back(job);
        self.work_on_orders(process);
    }

    fn work_on_orders(&mut self, process: &mut Process) {
        while process.orders.at_work.len() < AT_ONCE
            && let Some(job) = process.orders.waiting.pop_front()
        {
            let id = process.number();
            process.orders.at_work.insert(id, job);
            self.copy_some(process, id);
        }
    }

    /// The next blocks of an order; its answer where there are none.
    fn copy_some(&mut self, process: &mut Process, id: u64) {
        let now = process.local(self.now);
        while let Some(mut job) = process.orders.at_work.remove(&id) {
            let end = job.hashes.len().min(job.next + BLOCKS_AT_ONCE);
            let name = &self.conditions.spec(job.namespace).name;
            let here = |at: &usize| {
                let hash = self.conditions.names.hash(job.hashes[*at]);
                process.store.find(name, &hash).is_some()
            };
            let batch: Vec<usize> = (job.next..end).filter(|at| !here(at)).collect();
            job.next = end;
            let timeout = job.deadline.saturating_sub(now);
            if timeout.is_zero() {
                job.failed.extend(batch.iter().map(|at| *at as u32));
            } else if !batch.is_empty() {
                let hashes: Vec<u64> = batch.iter().map(|at| job.hashes[*at]).collect();
                let known = job.known.as_ref().map(|known| known.subset(&batch));
                job.pulling = batch;
                let namespace = job.namespace;
                process.orders.at_work.insert(id, job);
                return self.begin_copy(process, id, namespace, hashes, known, timeout);
            }
            if job.next < job.hashes.len() {
                process.orders.at_work.insert(id, job);
                continue;
            }
            let verdict = if job.full {
                Verdict::Full
            } else {
                Verdict::Done
            };
            // What was sealed is in the log by now.
            let (_, next) = process.log.bounds();
            let seq = next + u64::from(process.log.has_open()) - 1;
            answer(process, job.session, seq, job.order, verdict, job.failed);
            self.send_answers(process, job.session);
            break;
        }
    }

    fn begin_copy(
        &mut self,
        process: &mut Process,
        job: u64,
        namespace: usize,
        hashes: Vec<u64>,
        known: Option<Located>,
        timeout: Duration,
    ) {
        let now = process.local(self.now);
        let id = process.number();
        let request = self.pull_request(namespace, &hashes, timeout);
        let mut pull = Pull::new(Begin {
            id,
            namespace,
            engine: PullEngine::new(self.conditions.transfer.clone(), request, now),
            holder: Holder::Pull(id),
            hashes,
            target: Target::Pool(Arc::clone(&process.pools[namespace])),
            pin: None,
            deadline: now + timeout,
        });
        pull.copies_for = Some(job);
        pull.known = known;
        self.stats.pulls += 1;
        process.pulls.insert(id, pull);
        self.deadline_at(process, id, now + timeout + pulls_end::SLACK);
        self.step(process, id, None);
    }

    /// A pull for an order has an outcome for each block.
    pub(super) fn copied(&mut self, process: &mut Process, id: u64, outcomes: &[Option<Outcome>]) {
        if let Some(job) = process.orders.at_work.get_mut(&id) {
            let pulling = std::mem::take(&mut job.pulling);
            for (at, outcome) in pulling.into_iter().zip(outcomes) {
                if *outcome != Some(Outcome::Pulled) {
                    job.full |= *outcome == Some(Outcome::NoSpace);
                    job.failed.push(at as u32);
                }
            }
        }
        self.copy_some(process, id);
        self.work_on_orders(process);
    }

    /// Answers whose copies the coordinator has acknowledged.
    pub(super) fn send_answers(&mut self, process: &mut Process, session: usize) {
        let acknowledged = process.sessions[session].machine.acknowledged();
        while let Some((seq, _)) = process.sessions[session].answers.front()
            && *seq <= acknowledged
            && let Some((_, said)) = process.sessions[session].answers.pop_front()
        {
            self.session_send(process, session, Message::Replicated(said));
        }
    }
}

fn answer(
    process: &mut Process,
    session: usize,
    seq: u64,
    order: u64,
    verdict: Verdict,
    failed: Vec<u32>,
) {
    let said = pb::Replicated {
        order,
        verdict: verdict.into(),
        failed,
    };
    process.sessions[session].answers.push_back((seq, said));
}

fn parse(session: usize, order: pb::Replicate, names: &Names, now: Duration) -> Option<Job> {
    let spec = NamespaceSpec::try_from(order.namespace?).ok()?;
    let namespace = names.namespace(&spec.name)?;
    if spec != *names.spec(namespace) {
        return None;
    }
    let bytes = spec.layout.block_bytes();
    let hashes = PackedHashes::parse(order.hashes?, spec.hash_len).ok()?;
    let numbers = hashes.iter().map(|hash| names.number(namespace, hash));
    let hashes = numbers.collect::<Option<Vec<u64>>>()?;
    let known = order
        .from
        .and_then(|from| Located::parse(from, hashes.len(), bytes).ok());
    Some(Job {
        session,
        order: order.order,
        namespace,
        known: known.filter(|known| known.len() == hashes.len()),
        hashes,
        deadline: now + Duration::from_millis(order.timeout_ms.into()),
        next: 0,
        failed: Vec::new(),
        full: false,
        pulling: Vec::new(),
    })
}
