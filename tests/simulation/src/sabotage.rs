//! Known bugs, put back to see that they are caught.

use crate::promise::Promise;

/// A bug in one of the simulation's shells, which stand for the real ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shell {
    /// Generation words are fetched together with the data instead of after it.
    WordsWithData,
    /// The position of an inventory is taken some time after its contents.
    InventoryPositionLate,
    /// A link is opened to whatever incarnation answers.
    AnyIncarnation,
    /// An operation is said to have settled when it is cancelled, while its bytes still arrive.
    SettledTooSoon,
    /// What a coordinator expects next is not asked: a lost stream loses deltas for good.
    ExpectationIgnored,
    /// What a dead engine had reserved stays reserved.
    ReservationsLeak,
    /// A claimant counts its lease from when it is answered.
    LeaseFromAnswer,
    /// A claimant whose renewal is not answered takes it for renewed.
    RenewalAssumed,
}

/// Where a bug is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Here.
    Shell(Shell),
    /// In the agent.
    #[cfg(feature = "sabotage")]
    Agent(kvferry_agent::sabotage::Bug),
    /// In the coordinator.
    #[cfg(feature = "sabotage")]
    Coordinator(kvferry_coordinator::sabotage::Bug),
}

/// A known bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sabotage {
    /// For people.
    pub name: &'static str,
    /// Where it is.
    pub place: Place,
    /// It must be caught within so many seeds, counted from 0.
    pub within_seeds: u64,
    /// By one of these; by any where there is none.
    pub breaks: &'static [Promise],
}

impl Sabotage {
    /// The bug of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        all().into_iter().find(|bug| bug.name == name)
    }

    /// Puts it in, for this thread.
    pub(crate) fn install(bug: Option<Self>) {
        #[cfg(feature = "sabotage")]
        {
            let place = bug.map(|bug| bug.place);
            kvferry_agent::sabotage::set(match place {
                Some(Place::Agent(bug)) => Some(bug),
                _ => None,
            });
            kvferry_coordinator::sabotage::set(match place {
                Some(Place::Coordinator(bug)) => Some(bug),
                _ => None,
            });
        }
        #[cfg(not(feature = "sabotage"))]
        let _ = bug;
    }

    pub(crate) fn is(bug: Option<Self>, shell: Shell) -> bool {
        bug.is_some_and(|bug| bug.place == Place::Shell(shell))
    }
}

/// Every known bug that this build can put back.
#[must_use]
pub fn all() -> Vec<Sabotage> {
    #[cfg(feature = "sabotage")]
    let bugs = [shells(), crates()].concat();
    #[cfg(not(feature = "sabotage"))]
    let bugs = shells();
    bugs
}

const fn bug(
    name: &'static str,
    place: Place,
    within_seeds: u64,
    breaks: &'static [Promise],
) -> Sabotage {
    Sabotage {
        name,
        place,
        within_seeds,
        breaks,
    }
}

fn shells() -> Vec<Sabotage> {
    use Place::Shell as In;
    use Promise::{
        BoundsHold, BuffersAreOwned, BytesArePublished, ClaimsAreExclusive, Converges,
        PublishedIsFound,
    };
    vec![
        bug(
            "words-with-data",
            In(Shell::WordsWithData),
            20,
            &[BytesArePublished],
        ),
        bug(
            "inventory-position-late",
            In(Shell::InventoryPositionLate),
            20,
            &[Converges, PublishedIsFound],
        ),
        bug(
            "any-incarnation",
            In(Shell::AnyIncarnation),
            100,
            &[BytesArePublished],
        ),
        bug(
            "settled-too-soon",
            In(Shell::SettledTooSoon),
            20,
            &[BuffersAreOwned, BytesArePublished, BoundsHold],
        ),
        bug(
            "expectation-ignored",
            In(Shell::ExpectationIgnored),
            20,
            &[Converges, PublishedIsFound],
        ),
        bug(
            "reservations-leak",
            In(Shell::ReservationsLeak),
            20,
            &[Converges],
        ),
        bug(
            "lease-from-answer",
            In(Shell::LeaseFromAnswer),
            20,
            &[ClaimsAreExclusive],
        ),
        bug(
            "renewal-assumed",
            In(Shell::RenewalAssumed),
            50,
            &[ClaimsAreExclusive],
        ),
    ]
}

#[cfg(feature = "sabotage")]
fn crates() -> Vec<Sabotage> {
    use Place::{Agent, Coordinator};
    use Promise as P;
    use kvferry_agent::sabotage::Bug as A;
    use kvferry_coordinator::sabotage::Bug as C;
    vec![
        bug(
            "generation-unchecked",
            Agent(A::GenerationUnchecked),
            20,
            &[P::BytesArePublished],
        ),
        bug(
            "generation-not-bumped",
            Agent(A::GenerationNotBumped),
            20,
            &[P::BytesArePublished],
        ),
        bug(
            "freed-before-settled",
            Agent(A::FreedBeforeSettled),
            20,
            &[P::BuffersAreOwned, P::BytesArePublished],
        ),
        bug(
            "never-abandoned",
            Agent(A::NeverAbandoned),
            20,
            &[P::Converges],
        ),
        bug(
            "deadline-missed",
            Agent(A::DeadlineMissed),
            20,
            &[P::PullsEnd],
        ),
        bug("outcome-twice", Agent(A::OutcomeTwice), 20, &[P::PullsEnd]),
        bug(
            "resync-dropped",
            Agent(A::ResyncDropped),
            20,
            &[P::Converges, P::PublishedIsFound],
        ),
        bug(
            "remove-lost",
            Agent(A::RemoveLost),
            20,
            &[P::Converges, P::PublishedIsFound],
        ),
        bug(
            "log-unbounded",
            Agent(A::LogUnbounded),
            100,
            &[P::BoundsHold],
        ),
        bug(
            "window-ignored",
            Agent(A::WindowIgnored),
            100,
            &[P::BoundsHold],
        ),
        bug(
            "acknowledged-too-much",
            Agent(A::AcknowledgedTooMuch),
            20,
            &[P::PublishedIsFound, P::BoundsHold],
        ),
        bug("pins-ignored", Agent(A::PinsIgnored), 20, &[P::PinnedStays]),
        bug(
            "fencing-skipped",
            Coordinator(C::FencingSkipped),
            100,
            &[P::FencedIsVoid],
        ),
        bug(
            "fenced-session-kept",
            Coordinator(C::FencedSessionKept),
            200,
            &[P::FencedIsVoid, P::SourcesAreTrue],
        ),
        bug(
            "gap-ignored",
            Coordinator(C::GapIgnored),
            50,
            &[P::Converges, P::PublishedIsFound],
        ),
        bug(
            "heartbeat-delta-ignored",
            Coordinator(C::HeartbeatDeltaIgnored),
            20,
            &[P::Converges],
        ),
        bug(
            "inventory-keeps",
            Coordinator(C::InventoryKeeps),
            50,
            &[P::Converges],
        ),
        bug(
            "resync-not-asked",
            Coordinator(C::AckBeforeInventory),
            150,
            &[],
        ),
        bug(
            "silent-never-purged",
            Coordinator(C::SilentNeverPurged),
            50,
            &[P::Converges],
        ),
        bug(
            "claims-never-expire",
            Coordinator(C::ClaimsNeverExpire),
            20,
            &[P::ClaimsAreExclusive],
        ),
        bug(
            "claims-outlive-nodes",
            Coordinator(C::ClaimsOutliveNodes),
            50,
            &[P::ClaimsAreExclusive],
        ),
        bug(
            "claims-granted-twice",
            Coordinator(C::ClaimsGrantedTwice),
            20,
            &[P::ClaimsAreExclusive],
        ),
        bug(
            "removals-untold",
            Coordinator(C::RemovalsUntold),
            20,
            &[P::WatchersAgree],
        ),
        bug(
            "node-ends-untold",
            Coordinator(C::NodeEndsUntold),
            20,
            &[P::WatchersAgree],
        ),
        bug(
            "watch-gap-untold",
            Coordinator(C::WatchGapUntold),
            50,
            &[P::WatchersAgree],
        ),
        bug(
            "watchers-not-woken",
            Coordinator(C::WatchersNotWoken),
            20,
            &[P::WatchersAgree],
        ),
        bug(
            "locations-expire-early",
            Coordinator(C::LocationsExpireEarly),
            20,
            &[P::LocationsStay],
        ),
        bug(
            "locations-never-expire",
            Coordinator(C::LocationsNeverExpire),
            20,
            &[P::LocationsStay],
        ),
        bug(
            "location-remove-lost",
            Coordinator(C::LocationRemoveLost),
            20,
            &[P::LocationsStay],
        ),
        bug(
            "quota-ignored",
            Coordinator(C::QuotaIgnored),
            20,
            &[P::BoundsHold],
        ),
        bug(
            "copies-ordered-twice",
            Coordinator(C::CopiesOrderedTwice),
            50,
            &[P::CopiesCome],
        ),
        bug(
            "copies-believed",
            Coordinator(C::CopiesBelieved),
            50,
            &[P::CopiesCome],
        ),
        bug(
            "sources-outlive-nodes",
            Coordinator(C::SourcesOutliveNodes),
            20,
            &[P::SourcesAreTrue],
        ),
        bug(
            "removed-workers-return",
            Coordinator(C::RemovedWorkersReturn),
            50,
            &[P::SourcesAreTrue],
        ),
        bug(
            "claim-tokens-repeat",
            Coordinator(C::ClaimTokensRepeat),
            50,
            &[P::ClaimsAreExclusive],
        ),
        bug(
            "claims-cross-namespaces",
            Coordinator(C::ClaimsCrossNamespaces),
            20,
            &[P::ClaimsAreExclusive],
        ),
        bug(
            "hashes-cross-namespaces",
            Coordinator(C::HashesCrossNamespaces),
            20,
            &[
                P::NamespacesAreApart,
                P::WatchersAgree,
                P::PublishedIsFound,
                P::ClaimsAreExclusive,
            ],
        ),
        bug(
            "deleted-regions-return",
            Coordinator(C::DeletedRegionsReturn),
            50,
            &[P::DeletedIsGone],
        ),
        bug(
            "held-by-any-name",
            Agent(A::HeldByAnyName),
            50,
            &[P::BytesArePublished],
        ),
        bug(
            "stalls-ignored",
            Agent(A::StallsIgnored),
            20,
            &[P::StallsAreBounded],
        ),
        bug(
            "suspects-trusted",
            Agent(A::SuspectsTrusted),
            50,
            &[P::StallsAreBounded],
        ),
        bug(
            "suspects-never-cleared",
            Agent(A::SuspectsNeverCleared),
            20,
            &[P::StallsAreBounded],
        ),
    ]
}
